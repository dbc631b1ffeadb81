"""``loopwise pretrain``: a model made from nothing, or one that goes on, on plain text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from loopwise.config.recipes import PretrainRecipe
from loopwise.data.corpus import Corpus, open_corpus
from loopwise.data.encoding import encode_documents
from loopwise.data.sources import Document
from loopwise.data.windows import HeldOut, Packed, evaluation_windows, pack
from loopwise.errors import ConfigError, ModelError, VocabularyError
from loopwise.evaluate.floor import measure_floor
from loopwise.evaluate.perplexity import UNLIMITED, Perplexity, keeps_apart, window_sums
from loopwise.evaluate.rewards import RewardSum
from loopwise.evaluate.stats import mean_interval
from loopwise.generate.check import check_sampling
from loopwise.generate.local import LocalGenerator
from loopwise.measuring import Parts
from loopwise.models.policy import Policy
from loopwise.models.tokens import encode_fitting, encode_prompts, unknown_tokens
from loopwise.observer import Observer
from loopwise.results import Result, conclude
from loopwise.runtime import Runtime, make_runtime
from loopwise.session import Run, Stages
from loopwise.stages.beginning import beginning
from loopwise.starting import start_policy
from loopwise.tasks.base import Streams
from loopwise.types import Evaluation, Problem
from loopwise.update.pretrain import Pretrain
from loopwise.workspace import Workspace

RUN_ID = "pretrain"
FLOOR = "ngram"


@dataclass(frozen=True)
class HeldOutText:
    """A held-out split as windows, with what its figures are made of."""

    documents: tuple[np.ndarray, ...]
    windows: HeldOut
    bytes: int

    @property
    def lengths(self) -> np.ndarray:
        """Tokens predicted in each window: int64 ``[W]``; only the last may be shorter."""
        count = -(-self.windows.tokens // self.windows.window)
        lengths = np.full(count, self.windows.window)
        lengths[-1] = self.windows.tokens - (count - 1) * self.windows.window
        return lengths

    def perplexity(self, scores: np.ndarray) -> Perplexity:
        """The figures of windows whose mean log-probabilities a token are ``scores`` ``[W]``."""
        return Perplexity(-float((scores * self.lengths).sum()), self.windows.tokens, self.bytes, len(self.documents))


@dataclass(frozen=True)
class Prepared:
    """A recipe with everything resolved, before anything is written."""

    recipe: PretrainRecipe
    runtime: Runtime
    corpus: Corpus
    base: Policy
    train: tuple[np.ndarray, ...]
    texts: tuple[Packed, ...]
    held_out: Mapping[str, HeldOutText]

    def as_run(self) -> Run:
        """What the journal knows it as."""
        recipe = self.recipe
        update = Pretrain(
            recipe.update, self.texts, tuple(source.weight for source in recipe.data.train), recipe.rounds
        )
        parts = Parts(
            recipe=recipe,
            streams=Streams.without_problems(self.held_out, self.corpus.fingerprint),
            runtime=self.runtime,
            update=update,
            generator=LocalGenerator(self.runtime),
            feedback=RewardSum(()),
            watched=_beginnings(recipe),
            score=self.score,
            figures=self.figures,
        )
        return Run(RUN_ID, "pretrain", parts, self.base, {})

    def score(self, policy: Policy, split: str) -> np.ndarray:
        """Mean log-probability a token (nats) of each held-out window: float64 ``[W]``."""
        text = self.held_out[split]
        return np.asarray(window_sums(policy, text.windows, self.runtime) / text.lengths)

    def figures(self, evaluation: Evaluation) -> dict[str, float]:
        """What a table of perplexities shows."""
        found = self.held_out[evaluation.split].perplexity(evaluation.scores)
        return {
            "nats_per_token": found.nats_per_token,
            "perplexity": found.perplexity,
            "bits_per_byte": found.bits_per_byte,
            "tokens": found.tokens,
            "bytes": found.bytes,
        }

    def floor(self) -> tuple[dict[str, Evaluation], int]:
        """What the n-gram floor scores on the same windows, and how many tokens it has counted."""
        if not self.held_out:
            return {}, 0
        assert self.base.weights is not None
        module: Any = self.base.weights.module
        documents = {name: text.documents for name, text in self.held_out.items()}
        floor = measure_floor(self.train, documents, module.get_input_embeddings().weight.shape[0])
        found = {}
        for split, logps in floor.logps.items():
            lengths = self.held_out[split].lengths
            found[split] = Evaluation(split, FLOOR, np.add.reduceat(logps, np.cumsum(lengths) - lengths) / lengths)
        return found, floor.trained_on


def pretrain(
    recipe: PretrainRecipe | str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    observer: Observer | None = None,
) -> Result:
    """Train on a recipe's text into the new folder ``out`` (or go on with it); the best round wins.

    Raises LoopwiseError for anything a person can mend, before anything is written.
    """
    with beginning(PretrainRecipe, recipe, out, RUN_ID, resume=resume, observer=observer) as start:
        prepared = prepare(start.recipe, start.threads)
        floor, counted = prepared.floor()  # before the run: should it fail, no training is lost
        workspace = start.open_workspace()
        session, position = prepared.as_run().go(workspace, start.observer)
        first = "untrained" if prepared.recipe.model.create else "base"
        stages: Stages = {
            first: session.stage(prepared.base, 0, first),
            "pretrained": session.stage(position.incumbent, position.incumbent_round, "pretrained"),
        }
        if floor:
            stages[FLOOR] = _journal_floor(workspace, prepared, floor, counted)
        corpus = {**prepared.corpus.counts, "sources": [source.name for source in prepared.corpus.sources]}
        return conclude(workspace, RUN_ID, prepared.recipe, stages, position, start.began, {"corpus": corpus})


def _journal_floor(
    workspace: Workspace, prepared: Prepared, floor: Mapping[str, Evaluation], counted: int
) -> dict[str, dict[str, Any]]:
    """Write the floor's scores to the journal; its figures, as of a stage."""
    figures: dict[str, dict[str, Any]] = {}
    for split, evaluation in floor.items():
        interval = mean_interval(evaluation.scores)
        workspace.store(partial(workspace.journal.add_evaluation, RUN_ID, 0, FLOOR, evaluation, interval))
        common = {"accuracy": evaluation.mean, "ci95": list(interval), "n": len(evaluation.scores)}
        figures[split] = common | prepared.figures(evaluation) | {"trained_on": counted}
    return figures


