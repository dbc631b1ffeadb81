"""Feedback on several lots of samples as one, and on some of them alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from loopwise.evaluate.groups import joined
from loopwise.feedback import joined_feedback, joined_metrics
from loopwise.runs.packing import Act, Judged, merge_feedback
from loopwise.types import Feedback, Preference, Problem, Sample, Scored

nan = float("nan")


def feedback(rewards: list[float], part: str = "r", weight: float = 1.0, **changes: Any) -> Feedback:
    table = np.array(rewards, dtype=np.float64)[:, None]
    return Feedback((part,), (weight,), table, ~np.isnan(table), **changes)


def sample(number: int) -> Sample:
    return Sample(f"s{number}", "p", 0, number, "policy", "", "stop")


def test_lots_are_joined_and_reordered_alike_in_every_field() -> None:
    first = feedback([1, 2], preferences=(Preference(0, 1),), critiques=("a", "b"), extra=({"x": 1}, {"x": 2}))
    second = feedback([3, nan, 5], preferences=(Preference(2, 0, 0.5),), edits=("e", None, "f"))
    merged = joined_feedback([first, second]).at([4, 0, 3, 1, 2])
    assert merged.rewards[:, 0].tolist() == pytest.approx([5, 1, nan, 2, 3], nan_ok=True)
    assert merged.mask[:, 0].tolist() == [True, True, False, True, True]
    assert merged.critiques == (None, "a", None, "b", None)
    assert merged.edits == ("f", None, None, None, "e")
    assert merged.extra == ({}, {"x": 1}, {}, {"x": 2}, {})
    assert merged.preferences == (Preference(1, 3), Preference(0, 4, 0.5))


def test_some_samples_keep_all_that_was_said_about_them() -> None:
    pairs = (Preference(2, 0), Preference(1, 2, 0.5))
    said = feedback(
        [1, 2, 3], preferences=pairs, critiques=("a", None, "c"), edits=("x", "y", "z"), metrics={"vote_share": 0.5}
    )
    some = said.at([2, 0])
    assert some.totals.tolist() == [3, 1]
    assert (some.critiques, some.edits, some.extra) == (("c", "a"), ("z", "x"), ())
    assert some.preferences == (Preference(0, 1),)
    assert some.metrics == {"vote_share": 0.5}
    none = said.at([])
    assert (none.rewards.shape, none.critiques, none.preferences) == ((0, 1), (), ())


def test_joining_nothing() -> None:
    nothing = joined_feedback([])
    assert (nothing.rewards.shape, nothing.mask.dtype, nothing.critiques, nothing.extra) == ((0, 0), bool, None, ())
    assert joined_feedback([Feedback.empty(2)]).rewards.shape == (2, 0)


def test_a_part_that_one_lot_has_is_masked_in_the_others() -> None:
    both = joined_feedback([feedback([1, nan]), Feedback.empty(1), feedback([3], "other", 0.5)])
    assert (both.parts, both.weights) == (("r", "other"), (1.0, 0.5))
    assert both.mask.tolist() == [[True, False], [False, False], [False, False], [False, True]]
    assert both.totals.tolist() == pytest.approx([1, nan, nan, 1.5], nan_ok=True)


def test_a_part_has_one_weight() -> None:
    with pytest.raises(ValueError, match=r'part "r" weighs 1 in one lot of samples and 0\.5'):
        joined_feedback([feedback([1]), feedback([1], weight=0.5)])


def test_what_stands_under_a_mask_is_lost_as_it_is_in_the_journal() -> None:
    said = Feedback(("r",), (1.0,), np.array([[1.0], [0.0]]), np.array([[True], [False]]))
    assert joined_feedback([said]).rewards[:, 0].tolist() == pytest.approx([1, nan], nan_ok=True)


def test_metrics_of_several_lots_are_those_of_all_their_samples() -> None:
    lots = [(256, {"vote_share": 0.5, "failed/vote": 3.0}), (8, {"vote_share": 1.0, "failed/vote": 1.0, "own": 2.0})]
    assert joined_metrics(lots) == {"failed/vote": 4.0, "own": 2.0, "vote_share": pytest.approx((128 + 8) / 264)}
    assert joined_metrics([(3, {"share": 0.1}), (7, {"share": 0.1})]) == {"share": 0.1}
    assert joined_metrics([]) == {}


def test_units_rollouts_and_the_journal_tell_the_same_metrics() -> None:
    lots = [
        feedback([1.0] * 5, metrics={"vote_share": 0.3, "failed/vote": 2.0}),
        feedback([1.0], metrics={"vote_share": 0.8, "failed/vote": 1.0}),
    ]
    samples = [sample(number) for number in range(6)]
    problem = Problem("p", "")
    rollouts = [Scored((problem,), tuple(samples[:5]), lots[0]), Scored((problem,), tuple(samples[5:]), lots[1])]
    acts = {number: Act(lot.parts, lot.weights, lot.metrics) for number, lot in enumerate(lots)}
    rows = {one.id: Judged(one.id, int(one.index == 5), {"r": 1.0}, {}) for one in samples}
    read = merge_feedback(samples, rows, acts, ())
    assert read.metrics == joined_feedback(lots).metrics == joined(rollouts).feedback.metrics
    assert read.metrics == {"failed/vote": 3.0, "vote_share": pytest.approx((5 * 0.3 + 0.8) / 6)}
