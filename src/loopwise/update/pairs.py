"""Learning from better and worse completions: of a round's own samples, or as labelled rows hold them.

Which losses there are, comparisons.py says. Self-Rewarding (Yuan et al. 2024) is DPO here with a judge for a reward;
left out is its growing set of prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from loopwise.config.methods import PairsConfig, RRHFConfig, SFTConfig, SPINConfig, reference_of
from loopwise.data.batches import batch_indices
from loopwise.errors import ConfigError, DataError
from loopwise.models.chat import end_of_turn_id
from loopwise.models.policy import Policy
from loopwise.runtime import seed_key
from loopwise.types import REWARD_ROUNDING, Budget, Completion, Context, Problem, Rollout, Sample, Scored, Updated
from loopwise.update.comparisons import ComparingConfig, Comparison, Unit, compared
from loopwise.update.fitting import Batch, flops_without_gradient, train_round
from loopwise.update.reference import Reference
from loopwise.update.rows import Encoding, encode_fitting_rows, encode_labelled, sample_rows
from loopwise.update.sft import drawn


@dataclass(frozen=True)
class Pairs:
    """A round compares ``samples`` samples of each problem, and takes ``config.steps`` steps on the pairs they make.

    Epochs of the round's pairs (of RRHF, of its problems) are walked back to back. ``gold`` gives a problem's labelled
    completion, which SPIN prefers to the samples. ``rounds`` is the run's number of rounds: the schedule spans them
    all. Where no samples differ, the round changes nothing.
    """

    config: ComparingConfig
    samples: int
    rounds: int
    gold: Callable[[Problem], Completion] | None = None

    @property
    def needs(self) -> frozenset[str]:
        """A reference where there is one that is not the module itself."""
        return frozenset({"weights", "text"}) | _needed(self.config)

    def __call__(
        self, policy: Policy, state: Any, problems: Sequence[Problem], rollout: Rollout, context: Context
    ) -> Updated:
        found = self._found(policy, rollout(policy, problems, self.samples))
        context.keep(found.chosen)
        count = len(found.comparisons)
        metrics = {"pairs": float(count)}
        if not count:
            return Updated(policy, state, metrics)
        reference = reference_for(self.config, context)
        key = seed_key("pairs", context.seed, context.round)

        def batch(seed: int, step: int) -> Batch[Unit]:
            places = batch_indices(count, self.config.batch_size, key, step % self.config.steps)
            chosen = [found.comparisons[place] for place in places.tolist()]
            return _booked(compared(chosen, self.config, reference), reference, policy, context)

        updated = train_round(policy, state, context, self.config, self.rounds, batch)
        return updated._replace(metrics={**metrics, **updated.metrics})

    def _found(self, policy: Policy, scored: Scored) -> Found:
        if not isinstance(self.config, SPINConfig):
            return compare(policy, scored, self.config)
        if self.gold is None:
            raise ConfigError('key "update.method": spin prefers labelled completions, and there are none.')
        return compare_with_gold(policy, scored, self.config, self.gold)


@dataclass(frozen=True)
class LabelledPairs:
    """``config.steps`` optimizer steps a round on labelled pairs; all else is as SFT has it."""

    config: ComparingConfig
    labelled: tuple[Comparison, ...]
    rounds: int
    sources: tuple[tuple[int, float], ...] = ()
    changed: Callable[[int, int], Comparison] | None = None

    @property
    def needs(self) -> frozenset[str]:
        """A reference where there is one that is not the module itself."""
        return frozenset({"weights"}) | _needed(self.config)

    def __call__(
        self, policy: Policy, state: Any, problems: Sequence[Problem], rollout: Rollout, context: Context
    ) -> Updated:
        reference = reference_for(self.config, context)

        def batch(seed: int, step: int) -> Batch[Unit]:
            return _booked(self.batch(seed, step, reference), reference, policy, context)

        return train_round(policy, state, context, self.config, self.rounds, batch)

    def batch(self, seed: int, step: int, reference: Reference | None) -> Batch[Unit]:
        """The pairs of optimizer step ``step`` of the run, counted from 0."""
        chosen = drawn(self.labelled, self.sources, self.changed, self.config.batch_size, seed, step)
        return compared(chosen, self.config, reference)

    def longest(self, reference: Reference | None) -> Batch[Unit]:
        """A batch of the longest pairs, the heaviest there can be."""
        ordered = sorted(self.labelled, key=lambda one: -sum(row.total_tokens for row in one.rows))
        chosen = [ordered[place % len(ordered)] for place in range(self.config.batch_size)]
        return compared(chosen, self.config, reference)


@dataclass(frozen=True)
class Found:
    """What a rollout's samples give to compare, and the ids of those that are chosen."""

    comparisons: tuple[Comparison, ...]
    chosen: tuple[str, ...]


@dataclass(frozen=True)
class Pick:
    """Samples of one problem (positions in the rollout), the best first."""

    places: tuple[int, ...]
    rewards: tuple[float, ...] = ()
    weight: float = 1.0


def compare(policy: Policy, scored: Scored, config: ComparingConfig) -> Found:
    """What ``picked`` compares of a rollout, as rows to read."""
    picks = picked(scored, config)
    places = list(dict.fromkeys(place for pick in picks for place in pick.places))
    samples = [scored.samples[place] for place in places]
    encoded = sample_rows(policy, samples, [scored.problems[sample.group] for sample in samples])
    rows = dict(zip(places, encoded, strict=True))
    comparisons = [Comparison(tuple(rows[n] for n in pick.places), pick.rewards, pick.weight) for pick in picks]
    best = dict.fromkeys(scored.samples[pick.places[0]].id for pick in picks)
    return Found(tuple(comparisons), tuple(best))