def prepare(recipe: PretrainRecipe, threads: int | None = None) -> Prepared:
    """Resolve everything a recipe names. Writes nothing."""
    if recipe.gate.metric != "likelihood":
        raise ConfigError('key "gate.metric": pretraining knows no rewards to measure. Use metric: likelihood.')
    runtime = make_runtime(recipe.runtime, recipe.seed, threads)
    corpus = open_corpus(recipe.data, recipe.seed)
    base = start_policy(recipe.model, runtime, lambda: _texts(corpus))
    window = window_of(recipe, base)
    sources = [_encode(base, source.documents, source.name) for source in corpus.sources]
    texts = tuple(
        pack(documents, window, source.name) for documents, source in zip(sources, corpus.sources, strict=True)
    )
    held_out = {
        name: _held_out(base, name, documents, window) for name, documents in corpus.held_out.items() if documents
    }
    packed = [text.documents for text in texts] + [text.windows.documents for text in held_out.values()]
    if max(packed) > 1 and not keeps_apart(base):
        raise _leak(base)
    recipe = _with_room(recipe, base)
    encode_fitting(base, _beginnings(recipe), recipe.sampling.max_tokens, "prompts")
    if recipe.prompts:
        check_sampling(base, runtime)
    train = tuple(document for documents in sources for document in documents)
    return Prepared(
        recipe=recipe, runtime=runtime, corpus=corpus, base=base, train=train, texts=texts, held_out=held_out
    )


def window_of(recipe: PretrainRecipe, base: Policy) -> int:
    """Tokens of a window: the recipe's, or the model's context, of a loaded model at most ``UNLIMITED``.

    Raises ConfigError where the model has no such room.
    """
    assert base.weights is not None
    limit = base.weights.context_length
    context = base.weights.window or UNLIMITED
    window = recipe.update.window or (context if recipe.model.create else min(context, UNLIMITED))
    if limit is not None and window > limit:
        raise ConfigError(
            f'key "update.window": {window} tokens are over the model\'s context of {limit}. '
            "Lower it, or raise model.context."
        )
    return window


def _held_out(base: Policy, name: str, documents: Sequence[Document], window: int) -> HeldOutText:
    place = f"the {name} text"
    encoded = tuple(_encode(base, documents, place))
    windows = evaluation_windows(encoded, window, place)
    return HeldOutText(encoded, windows, sum(document.bytes for document in documents))


def _encode(base: Policy, documents: Sequence[Document], place: str) -> list[np.ndarray]:
    """The documents, ready to pack. Raises VocabularyError, beginning with ``place``, where the tokenizer has no tokens
    for some of their text: no figure could say how well that is predicted."""
    encoded = encode_documents(base, documents)
    lost = unknown_tokens(base, [document.text for document in documents], encoded)
    if any(lost):
        first = next(document for document, count in zip(documents, lost, strict=True) if count)
        share = sum(lost) / sum(map(len, encoded))
        raise VocabularyError(
            f"{place}: {share:.2%} of its tokens are {base.tokenizer.unk_token}, text that the tokenizer does not "
            f"know, first in {first.place}. Take it out, or take a model whose tokenizer knows it: model.create: gpt2 "
            "makes one that knows any text."
        )
    return encoded


def _leak(base: Policy) -> ModelError:
    assert base.weights is not None
    module: Any = base.weights.module
    return ModelError(
        f"model_type {module.config.model_type}: loopwise cannot keep the documents of a window from seeing one "
        "another in this architecture. Take one that heeds positions that begin again, as GPT-2, Llama, Qwen3 and "
        "Mistral do, or train on a single document."
    )


def _with_room(recipe: PretrainRecipe, base: Policy) -> PretrainRecipe:
    """The recipe, its samples shortened to what the context leaves where it does not say how they are drawn."""
    assert base.weights is not None
    limit = base.weights.context_length
    if "sampling" in recipe.model_fields_set or limit is None:
        return recipe
    longest = max(map(len, encode_prompts(base, _beginnings(recipe))), default=1)
    room = max(1, min(recipe.sampling.max_tokens, limit - longest))
    return recipe.model_copy(update={"sampling": recipe.sampling.model_copy(update={"max_tokens": room})})


def _beginnings(recipe: PretrainRecipe) -> tuple[Problem, ...]:
    return tuple(Problem(f"beginning-{place}", text) for place, text in enumerate(recipe.prompts))


def _texts(corpus: Corpus) -> Iterator[str]:
    return (document.text for source in corpus.sources for document in source.documents)
