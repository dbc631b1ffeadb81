"""What there is to measure of a prepared run: its batches, its evaluations, a round's samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, islice

from loopwise.blocks import SFTConfig
from loopwise.data.batches import batch_indices
from loopwise.models.logps import TokenRow
from loopwise.models.policy import Policy
from loopwise.session import Parts
from loopwise.stages import finetune, improve, pretrain
from loopwise.stages.costs import Subject
from loopwise.stages.probe import Timed, Training, time_likelihood, time_samples, time_windows
from loopwise.starting import TRIAL_PROBLEMS, sampling_of
from loopwise.update.fitting import Batch, supervised
from loopwise.update.pretrain import Pretrain
from loopwise.update.rft import RFT
from loopwise.update.rows import sample_rows


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
    return Subject(parts, training, evaluations)


def tuning(prepared: finetune.Prepared) -> Subject:
    """Fine-tuning on labelled rows."""
    recipe, update, parts = prepared.recipe, prepared.update, prepared.as_run().parts
    training = Training(
        prepared.base,
        prepared.runtime,
        recipe.update.optimizer,
        recipe.rounds,
        ordinary=partial(update.batch, recipe.seed),
        longest=_longest(update.labelled, recipe.update),
    )
    return Subject(parts, training, _evaluations(parts, prepared.base))


def improving(prepared: improve.Prepared) -> Subject:
    """The loop, as it would train on its labelled rows; where there are none, on its trial samples.

    These say how long a step takes, but not which rate is right: the model finds them likely already.
    """
    recipe, parts, update = prepared.recipe, prepared.as_run(improve.RUN_ID).parts, prepared.update
    assert isinstance(update, RFT)
    problems = prepared.streams.draw(1, recipe.problems)
    sampled = sample_rows(prepared.base, prepared.trial, problems[:TRIAL_PROBLEMS])
    rows = update.labelled or tuple(sampled)

    def ordinary(step: int) -> Batch[Sequence[TokenRow]]:
        places = batch_indices(len(rows), recipe.update.batch_size, recipe.seed, step)
        return supervised([rows[place] for place in places.tolist()], recipe.update.micro_batch_size)

    training = Training(
        prepared.base,
        prepared.runtime,
        recipe.update.optimizer,
        recipe.rounds,
        ordinary,
        longest=_longest((*update.labelled, *sampled), recipe.update),
    )
    draws = recipe.update.keep in ("verified", "all")
    sampling = partial(
        time_samples,
        prepared.base,
        problems,
        recipe.samples,
        sampling_of(recipe),
        prepared.runtime,
        recipe.runtime.generate_batch,
    )
    evaluations = _evaluations(parts, prepared.base)
    return Subject(parts, training, evaluations, sampling if draws else None, swept=bool(update.labelled))


def _longest(rows: Sequence[TokenRow], config: SFTConfig) -> Batch[Sequence[TokenRow]]:
    """A batch of the longest rows, the very longest first; of all of them again and again where there are too few."""
    ordered = sorted(rows, key=lambda row: row.total_tokens, reverse=True)
    return supervised(list(islice(cycle(ordered), config.batch_size)), config.micro_batch_size)


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
