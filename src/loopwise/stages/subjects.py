"""What there is to measure of a prepared run: its batches, its evaluations, a round's samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import cycle, islice
from typing import Any

from loopwise.data.batches import batch_indices
from loopwise.methods import OnlineConfig, PairsConfig, RFTConfig, SFTConfig, reference_of
from loopwise.models.logps import TokenRow
from loopwise.models.policy import Policy
from loopwise.session import Parts
from loopwise.stages import finetune, improve, pretrain
from loopwise.stages.costs import Subject
from loopwise.stages.probe import Drawn, Timed, Training, draw_samples, time_likelihood, time_samples, time_windows
from loopwise.stages.rehearsal import Rehearsal, made_up, stretched
from loopwise.starting import TRIAL_PROBLEMS, sampling_of
from loopwise.types import Problem, Scored, Update
from loopwise.update.fitting import Batch, supervised
from loopwise.update.online import row_of
from loopwise.update.pairs import LabelledPairs, Pairs
from loopwise.update.pretrain import Pretrain
from loopwise.update.reference import Reference
from loopwise.update.rft import RFT
from loopwise.update.rows import sample_rows
from loopwise.update.units import work_units

OF_PAIRS = "the loss of pairs falls at rates that ruin the model. Watch dev, and the log-probability of chosen answers"
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
    return Subject(parts, training, recipe.update.steps, evaluations)


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
    evaluations, passes = _evaluations(parts, prepared.base), len(longest.micro_batches)
    return Subject(parts, training, recipe.update.steps, evaluations, unswept=unswept, passes=passes)


def improving(prepared: improve.Prepared) -> Subject:
    """The loop: an update that draws its samples as it goes is rehearsed, imitation takes steps on rows."""
    recipe, parts = prepared.recipe, prepared.as_run(improve.RUN_ID).parts
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
    evaluations = _evaluations(parts, prepared.base)
    if isinstance(recipe.update, RFTConfig):
        training, unswept = _imitating(prepared, problems)
        draws = recipe.update.keep in ("verified", "all")
        sampling = (lambda: drawn().timed) if draws else None
        return Subject(parts, training, steps, evaluations, sampling, unswept, len(training.longest.micro_batches))
    unswept = OF_PAIRS if isinstance(recipe.update, PairsConfig) else OF_SAMPLES
    rehearsal, passes = _rehearsing(prepared, problems, drawn), None
    if isinstance(recipe.update, OnlineConfig):
        rows = [row_of(rehearsal.longest, place) for place in range(len(rehearsal.longest.samples))]
        passes = len(work_units(rows, recipe.update.tokens_per_pass))
    return Subject(parts, rehearsal, steps, evaluations, lambda: drawn().timed, unswept, passes)


def _imitating(prepared: improve.Prepared, problems: Sequence[Problem]) -> tuple[Training, str | None]:
    """Training as it would be on the labelled rows, or where there are none on the trial samples.

    These say how long a step takes, but not which rate is right: the model finds them likely already.
    """
    recipe, update = prepared.recipe, prepared.update
    config = recipe.update
    assert isinstance(config, RFTConfig)
    assert isinstance(update, RFT)
    sampled = sample_rows(prepared.base, prepared.trial, problems[:TRIAL_PROBLEMS])
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
    count = config.problems_per_step if isinstance(config, OnlineConfig) else config.batch_size

    def update(steps: int) -> Update:
        if isinstance(prepared.update, Pairs):
            shorter = prepared.update.config.model_copy(update={"steps": steps})
            return replace(prepared.update, config=shorter)
        return prepared.update

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
    """How each held-out split is measured: by the likelihood of its completions, or by greedy samples."""
    recipe, streams, runtime = parts.recipe, parts.streams, parts.runtime
    greedy = replace(sampling_of(recipe), temperature=0.0, top_k=0, top_p=1.0)
    found: dict[str, Callable[[], Timed]] = {}
    for split, problems in streams.held_out.items():
        if recipe.gate.metric == "likelihood":
            completions = [streams.completion(problem) for problem in problems]
            found[split] = partial(time_likelihood, base, problems, completions, runtime)
        else:
            unit = recipe.runtime.generate_batch
            found[split] = partial(time_samples, base, problems, 1, greedy, runtime, unit)
    return found
