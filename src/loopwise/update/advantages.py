"""Advantages: how much better a sample scored than what it is compared with. NumPy in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from loopwise.types import REWARD_ROUNDING

Baseline = Literal["none", "batch", "group", "leave_one_out"]
Scale = Literal["none", "group", "batch"]

# Added to a standard deviation that divides, by TRL's value.
_LEAST_DEVIATION = 1e-4


@dataclass(frozen=True)
class Advantages:
    """``values`` float64 ``[S]``, 0 where not judged; ``judged`` bool ``[S]``; ``tied`` bool, one a group.

    Groups stand in the order of their numbers. One is tied where it has two judged samples or more, all of one reward:
    next to each other they teach nothing.
    """

    values: np.ndarray
    judged: np.ndarray
    tied: np.ndarray


def advantages(
    rewards: np.ndarray,
    groups: Sequence[int] | np.ndarray,
    baseline: Baseline | float,
    scale: Scale = "none",
    penalties: np.ndarray | float = 0.0,
) -> Advantages:
    """Advantages of S samples: reward less ``baseline``, divided by a standard deviation.

    ``rewards`` ``[S]`` has NaN where a sample could not be judged: such samples count in no mean and get 0. ``groups``
    ``[S]`` numbers the samples of one problem alike. They are of the whole batch, before it is cut.

    - ``group`` with scale ``group``: GRPO (Shao et al. 2024, section 4.1.2); with scale ``none``: Dr. GRPO (Liu et al.
      2025, section 3). Divided by ``std + 1e-4``, std over n - 1, as TRL does.
    - ``leave_one_out``: RLOO (Kool et al. 2019; Ahmadian et al. 2024), less the mean of the group's other judged
      samples. A sample that is alone in its group has nothing to be compared with and gets 0.
    - ``batch``, ``none`` or a number, as the mean of a ``RunningMean`` from before this batch: REINFORCE (Williams
      1992).

    Scale ``batch`` divides by the standard deviation of the batch's rewards. Rewards that do not differ have no scale:
    they are divided by 1, and by 1 where one sample alone was judged.

    ``penalties`` ``[S]`` are taken off the rewards before the baseline is. Ties and deviations stay those of the
    rewards, so that equal rewards do not make a scale of small penalties.
    """
    given = np.asarray(rewards, dtype=np.float64)
    judged = ~np.isnan(given)
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    one, net = np.zeros_like(group), given - penalties
    within, whole = _compare(given, group, len(names)), _compare(given, one, 1)
    if baseline == "group":
        values = _centred(net, group, len(names))
    elif baseline == "leave_one_out":
        # r - (n mean - r) / (n - 1) is this, without the cancellation of two large sums.
        values = _centred(net, group, len(names)) * within.size / np.maximum(within.size - 1, 1)
    elif baseline == "batch":
        values = _centred(net, one, 1)
    else:
        values = net - (0.0 if baseline == "none" else baseline)
    if scale != "none":
        values = values / (within if scale == "group" else whole).divisor
    tied = np.zeros(len(names), dtype=bool)
    tied[group] = within.tied
    return Advantages(np.where(judged, values, 0.0), judged, tied)


@dataclass(frozen=True)
class RunningMean:
    """The mean reward of the batches so far, a baseline that owes nothing to the batch it is taken off.

    ``count`` rewards went in. It is the mean of all of them until a batch is less than ``1 - decay`` of them; from then
    on each batch moves it that share of the way, so that it follows a policy that improves. With ``decay`` 1 it never
    forgets. Before the first batch it is 0. ``dataclasses.asdict`` saves it, ``RunningMean(**saved)`` restores it.
    """

    mean: float = 0.0
    count: int = 0
    decay: float = 0.9

    def updated(self, rewards: np.ndarray) -> RunningMean:
        """With a batch's rewards ``[S]``; NaN ones, which could not be judged, leave it as it is."""
        judged = rewards[~np.isnan(rewards)]
        if not judged.size:
            return self
        count = self.count + judged.size
        step = max(judged.size / count, 1 - self.decay)
        return replace(self, mean=self.mean + step * (float(judged.mean()) - self.mean), count=count)


class _Compared(NamedTuple):
    """Each sample ``[S]`` beside its group: the group's judged samples, its divisor, whether it is tied."""

    size: np.ndarray
    divisor: np.ndarray
    tied: np.ndarray


def _compare(rewards: np.ndarray, group: np.ndarray, groups: int) -> _Compared:
    judged = ~np.isnan(rewards)
    count = np.bincount(group[judged], minlength=groups)
    lowest, highest = np.full(groups, np.inf), np.full(groups, -np.inf)
    np.minimum.at(lowest, group[judged], rewards[judged])
    np.maximum.at(highest, group[judged], rewards[judged])
    squares = np.bincount(group, np.where(judged, _centred(rewards, group, groups), 0.0) ** 2, groups)
    deviation = np.sqrt(squares / np.maximum(count - 1, 1))
    differ = highest - lowest > REWARD_ROUNDING
    divisor = np.where(differ, deviation + _LEAST_DEVIATION, 1.0)
    tied = (count > 1) & ~differ
    return _Compared(count[group], divisor[group], tied[group])


def _centred(rewards: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    """Rewards ``[S]`` less the mean of their group's judged ones."""
    judged = ~np.isnan(rewards)
    lowest = np.full(groups, np.inf)
    np.minimum.at(lowest, group[judged], rewards[judged])
    # Above the lowest first: equal rewards then have an advantage of exactly 0.
    above = np.where(judged, rewards - lowest[group], 0.0)
    mean = np.bincount(group, above, groups) / np.maximum(np.bincount(group[judged], minlength=groups), 1)
    return np.asarray(above - mean[group])
