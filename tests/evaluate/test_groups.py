"""Figures of hand-made rollouts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from loopwise.evaluate.groups import group_metrics, joined
from loopwise.evaluate.rewards import feedback_metrics
from loopwise.types import Scored

Make = Callable[..., Scored]


def test_pass_rates_leave_out_what_was_not_judged(scored: Make) -> None:
    # Judged 1 of 2, 2 of 4 and 0 of 0: pass@1 over two groups, pass@2 = 1 and 1 - C(2,2)/C(4,2) = 5/6.
    figures = group_metrics(scored([[1, 0, None], [1, 1, 0, 0], [None]]), k=2)
    assert figures["pass_at_1"] == 0.5
    assert figures["pass_at_k"] == pytest.approx((1 + 5 / 6) / 2)
    assert (figures["k"], figures["groups_below_k"]) == (2, 1)


def test_k_is_the_largest_group_unless_given(scored: Make) -> None:
    figures = group_metrics(scored([[0, 0, 1, 0], [0, 0, 0, None]]))
    assert (figures["k"], figures["groups_below_k"], figures["pass_at_k"]) == (4, 1, 1)


def test_threshold_forgives_rounding(scored: Make) -> None:
    assert group_metrics(scored([[0.1 + 0.2, 0.29]]), threshold=0.3)["pass_at_1"] == 0.5
    assert group_metrics(scored([[0.7 + 0.2 + 0.1]]))["pass_at_1"] == 1


def test_completion_figures(scored: Make) -> None:
    samples = [
        {"text": "a", "token_ids": (1, 2), "finish_reason": "length", "stats": {"entropy": 1.0}},
        {"text": " a", "token_ids": (1, 2, 3), "stats": {"entropy": 2.0}},
        {"text": "b", "token_ids": (1,)},
        {"text": "c", "token_ids": ()},
    ]
    figures = group_metrics(scored([[1, 1], [1, 1]], samples))
    assert figures["distinct"] == 0.75
    assert figures["completions/mean_length"] == 1.5
    assert figures["completions/clipped_ratio"] == 0.25
    assert figures["entropy"] == 1.5


def test_length_in_characters_without_ids(scored: Make) -> None:
    figures = group_metrics(scored([[1, 1]], [{"text": "abc"}, {"text": "d"}]))
    assert figures["completions/mean_characters"] == 2
    assert "completions/mean_length" not in figures
    assert "entropy" not in figures


def test_empty_rollout(scored: Make) -> None:
    assert group_metrics(scored([])) == {"k": 1, "groups_below_k": 0}
    assert feedback_metrics(scored([])) == {}


def test_joined_rollouts_count_every_sample(scored: Make) -> None:
    first, second = scored([[1, 1], [0, None]]), scored([[0, 0, 0, 0]])
    told = [{"failed/exact": 1.0, "own": 1.0}, {"failed/exact": 2.0, "own": 2.0}]
    rollouts = [
        replace(one, feedback=replace(one.feedback, metrics=said))
        for one, said in zip((first, second), told, strict=True)
    ]
    both = joined(rollouts)
    assert [members for _, members in both.groups()] == [[0, 1], [2, 3], [4, 5, 6, 7]]
    assert feedback_metrics(both)["reward"] == pytest.approx(2 / 7)
    assert group_metrics(both)["pass_at_1"] == pytest.approx(1 / 3)
    assert both.feedback.metrics == {"failed/exact": 3.0, "own": 1.5}


def test_joined_rollouts_keep_the_totals_of_parts_that_only_one_has(scored: Make) -> None:
    first, second = scored([[1, None]]), scored([[3]])
    second = replace(second, feedback=replace(second.feedback, parts=("other",), weights=(0.5,)))
    both = joined([first, second]).feedback
    assert (both.parts, both.weights) == (("exact", "other"), (1.0, 0.5))
    assert both.totals.tolist() == pytest.approx([1.0, float("nan"), 1.5], nan_ok=True)


def test_feedback_metrics(scored: Make) -> None:
    figures = feedback_metrics(scored([[0, 1, None], [1, 1, 1], [None, None, None], [2, None, None]]))
    assert figures["reward"] == pytest.approx(1.0)
    # Standard deviations inside groups: sqrt(1/2), 0 and 0; the group without judged samples counts nowhere.
    assert figures["reward_std"] == pytest.approx(0.5**0.5 / 3)
    assert figures["frac_reward_zero_std"] == pytest.approx(2 / 3)
    assert figures["rewards/exact/mean"] == pytest.approx(1.0)
    assert figures["rewards/exact/std"] == pytest.approx(0.4**0.5)
