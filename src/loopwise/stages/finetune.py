"""``loopwise tune``: learning from labelled rows, round by round through the same loop, gate and checkpoints.

Rows with a chosen and a rejected completion teach the difference between them where ``update.method`` says so; what is
held out is compared by the likelihood of the chosen ones, or by rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from loopwise.config.methods import SFTConfig
from loopwise.config.recipes import TuneRecipe
from loopwise.errors import ConfigError, DataError
from loopwise.evaluate.loading import load_feedback
from loopwise.evaluate.rewards import RewardSum
from loopwise.evaluate.sources import Surroundings
from loopwise.generate.check import check_sampling
from loopwise.generate.local import LocalGenerator
from loopwise.loop import Position
from loopwise.measuring import Parts
from loopwise.models.logps import TokenRow
from loopwise.models.policy import Policy
from loopwise.models.tokens import encode_fitting
from loopwise.observer import Observer
from loopwise.results import Result, conclude
from loopwise.runtime import Runtime, make_runtime
from loopwise.session import Run, Stages
from loopwise.stages import endpoints
from loopwise.stages.beginning import beginning
from loopwise.stages.updates import check_reference
from loopwise.starting import (
    TRIAL_PROBLEMS,
    comparable,
    reward_fingerprint,
    row_counts,
    start_policy,
    tell_rows,
    texts_of,
    try_rewards,
)
from loopwise.tasks.base import SourceRows, Streams
from loopwise.tasks.rewards import with_task_rewards
from loopwise.tasks.streams import open_streams
from loopwise.types import Problem
from loopwise.update.comparisons import ComparingConfig, Comparison
from loopwise.update.pairs import LabelledPairs, encode_pairs
from loopwise.update.rows import Encoding, encode_labelled
from loopwise.update.sft import SFT
from loopwise.workspace import Workspace

RUN_ID = "tune"
REJECTED = "rejected"
"""The column of the worse completion, in preference rows."""
T = TypeVar("T")


@dataclass(frozen=True)
class Prepared:
    """A recipe with everything resolved, before anything is written.

    ``encodings`` say what became of the rows of each source, and of each split that is compared by likelihood.
    """

    recipe: TuneRecipe
    runtime: Runtime
    streams: Streams
    base: Policy
    update: SFT | LabelledPairs
    feedback: RewardSum
    encodings: Mapping[str, Encoding]
    remote: endpoints.Endpoints

    def as_run(self) -> Run:
        """What the journal knows it as."""
        parts = Parts(
            recipe=self.recipe,
            streams=self.streams,
            runtime=self.runtime,
            update=self.update,
            generator=LocalGenerator(self.runtime),
            feedback=self.feedback,
            exhausted=partial(endpoints.exhausted, self.remote),
        )
        return Run(RUN_ID, "tune", parts, self.base, reward_fingerprint(self.recipe.rewards))


@dataclass(frozen=True)
class _Learned(Generic[T]):
    """Rows or pairs to learn, source after source; ``sources`` and ``changed`` as SFT takes them."""

    examples: tuple[T, ...]
    sources: tuple[tuple[int, float], ...]
    encodings: Mapping[str, Encoding]
    changed: Callable[[int, int], T] | None


def tune(
    recipe: TuneRecipe | str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    observer: Observer | None = None,
) -> Result:
    """Fine-tune on a recipe's labelled rows into the new folder ``out`` (or go on with it); the best round wins.

    Raises LoopwiseError for anything a person can mend, before anything is written.
    """
    with beginning(TuneRecipe, recipe, out, RUN_ID, resume=resume, observer=observer) as start:
        prepared = prepare(start.stack, start.recipe, start.threads, trial=not resume)
        workspace = start.open_workspace()
        tell_rows(start.observer, prepared.encodings)
        stages, position = tune_in(workspace, prepared, start.observer)
        rows = row_counts(prepared.encodings)
        for source in prepared.streams.sources:
            rows[source.name]["left_out"] = source.left_out
            if source.left_out:
                told = f"{source.name}: {source.left_out:,} rows are no example to learn, and left out"
                start.observer.note("info", told)
        spent = endpoints.spent(prepared.remote)
        more = {"rows": rows, **({"endpoints": spent} if spent else {})}
        return conclude(workspace, RUN_ID, start.recipe, stages, position, start.began, more)


def tune_in(workspace: Workspace, prepared: Prepared, observer: Observer) -> tuple[Stages, Position]:
    """The rounds of a prepared recipe in an open workspace: figures before and after, and where they ended."""
    recipe = prepared.recipe
    run = prepared.as_run()
    run.enter(workspace)
    endpoints.attach(prepared.remote, workspace)
    session, position = run.go(workspace, observer)
    first = "untrained" if recipe.model.create else "base"
    stages = {
        first: session.stage(prepared.base, 0, first),
        "tuned": session.stage(position.incumbent, position.incumbent_round, "tuned"),
    }
    return stages, position


def prepare(stack: ExitStack, recipe: TuneRecipe, threads: int | None = None, *, trial: bool = True) -> Prepared:
    """Resolve everything a recipe names and try its rewards. Writes nothing.

    Reward workers and endpoints are entered on ``stack``. Without ``trial`` no samples are drawn. Raises LoopwiseError
    for anything a person can mend.
    """
    if recipe.has_idle_rewards:
        raise ConfigError(
            'key "rewards": `loopwise tune` measures them where gate.metric is reward, and here it is likelihood. '
            "Set gate.metric: reward, or leave them out."
        )
    recipe = with_task_rewards(recipe)
    runtime = make_runtime(recipe.runtime, recipe.seed, threads)
    streams = open_streams(recipe.data, recipe.seed, supervised=True)
    base = start_policy(recipe.model, runtime, lambda: texts_of(streams))
    _check_update(recipe, base)
    update, encodings = _update(base, streams, recipe)
    if recipe.gate.metric == "likelihood":
        streams, compared = comparable(base, streams, recipe.update)
        encodings = {**encodings, **compared}
    else:
        for name, problems in streams.held_out.items():
            encode_fitting(base, problems, recipe.sampling.max_tokens, name)
        check_sampling(base, runtime)
    generator = LocalGenerator(runtime)
    remote = endpoints.enter_endpoints(stack, recipe.endpoints)
    feedback = load_feedback(
        recipe.rewards,
        reference_columns=streams.reference_columns,
        label_free=False,
        surroundings=Surroundings(
            runtime=runtime, writer=generator, local=generator, endpoints=remote, seed=recipe.seed
        ),
    )
    stack.enter_context(feedback)
    if recipe.rewards and trial:
        try_rewards(recipe, base, generator, streams.labelled[:TRIAL_PROBLEMS], feedback)
    return Prepared(
        recipe=recipe,
        runtime=runtime,
        streams=streams,
        base=base,
        update=update,
        feedback=feedback,
        encodings=encodings,
        remote=remote,
    )


def _check_update(recipe: TuneRecipe, base: Policy) -> None:
    """Refuse keys that would do nothing, and a reference that is not there."""
    config = recipe.update
    if not isinstance(config, ComparingConfig):
        return
    what = {"pairs": "pairs are made of samples", "threshold": "samples pass"}
    for key in config.changed(*what):
        raise ConfigError(
            f'key "update.{key}": says how {what[key]} by `loopwise improve`, and does nothing here. Leave it out.'
        )
    check_reference(config, base)


def _update(base: Policy, streams: Streams, recipe: TuneRecipe) -> tuple[SFT | LabelledPairs, Mapping[str, Encoding]]:
    """The update with the rows that it learns, and what became of those of each source."""
    config = recipe.update
    if isinstance(config, ComparingConfig):
        pairs = _encode(streams, config, partial(_encode_pairs, base, streams, config))
        return LabelledPairs(config, pairs.examples, recipe.rounds, pairs.sources, pairs.changed), pairs.encodings
    rows = _encode(streams, config, partial(_encode_rows, base, streams, config))
    return SFT(config, rows.examples, recipe.rounds, rows.sources, rows.changed), rows.encodings


def _encode_rows(
    base: Policy, streams: Streams, config: SFTConfig, problems: Sequence[Problem]
) -> tuple[tuple[TokenRow, ...], Encoding]:
    return encode_labelled(base, problems, list(map(streams.completion, problems)), config)


def _encode_pairs(
    base: Policy, streams: Streams, config: ComparingConfig, problems: Sequence[Problem]
) -> tuple[tuple[Comparison, ...], Encoding]:
    for problem in problems:
        if problem.columns.get(REJECTED) is None:
            place = problem.place or f"problem {str(problem.prompt)[:60]!r}"
            raise DataError(
                f'{place}, column "{REJECTED}": missing. {config.method} learns from a chosen and a rejected '
                "completion of each prompt: add the column, or set update.method: sft."
            )
    worse = replace(streams, completion_column=REJECTED)
    return encode_pairs(
        base, problems, list(map(streams.completion, problems)), list(map(worse.completion, problems)), config
    )


def _encode(
    streams: Streams, config: SFTConfig, encode: Callable[[Sequence[Problem]], tuple[tuple[T, ...], Encoding]]
) -> _Learned[T]:
    """Encode the labelled problems; a source's own are counted apart."""
    examples: list[T] = []
    problems: list[Problem] = []
    sources: list[tuple[int, float]] = []
    encodings: dict[str, Encoding] = {}
    first = 0
    for source in streams.sources or (SourceRows("rows", len(streams.labelled), 1.0),):
        part = streams.labelled[first : first + source.count]
        first += source.count
        encoded, encoding = encode(part)
        encodings[source.name] = encoding
        examples += encoded
        problems += [part[place] for place in encoding.places]
        sources.append((len(encoded), source.weight))

    def changed(place: int, epoch: int) -> T:
        """An example as augmentation makes it; one that it makes too long stays as it was where such are dropped."""
        assert streams.augment is not None
        problem = streams.augment(problems[place], epoch)
        try:
            return encode([problem])[0][0]
        except DataError:
            if config.too_long != "drop":
                raise
            return examples[place]

    return _Learned(tuple(examples), tuple(sources), encodings, changed if streams.augment else None)
