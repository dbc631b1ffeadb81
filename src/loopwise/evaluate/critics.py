"""Critics: what says in words where an answer went wrong. Functions of one's own are critics too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loopwise.errors import ConfigError
from loopwise.evaluate.options import require_number, require_text
from loopwise.evaluate.parts import Judge, Judged
from loopwise.evaluate.sources import Source, Surroundings
from loopwise.models.templates import fill
from loopwise.types import Problem, Sample

TEMPLATE = '{prompt}{draft}\nWhat is wrong with this answer? Say "Correct" if nothing is.\n'
CHAT_TEMPLATE = 'What is wrong with this answer? Say only "Correct" if nothing is.'
ACCEPT = "Correct"


@dataclass(frozen=True)
class Mismatch:
    """Says where a completion first differs from ``column``, white space around both left out.

    ``says`` is the critique: ``{place}`` is the first character that differs, counted from 1, ``{found}`` and
    ``{expected}`` are what stands there and what should: nothing, where a text is over.
    """

    column: str
    says: str

    async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Judged:
        """Critiques of ``samples`` [S]; one whose problem has nothing in ``column`` cannot be judged."""
        judged = Judged.nothing(len(samples))
        for position, (problem, sample) in enumerate(zip(problems, samples, strict=True)):
            reference = problem.columns.get(self.column)
            if reference is None:
                judged.errors[position] = f'there is nothing in column "{self.column}" to compare it with'
            else:
                judged.critiques[position] = self._critique(sample.text.strip(), str(reference).strip())
        return judged

    def _critique(self, found: str, expected: str) -> str | None:
        if found == expected:
            return None
        pairs = enumerate(zip(found, expected, strict=False))
        place = next((place for place, (one, other) in pairs if one != other), min(len(found), len(expected)))
        return fill(
            self.says, place=str(place + 1), found=found[place : place + 1], expected=expected[place : place + 1]
        )

    def close(self) -> None:
        """Nothing to end."""


def mismatch(
    surroundings: Surroundings, column: str = "answer", says: str = "It is wrong from character {place} on."
) -> Judge:
    """The critic ``Mismatch``. Raises ConfigError."""
    require_text('source "mismatch"', column=column, says=says)
    return Mismatch(column, says)


def self_critic(
    surroundings: Surroundings,
    template: str = TEMPLATE,
    chat_template: str = CHAT_TEMPLATE,
    accept: str = ACCEPT,
    max_tokens: int = 128,
) -> Judge:
    """The policy criticises its own samples: it goes on, greedily, from ``template``, or from the conversation, the
    sample and ``chat_template`` as the user's words. A critique that begins with the word ``accept`` says nothing
    against the sample, nor does an empty one. Raises ConfigError.
    """
    return _writer("self_critic", surroundings, None, template, chat_template, accept, max_tokens)


def model_critic(
    surroundings: Surroundings,
    model: str,
    template: str = TEMPLATE,
    chat_template: str = CHAT_TEMPLATE,
    accept: str = ACCEPT,
    max_tokens: int = 128,
) -> Judge:
    """Another model criticises, that in the folder ``model``, which stays as it is; the rest as ``self_critic``.

    Raises ConfigError, and ModelError where the folder is no usable model.
    """
    require_text('source "model_critic"', model=model)
    if surroundings.runtime is None or "weights" not in getattr(surroundings.generator, "offers", ()):
        raise ConfigError(
            'source "model_critic": its model runs here, and the samples are written elsewhere. '
            "Use remote_critic, or leave `generator` out of the recipe."
        )
    from loopwise.models.folders import load_policy

    policy = load_policy(surroundings.folder / model, surroundings.runtime)
    return _writer("model_critic", surroundings, policy, template, chat_template, accept, max_tokens)


def _writer(
    name: str,
    surroundings: Surroundings,
    policy: Any,
    template: str,
    chat_template: str,
    accept: str,
    max_tokens: int,
) -> Judge:
    require_text(f'source "{name}"', template=template, chat_template=chat_template, accept=accept)
    for field in ("prompt", "draft"):
        if "{" + field + "}" not in template:
            raise ConfigError(f'source "{name}": option "template" has no {{{field}}}. Say where it goes.')
    require_number(f'source "{name}"', 1, whole=True, max_tokens=max_tokens)
    if surroundings.generator is None:
        raise ConfigError(f'source "{name}": nothing here writes text for it. Use it in a recipe of `improve`.')
    from loopwise.evaluate.written import WritingCritic

    return WritingCritic(surroundings.generator, policy, template, chat_template, accept, max_tokens, surroundings.seed)


WORDS = frozenset({"critiques"})
SOURCES = (
    Source("mismatch", mismatch, uses_reference=True, says=WORDS),
    Source("self_critic", self_critic, says=WORDS, asks_policy=True),
    Source("model_critic", model_critic, says=WORDS),
)