def picked(scored: Scored, config: PairsConfig) -> list[Pick]:
    """Which samples of a rollout are compared: pairs, or for RRHF all of a problem's.

    Pairs differ in their completions, and by more than ``config.pairs.least_gap`` in total reward; samples that could
    not be judged are in none. Where a pairwise judge compared a problem's samples, its word is taken instead.
    """
    preferred: dict[int, list[Pick]] = {}
    for pair in scored.feedback.preferences:
        chosen, rejected = scored.samples[pair.chosen], scored.samples[pair.rejected]
        own = preferred.setdefault(chosen.group, [])
        if _content(chosen) != _content(rejected):
            own.append(Pick((pair.chosen, pair.rejected), weight=pair.weight))
    picks: list[Pick] = []
    for group, (_, members) in enumerate(scored.groups()):
        ranks = isinstance(config, RRHFConfig) or group not in preferred
        picks += _picks(scored, members, config) if ranks else preferred[group]
    return picks


def compare_with_gold(
    policy: Policy, scored: Scored, config: SPINConfig, gold: Callable[[Problem], Completion]
) -> Found:
    """SPIN's pairs: each problem's labelled completion, and every distinct sample of it that is another one.

    Labelled completions are tokenised as fine-tuning does it; a problem whose own is left out has no pairs.
    """
    problems = scored.problems
    encoded, encoding = encode_fitting_rows(policy, problems, [gold(problem) for problem in problems], config)
    chosen = dict(zip(encoding.places, encoded, strict=True))
    comparisons: list[Comparison] = []
    for group, (problem, members) in enumerate(scored.groups()):
        if group not in chosen:
            continue
        seen = {tuple(chosen[group].token_ids)}
        for row in sample_rows(policy, [scored.samples[place] for place in members], [problem] * len(members)):
            if tuple(row.token_ids) not in seen:
                seen.add(tuple(row.token_ids))
                comparisons.append(Comparison((chosen[group], row)))
    return Found(tuple(comparisons), ())


def encode_pairs(
    policy: Policy,
    problems: Sequence[Problem],
    chosen: Sequence[Completion],
    rejected: Sequence[Completion],
    config: SFTConfig,
) -> tuple[tuple[Comparison, ...], Encoding]:
    """Labelled pairs, in order, and what became of them: counts of pairs, and of the tokens of both their sides.

    Each side is encoded as ``encode_labelled`` does it, and raises what that does; a pair is left out where either is.
    DataError, too, where there are pairs and none is left.
    """
    sides = [encode_labelled(policy, problems, completions, config) for completions in (chosen, rejected)]
    rows = [dict(zip(encoding.places, encoded, strict=True)) for encoded, encoding in sides]
    kept = [place for place in rows[0] if place in rows[1]]
    if problems and not kept:
        raise DataError(
            f"labelled rows: none of {len(problems)} is left, because each has a side that is too long or empty. "
            "Mend them, or raise update.max_length."
        )
    pairs = tuple(Comparison((rows[0][place], rows[1][place])) for place in kept)
    cut = set[int]()
    for completions, (_, encoding) in zip((chosen, rejected), sides, strict=True):
        if encoding.truncated:
            whole = config.model_copy(update={"too_long": "drop"})
            cut |= set(encoding.places) - set(encode_fitting_rows(policy, problems, completions, whole)[1].places)
    ends = {*policy.end_ids, end_of_turn_id(policy)}
    both = [row for pair in pairs for row in pair.rows]
    return pairs, Encoding(
        places=tuple(kept),
        rows=len(pairs),
        dropped=len(problems) - len(pairs),
        truncated=len(cut & set(kept)),
        without_end_of_text=sum(any(row.token_ids[-1] not in ends for row in pair.rows) for pair in pairs),
        tokens=sum(row.total_tokens for row in both),
        trained_tokens=sum(row.trained_tokens for row in both),
    )


def reference_for(config: ComparingConfig, context: Context) -> Reference | None:
    """The reference that a method compares with; None where it has none. Raises ConfigError where the run has none."""
    name = reference_of(config)
    return Reference.of(name, context.reference) if name else None


def _needed(config: ComparingConfig) -> frozenset[str]:
    return frozenset() if reference_of(config) in (None, "adapters_off") else frozenset({"reference"})


def _booked(work: Batch[Unit], reference: Reference | None, policy: Policy, context: Context) -> Batch[Unit]:
    """The batch, once the reference's forward passes over it are booked."""
    if reference is not None and policy.weights is not None:
        context.spend(Budget(flops=flops_without_gradient(policy.weights.module, work.tokens)))
    return work


def _picks(scored: Scored, members: Sequence[int], config: PairsConfig) -> list[Pick]:
    """What the rewards of one problem's samples give to compare. Of equal completions the first counts."""
    totals, distinct = scored.feedback.totals, dict[tuple[int, ...] | str, int]()
    for place in members:
        if not np.isnan(totals[place]):
            distinct.setdefault(_content(scored.samples[place]), place)
    ranked = sorted(distinct.values(), key=lambda place: -float(totals[place]))

    def differ(better: int, worse: int) -> bool:
        return bool(totals[better] - totals[worse] > config.pairs.least_gap + REWARD_ROUNDING)

    if not ranked or not differ(ranked[0], ranked[-1]):
        return []
    if isinstance(config, RRHFConfig):
        return [Pick(tuple(ranked), tuple(float(totals[place]) for place in ranked))]
    if config.pairs.take == "extremes":
        return [Pick((ranked[0], ranked[-1]))]
    return [Pick(pair) for pair in combinations(ranked, 2) if differ(*pair)]


def _content(sample: Sample) -> tuple[int, ...] | str:
    """What tells completions of one problem apart."""
    return sample.token_ids or sample.text
