"""Judges that measure with a frozen model, or over a group: fluency, coherence, similarity, self-BLEU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loopwise.evaluate.groups import group_members
from loopwise.evaluate.metrics.translation import TOKENIZERS
from loopwise.evaluate.metrics.variety import self_bleu
from loopwise.evaluate.options import require, require_one_of
from loopwise.evaluate.references import Figures
from loopwise.evaluate.sources import Source, Surroundings
from loopwise.types import Problem, Sample

if TYPE_CHECKING:
    from loopwise.evaluate.parts import Judge, Judged


def fluency(surroundings: Surroundings, model: str, after_prompt: bool = True) -> Judge:
    """1 / perplexity of the completion under the frozen model in the folder ``model``, read after its prompt or alone.

    Raises ConfigError for a wrong option, ModelError naming what is wrong with the folder.
    """
    require('source "fluency"', str, model=model)
    require('source "fluency"', bool, after_prompt=after_prompt)
    from loopwise.evaluate.metrics.fluency import Fluency
    from loopwise.models.folders import load_policy

    runtime = surroundings.local_runtime()
    return Fluency(load_policy(model, runtime), runtime, after_prompt=after_prompt)


def coherence(surroundings: Surroundings, model: str) -> Judge:
    """Cosine of prompt and completion, as the encoder in the folder ``model`` (or ``package:NAME``) embeds them.

    Raises ConfigError for a wrong option, ModelError naming what is wrong with the folder.
    """
    require('source "coherence"', str, model=model)
    return _likeness(surroundings, model, None)


def similarity(surroundings: Surroundings, model: str, column: str = "answer") -> Judge:
    """Cosine of the completion and the text in ``column``, or the nearest of its texts, as ``model`` embeds them.

    Raises ConfigError for a wrong option, ModelError naming what is wrong with the folder.
    """
    require('source "similarity"', str, model=model, column=column)
    return _likeness(surroundings, model, column)


def variety(surroundings: Surroundings, tokenize: str = "auto") -> Judge:
    """1 - self-BLEU: how little of the completion stands in the others of its group; 0 for an empty one.

    Raises ConfigError for a tokenizer that sacrebleu does not have.
    """
    require_one_of('source "self_bleu"', "tokenize", tokenize, TOKENIZERS)
    return SelfBleu(tokenize)


class SelfBleu:
    """A judge of whole groups. It abstains from a sample that is alone in its group."""

    def __init__(self, tokenize: str) -> None:
        self._tokenize = tokenize

    async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Judged:
        """Judge samples [S], whole groups."""
        from loopwise.evaluate.parts import Judged

        judged = Judged.nothing(len(samples))
        for members in group_members(samples):
            if len(members) == 1:
                judged.abstained.update(members)
                continue
            found = self_bleu([samples[place].text for place in members], self._tokenize)
            for place, likeness in zip(members, found, strict=True):
                judged.rewards[place] = 1.0 - (likeness or 0.0) if samples[place].text.strip() else 0.0
        return judged

    def report(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Figures | None:
        """Self-BLEU from 0 to 100: the mean over the groups of their texts' mean."""
        groups = [
            self_bleu([samples[place].text for place in members], self._tokenize) for members in group_members(samples)
        ]
        known = [[likeness for likeness in group if likeness is not None] for group in groups]
        means = [sum(group) / len(group) for group in known if group]
        return {"self_bleu": 100 * sum(means) / len(means), "groups": len(means)} if means else None

    def close(self) -> None:
        """Nothing to end."""


SOURCES: tuple[Source, ...] = (
    Source("fluency", fluency),
    Source("coherence", coherence),
    Source("similarity", similarity, uses_reference=True),
    Source("self_bleu", variety, compares=True),
)


def _likeness(surroundings: Surroundings, model: str, column: str | None) -> Judge:
    from loopwise.evaluate.metrics.embeddings import Encoder, Likeness

    return Likeness(Encoder.load(model, surroundings.local_runtime()), column)
