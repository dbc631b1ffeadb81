"""A curriculum: the problems of a round drawn by measured difficulty.

What is measured goes by bucket: a row is one by itself, a generated problem belongs to its level. A bucket weighs
``exp(-KL(target || pass rate))``: 1 at the target, nothing where all passed or all failed, and with the target at 1/2
as much as the standard deviation of a pass, which is what methods that compare the samples of a group learn from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from loopwise.config.blocks import CurriculumConfig
from loopwise.errors import ConfigError
from loopwise.runtime import seed_key, uniforms
from loopwise.tasks.base import Streams
from loopwise.types import Problem


class PassRate(NamedTuple):
    """How many of ``judged`` samples passed, in the round ``round``."""

    round: int
    passed: int
    judged: int

    @property
    def share(self) -> float:
        """The pass rate, 0 to 1."""
        return self.passed / self.judged


class Drawn(NamedTuple):
    """The problems of a round, and what the curriculum says of them in figures."""

    problems: list[Problem]
    metrics: dict[str, float]


def bucket_of(problem_id: str, levels: Sequence[str]) -> str:
    """The bucket of a problem: its level where a task has several, else itself."""
    # Levels are named by their options, and these may hold a slash.
    return max((level for level in levels if problem_id.startswith(f"{level}/")), key=len, default=problem_id)


def bucket_rates(groups: Mapping[str, tuple[int, int, int]], levels: Sequence[str]) -> dict[str, PassRate]:
    """The pass rates of buckets from those of problems (by id): all groups of the last round that drew the bucket.

    A bucket of which nothing could be judged has none.
    """
    rates: dict[str, PassRate] = {}
    for problem_id, group in groups.items():
        round, passed, judged = group
        bucket = bucket_of(problem_id, levels)
        known = rates.get(bucket, PassRate(0, 0, 0))
        if judged and round > known.round:
            rates[bucket] = PassRate(*group)
        elif judged and round == known.round:
            rates[bucket] = PassRate(round, known.passed + passed, known.judged + judged)
    return rates


def weight(rate: PassRate | None, target: float) -> float:
    """How much a bucket is drawn, 0 to 1. One without a measured rate counts as one at the target."""
    if rate is None:
        return 1.0
    passes, fails = rate.share, 1.0 - rate.share
    if not passes or not fails:
        return 0.0
    return math.exp(target * math.log(passes / target) + (1 - target) * math.log(fails / (1 - target)))


def check_curriculum(streams: Streams) -> None:
    """Refuse problems of which none is met twice. Raises ConfigError."""
    if not streams.rows and not streams.levels:
        raise ConfigError(
            'key "curriculum": the problems of this task are new in every round and of one difficulty, so there is '
            "nothing to choose by. Give it levels, such as data.task_options.levels: [{digits: 2}, {digits: 3}], or "
            "remove the key."
        )


def draw_round(
    streams: Streams,
    count: int,
    seed: int,
    round: int,
    groups: Mapping[str, tuple[int, int, int]],
    config: CurriculumConfig,
) -> Drawn:
    """``count`` problems for a round (from 1): a pure function of its arguments.

    ``groups`` are the pass rates of problems by id (round, passed, judged), each of the last round that drew it.
    ``config.revisit`` of the problems are drawn whatever their rates, the rest by ``weight``. Where too few have any
    weight, the round is smaller, but never empty.
    """
    rates = bucket_rates(groups, streams.levels)
    if streams.draw_level is not None:
        return _draw_levels(streams.levels, streams.draw_level, count, round, rates, config)
    return _draw_rows(streams, count, seed, round, rates, config)


def _draw_rows(
    streams: Streams, count: int, seed: int, round: int, rates: Mapping[str, PassRate], config: CurriculumConfig
) -> Drawn:
    rows = streams.rows
    count = min(count, len(rows))
    # Rounds walk on through all rows, so that each is seen again in the end.
    revisited = max(1, _rounded(count * config.revisit)) if config.revisit else 0
    chosen = list(streams.draw(round, revisited)) if revisited else []
    ids = {problem.id for problem in chosen}
    weights = np.array([weight(rates.get(problem.id), config.target) for problem in rows])
    keys = np.array([seed_key("curriculum", seed, round, problem.id) for problem in rows], dtype=np.uint64)
    # Weighted sampling without replacement: the largest u^(1/w) (Efraimidis and Spirakis 2006), as logarithms.
    with np.errstate(divide="ignore"):
        ranks = np.log(uniforms(keys, 0)) / np.where(weights > 0, weights, np.nan)
    order = [place for place in np.argsort(-ranks, kind="stable").tolist() if not math.isnan(ranks[place])]
    chosen += [rows[place] for place in order if rows[place].id not in ids][: count - len(chosen)]
    if not chosen:
        chosen = list(streams.draw(round, 1))
    return Drawn(chosen, _metrics(chosen, (), rates, int((weights == 0).sum())))


def _draw_levels(
    levels: Sequence[str],
    draw_level: Callable[[str, int, int], Sequence[Problem]],
    count: int,
    round: int,
    rates: Mapping[str, PassRate],
    config: CurriculumConfig,
) -> Drawn:
    weights = [weight(rates.get(level), config.target) for level in levels]
    even = [1.0] * len(levels)
    revisited = max(1, _rounded(count * config.revisit)) if config.revisit or not any(weights) else 0
    counts = np.array(apportion(revisited, even)) + np.array(apportion(count - revisited, weights))
    chosen = [
        problem
        for level, own in zip(levels, counts.tolist(), strict=True)
        if own
        for problem in draw_level(level, round, own)
    ]
    return Drawn(chosen, _metrics(chosen, levels, rates, weights.count(0.0)))


def apportion(count: int, weights: Sequence[float]) -> list[int]:
    """``count`` shared out by ``weights`` in whole numbers, by largest remainders; zeros where no weight is above 0.

    >>> apportion(10, [1.0, 1.0, 0.5])
    [4, 4, 2]
    """
    total = math.fsum(weights)
    if not total:
        return [0] * len(weights)
    shares = [count * weight / total for weight in weights]
    counts = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(weights)), key=lambda place: (counts[place] - shares[place], place))
    for place in by_remainder[: count - sum(counts)]:
        counts[place] += 1
    return counts


def _rounded(number: float) -> int:
    return math.floor(number + 0.5)


def _metrics(
    chosen: Sequence[Problem], levels: Sequence[str], rates: Mapping[str, PassRate], skipped: int
) -> dict[str, float]:
    """Mean difficulty (measured share of failures) of what was drawn, buckets left out, and each level's share."""
    buckets = [bucket_of(problem.id, levels) for problem in chosen]
    measured = [1.0 - rates[bucket].share for bucket in buckets if bucket in rates]
    metrics = {"curriculum/skipped": float(skipped)}
    if measured:
        metrics["curriculum/difficulty"] = math.fsum(measured) / len(measured)
    return metrics | {f"curriculum/share/{level}": buckets.count(level) / len(buckets) for level in levels if buckets}
