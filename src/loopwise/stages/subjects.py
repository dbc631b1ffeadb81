"""What there is to measure of a prepared run: its batches, its evaluations, a round's samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import cycle, islice
from typing import Any

from loopwise.config.methods import (
    HindsightConfig,
    ILFConfig,
    OnlineConfig,
    PairsConfig,
    ReflexionConfig,
    RFTConfig,
    SFTConfig,
    reference_of,
)
from loopwise.config.recipes import ImproveRecipe
from loopwise.data.batches import batch_indices
from loopwise.generate.local import LocalGenerator
from loopwise.measuring import Parts, held_out_drawing
from loopwise.models.logps import TokenRow
from loopwise.models.policy import Policy
from loopwise.stages import finetune, improve, pretrain
from loopwise.stages.costs import Subject
from loopwise.stages.probe import Drawn, Timed, Training, draw_samples, time_likelihood, time_samples, time_windows
from loopwise.stages.rehearsal import Rehearsal, made_up, stretched
from loopwise.starting import sampling_of
from loopwise.types import Problem, Scored, Update
from loopwise.update.fitting import Batch, supervised
from loopwise.update.hindsight import Hindsight
from loopwise.update.ilf import ILF
from loopwise.update.online import row_of
from loopwise.update.pairs import LabelledPairs, Pairs
from loopwise.update.pretrain import Pretrain
from loopwise.update.reference import Reference
from loopwise.update.rft import RFT
from loopwise.update.rows import sample_rows
from loopwise.update.units import work_units

OF_PAIRS = "the loss of pairs falls at rates that ruin the model. Watch dev, and the log-probability of chosen answers"
OF_CHAINS = "its rows are pairs of samples that are not drawn yet"
OF_LESSONS = "no weights change"
OF_SAMPLES = (
    "what it learns from changes with every step, and its loss says nothing about the rate. Watch reward and dev"
)


def pretraining(prepared: pretrain.Prepared) -> Subject:
    """Pretraining: all windows have one length, so that any batch takes the most memory."""
    recipe, parts = prepared.recipe, prepared.as_run().parts
    assert isinstance(parts.update, Pretrain)
    ordinary = partial(parts.update.batch, recipe.seed)
    training = Training(
        prepared.base, prepared.runtime, recipe.update.optimizer, recipe.rounds, ordinary, longest=ordinary(0)
    )
    evaluations = {
        name: partial(time_windows, prepared.base, text.windows, prepared.runtime)
        for name, text in prepared.held_out.items()
    }
    return Subject(
        parts=parts, base=prepared.base, training=training, steps=recipe.update.steps, evaluations=evaluations
    )


def tuning(prepared: finetune.Prepared) -> Subject:
    """Fine-tuning on labelled rows or pairs."""
    recipe, update, parts = prepared.recipe, prepared.update, prepared.as_run().parts
    ordinary: Callable[[int], Batch[Any]]
    longest: Batch[Any]
    if isinstance(update, LabelledPairs):
        name = reference_of(update.config)
        reference = Reference.of(name, prepared.base) if name else None
        ordinary, longest = partial(update.batch, recipe.seed, reference=reference), update.longest(reference)
    else:
        ordinary, longest = partial(update.batch, recipe.seed), _longest(update.labelled, recipe.update)
    training = Training(
        prepared.base, prepared.runtime, recipe.update.optimizer, recipe.rounds, ordinary, longest=longest
    )
    unswept = OF_PAIRS if isinstance(update, LabelledPairs) else None
    return Subject(
        parts=parts,
        base=prepared.base,
        training=training,
        steps=recipe.update.steps,
        evaluations=_evaluations(parts, prepared.base),
        unswept=unswept,
        passes=len(longest.micro_batches),
    )


def improving(prepared: improve.Prepared) -> Subject:
    """The loop: an update that draws its samples as it goes is rehearsed, imitation takes steps on rows."""
    recipe, parts = prepared.recipe, prepared.as_run(improve.RUN_ID).parts
    if not isinstance(prepared.generator, LocalGenerator):
        steps = recipe.steps(recipe.problems)
        return Subject(parts=parts, base=None, training=None, steps=steps, evaluations={}, unswept=OF_LESSONS)
    problems = prepared.streams.draw(1, recipe.problems)
    steps = recipe.steps(len(problems))
    at_once = recipe.runtime.generate_batch
    if isinstance(recipe.update, OnlineConfig):
        at_once = min(at_once, recipe.update.problems_per_step * recipe.samples)
    drawn = cache(
        partial(
            draw_samples,
            prepared.base,
            problems,
            recipe.samples,
            sampling_of(recipe),
            prepared.runtime,
            at_once,
        )
    )
    measured = partial(
        Subject,
        parts=parts,
        base=prepared.base,
        steps=steps,
        evaluations=_evaluations(parts, prepared.base),
        sampling=_sampling(recipe, len(problems), drawn),
    )
    if not recipe.update.trains:
        return measured(training=None, unswept=OF_LESSONS)
    if recipe.update.imitates_rows:
        training, unswept = _imitating(prepared, problems)
        return measured(training=training, unswept=unswept, passes=len(training.longest.micro_batches))
    rehearsal = _rehearsing(prepared, problems, drawn)
    passes = None
    if isinstance(recipe.update, OnlineConfig):
        rows = [row_of(rehearsal.longest, place) for place in range(len(rehearsal.longest.samples))]
        passes = len(work_units(rows, recipe.update.tokens_per_pass))
    return measured(training=rehearsal, unswept=_why_unswept(recipe.update), passes=passes)


def _sampling(recipe: ImproveRecipe, problems: int, drawn: Callable[[], Drawn]) -> Callable[[], Timed] | None:
    """The time of all samples of a round, at most; None where there are none."""
    most = recipe.update.most_samples(problems, recipe.samples)
    if not most:
        return None
    if most == problems * recipe.samples:
        return lambda: drawn().timed
    return lambda: replace(drawn().timed.scaled(most), at_most=True)


def _why_unswept(update: Any) -> str:
    if isinstance(update, HindsightConfig):
        return OF_CHAINS
    return OF_PAIRS if isinstance(update, PairsConfig) else OF_SAMPLES


def _imitating(prepared: improve.Prepared, problems: Sequence[Problem]) -> tuple[Training, str | None]:
    """Training as it would be on the labelled rows, or where there are none on the trial samples.

    These say how long a step takes, but not which rate is right: the model finds them likely already.
    """
    recipe, update = prepared.recipe, prepared.update
    config = recipe.update
    assert isinstance(config, RFTConfig | ILFConfig)
    assert isinstance(update, RFT | ILF)
    # Where judges set samples beside each other, the trial drew several of a problem.
    owners = {problem.id: problem for problem in problems}
    tried = prepared.trial.samples
    sampled = sample_rows(prepared.base, tried, [owners[sample.problem_id] for sample in tried])
    rows = update.labelled or tuple(sampled)

    def ordinary(step: int) -> Batch[Sequence[TokenRow]]:
        places = batch_indices(len(rows), config.batch_size, recipe.seed, step)
        return supervised([rows[place] for place in places.tolist()], config.tokens_per_pass)

    training = Training(
        prepared.base,
        prepared.runtime,
        config.optimizer,
        recipe.rounds,
        ordinary,
        longest=_longest((*update.labelled, *sampled), config),
    )
    return training, None if update.labelled else "there are no labelled rows to try it on"


def _rehearsing(prepared: improve.Prepared, problems: Sequence[Problem], drawn: Callable[[], Drawn]) -> Rehearsal:
    """Rounds on made-up rollouts: of one step's problems, or of as many as a batch of pairs takes."""
    recipe, base = prepared.recipe, prepared.base
    config = recipe.update
    assert not isinstance(config, ReflexionConfig)
    count = config.problems_per_step if isinstance(config, OnlineConfig) else config.batch_size

    def update(steps: int) -> Update:
        own = prepared.update
        if isinstance(own, Pairs):
            return replace(own, config=own.config.model_copy(update={"steps": steps}))
        if isinstance(own, Hindsight):
            return replace(own, config=own.config.model_copy(update={"steps": steps}))
        return own

    def ordinary() -> Scored | None:
        found = drawn()
        kept = min(count, len(found.problems))
        samples = [sample for sample in found.samples if sample.group < kept]
        return made_up(found.problems[:kept], samples) if samples else None

    return Rehearsal(
        base,
        prepared.runtime,
        recipe.seed,
        recipe.rounds,
        update,
        stretched(base, problems, recipe.samples, count, recipe.sampling.max_tokens),
        ordinary,
    )


def _longest(rows: Sequence[TokenRow], config: SFTConfig) -> Batch[Sequence[TokenRow]]:
    """A batch of the longest rows, the very longest first; of all of them again and again where there are too few."""
    ordered = sorted(rows, key=lambda row: row.total_tokens, reverse=True)
    return supervised(list(islice(cycle(ordered), config.batch_size)), config.tokens_per_pass)


def _evaluations(parts: Parts, base: Policy) -> Mapping[str, Callable[[], Timed]]:
    """How each held-out split is measured: by the likelihood of its completions, or by samples."""
    recipe, streams, runtime = parts.recipe, parts.streams, parts.runtime
    each, drawing = held_out_drawing(parts)
    found: dict[str, Callable[[], Timed]] = {}
    for split, problems in streams.held_out.items():
        if recipe.gate.metric == "likelihood":
            completions = [streams.completion(problem) for problem in problems]
            found[split] = partial(time_likelihood, base, problems, completions, runtime)
        else:
            unit = recipe.runtime.generate_batch
            found[split] = partial(time_samples, base, problems, each, drawing, runtime, unit)
    return found
