"""Statistics of groups: what makes reward hacking and collapse visible next to the reward."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from loopwise.evaluate.stats import pass_at_k
from loopwise.feedback import joined_feedback
from loopwise.types import REWARD_ROUNDING, Sample, Scored


def group_members(samples: Sequence[Sample]) -> list[list[int]]:
    """The positions of each problem's samples, problem after problem."""
    ordered = sorted(range(len(samples)), key=lambda place: (samples[place].group, place))
    return [list(members) for _, members in groupby(ordered, key=lambda place: samples[place].group)]


def group_means(groups: Iterable[Sequence[int]], totals: np.ndarray) -> np.ndarray:
    """The mean total of P groups of positions in ``totals`` ``[S]``: float64 ``[P]``, NaN where none was judged."""
    means = []
    for members in groups:
        values = totals[list(members)]
        judged = values[~np.isnan(values)]
        means.append(float(judged.mean()) if judged.size else math.nan)
    return np.array(means, dtype=np.float64)


def joined(rollouts: Sequence[Scored]) -> Scored:
    """Several rollouts as one, so that a figure covers all their samples; the groups of each follow those before it.

    A part that only some rollouts were judged by is masked in the others. Raises ValueError where two rollouts give a
    part different weights.
    """
    samples: list[Sample] = []
    first_group = 0
    for one in rollouts:
        samples.extend(replace(sample, group=sample.group + first_group) for sample in one.samples)
        first_group += len(one.problems)
    problems = tuple(problem for one in rollouts for problem in one.problems)
    return Scored(problems, tuple(samples), joined_feedback([one.feedback for one in rollouts]))


def group_metrics(scored: Scored, threshold: float = 1.0, k: int | None = None) -> dict[str, float]:
    """The figures of a rollout's groups; one that cannot be taken is left out.

    A sample passes with a total reward of at least ``threshold``; one that could not be judged leaves its group's n,
    being neither a pass nor a miss. ``k`` is the size of the largest group unless given.

    - ``pass_at_1``, ``pass_at_k``: means over groups; ``groups_below_k`` groups had fewer than ``k`` judged samples
      and are left out of the second
    - ``distinct``: mean share of different texts in a group
    - ``completions/mean_length`` in tokens, or ``completions/mean_characters`` where the generator gives no ids
    - ``completions/clipped_ratio``: share cut off at the token limit; ``entropy``: nats a token
    """
    groups = [members for _, members in scored.groups() if members]
    totals, samples = scored.feedback.totals, scored.samples
    k = max(map(len, groups), default=1) if k is None else k
    judged = [totals[members][~np.isnan(totals[members])] for members in groups]
    counts = [(values.size, int((values >= threshold - REWARD_ROUNDING).sum())) for values in judged]
    if any(sample.token_ids for sample in samples):
        length, lengths = "completions/mean_length", [len(sample.token_ids) for sample in samples]
    else:
        length, lengths = "completions/mean_characters", [len(sample.text) for sample in samples]
    figures = {
        "k": [k],
        "pass_at_1": [c / n for n, c in counts if n],
        "pass_at_k": [pass_at_k(n, c, k) for n, c in counts if n >= k],
        "groups_below_k": [sum(n < k for n, _ in counts)],
        "distinct": [_distinct([samples[position] for position in members]) for members in groups],
        length: lengths,
        "completions/clipped_ratio": [sample.finish_reason == "length" for sample in samples],
        "entropy": [sample.stats["entropy"] for sample in samples if "entropy" in sample.stats],
    }
    return {name: math.fsum(values) / len(values) for name, values in figures.items() if values}


def _distinct(samples: Sequence[Sample]) -> float:
    return len({sample.text.strip() for sample in samples}) / len(samples)
