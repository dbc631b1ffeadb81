"""Advantages: by hand, against TRL's, and what must not change them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwise.update.advantages import Baseline, RunningMean, Scale, advantages

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "golden" / "losses.json").read_text(encoding="utf-8"))
TRL = GOLDEN["advantages"]
NAN = float("nan")
BASELINES = ["none", "batch", "group", "leave_one_out"]
REWARDS = np.array([1.0, 0.0, NAN, 0.5, 2.0, 2.0])
GROUPS = [0, 0, 0, 0, 7, 7]


@pytest.mark.parametrize(
    ("baseline", "values"),
    [
        ("none", [1.0, 0.0, 0.0, 0.5, 2.0, 2.0]),
        (0.5, [0.5, -0.5, 0.0, 0.0, 1.5, 1.5]),
        ("batch", [-0.1, -1.1, 0.0, -0.6, 0.9, 0.9]),  # the mean of five is 1.1
        ("group", [0.5, -0.5, 0.0, 0.0, 0.0, 0.0]),
        ("leave_one_out", [1 - 0.25, 0 - 0.75, 0.0, 0.5 - 0.5, 0.0, 0.0]),
    ],
)
def test_baselines_by_hand(baseline: Baseline | float, values: list[float]) -> None:
    result = advantages(REWARDS, GROUPS, baseline)
    assert result.values.tolist() == pytest.approx(values)
    assert result.judged.tolist() == [True, True, False, True, True, True]
    assert result.tied.tolist() == [False, True]


def test_scales_by_hand() -> None:
    # Squares off the group's mean 0.25, 0.25, 0 over n - 1 = 2: deviation 0.5. The tied group is divided by 1.
    by_group = advantages(REWARDS, GROUPS, "group", "group").values
    assert by_group.tolist() == pytest.approx([0.5 / 0.5001, -0.5 / 0.5001, 0, 0, 0, 0])
    # Off the batch's mean: 0.01 + 1.21 + 0.36 + 0.81 + 0.81 = 3.2, over 4.
    by_batch = advantages(REWARDS, GROUPS, "batch", "batch").values
    divisor = 0.8**0.5 + 1e-4
    assert by_batch.tolist() == pytest.approx([-0.1 / divisor, -1.1 / divisor, 0, -0.6 / divisor] + [0.9 / divisor] * 2)


def test_penalties_are_taken_off_but_make_neither_ties_nor_scales() -> None:
    rewards, groups = np.array([1.0, 1.0, 0.0, 1.0, NAN]), [0, 0, 1, 1, 1]
    penalties = np.array([0.002, 0.0, 0.0, 0.25, 0.0])
    result = advantages(rewards, groups, "group", "group", penalties)
    assert result.tied.tolist() == [True, False]
    # The tied group is divided by 1, the other by the deviation of 0 and 1.
    expected = np.array([-0.001, 0.001, -0.375 / (0.5**0.5 + 1e-4), 0.375 / (0.5**0.5 + 1e-4), 0.0])
    assert result.values.tolist() == pytest.approx(expected.tolist())
    by_batch = advantages(rewards, groups, "batch", "batch", penalties).values
    mean, divisor = (3 - 0.252) / 4, 0.5 + 1e-4
    assert by_batch.tolist() == pytest.approx([*((rewards - penalties)[:4] - mean) / divisor, 0.0])


@pytest.mark.parametrize("scale", ["none", "group", "batch"])
def test_rewards_without_a_scale_are_not_blown_up(scale: Scale) -> None:
    assert advantages(np.array([3.0, 3.0, NAN]), [0, 0, 1], "none", scale).values.tolist() == [3.0, 3.0, 0.0]
    assert advantages(np.array([3.0, NAN]), [0, 0], 1.0, scale).values.tolist() == [2.0, 0.0]


@pytest.mark.parametrize("baseline", ["batch", "group", "leave_one_out"])
def test_a_sample_alone_has_nothing_to_be_compared_with(baseline: Baseline) -> None:
    result = advantages(np.array([NAN, 0.7, NAN]), [0, 0, 0], baseline)
    assert result.values.tolist() == [0.0, 0.0, 0.0]
    assert result.tied.tolist() == [False]


@pytest.mark.parametrize("baseline", BASELINES)
def test_nothing_judged_and_nothing_at_all(baseline: Baseline) -> None:
    result = advantages(np.array([NAN, NAN]), [0, 0], baseline, "batch")
    assert result.values.tolist() == [0.0, 0.0]
    assert not result.judged.any()
    assert not result.tied.any()
    assert advantages(np.array([]), [], baseline, "group").values.size == 0


def test_sums_of_weights_tie_and_give_exactly_nothing() -> None:
    result = advantages(np.array([0.1 + 0.7 + 0.2, 1.0, 0.1, 0.1, 0.1]), [0, 0, 1, 1, 1], "group", "group")
    assert result.tied.tolist() == [True, True]
    assert result.values[2:].tolist() == [0.0, 0.0, 0.0]
    assert abs(result.values).max() < 1e-12


@pytest.mark.parametrize(
    ("name", "baseline", "scale"),
    [
        ("group, none", "group", "none"),
        ("group, group", "group", "group"),
        ("group, batch", "group", "batch"),
        ("leave_one_out", "leave_one_out", "none"),
    ],
)
def test_trl_has_the_same(name: str, baseline: Baseline, scale: Scale) -> None:
    rewards = np.array(TRL["rewards"], dtype=np.float64)
    result = advantages(rewards, np.arange(len(rewards)) // TRL["group_size"], baseline, scale)
    expected = TRL["outputs"][name]
    assert result.values.tolist() == pytest.approx(expected["advantages"], abs=1e-5)
    if scale != "batch":  # TRL's share is then of the batch's own deviation
        assert result.tied.mean() == expected["tied_share"]


def test_trl_takes_the_same_penalty_off_the_rewards() -> None:
    k1 = np.array(TRL["logps"]) - np.array(TRL["reference_logps"])
    rewards = np.array(TRL["rewards"], dtype=np.float64) - TRL["beta"] * k1.sum(axis=1)
    result = advantages(rewards, np.arange(len(rewards)) // TRL["group_size"], "leave_one_out")
    expected = TRL["outputs"]["leave_one_out with KL"]
    assert result.values.tolist() == pytest.approx(expected["advantages"], abs=1e-5)
    assert k1.mean() == pytest.approx(expected["kl"], abs=1e-5)


samples = st.lists(
    st.tuples(st.one_of(st.just(NAN), st.integers(-8, 8).map(lambda eighths: eighths / 8)), st.integers(0, 3)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(samples=samples, baseline=st.sampled_from(BASELINES), scale=st.sampled_from(["none", "group", "batch"]))
def test_what_must_not_change_advantages(samples: list[tuple[float, int]], baseline: Baseline, scale: Scale) -> None:
    rewards, groups = np.array([reward for reward, _ in samples]), np.array([group for _, group in samples])
    result = advantages(rewards, groups, baseline, scale)
    assert np.isfinite(result.values).all()
    if baseline != "none":
        shifted = advantages(rewards + 5.0, groups, baseline, scale)
        np.testing.assert_allclose(shifted.values, result.values, atol=1e-12)
    order = np.argsort(-groups, kind="stable")
    np.testing.assert_allclose(advantages(rewards[order], groups[order], baseline, scale).values, result.values[order])
    # Samples that could not be judged might as well not be there.
    kept = result.judged
    assert not result.values[~kept].any()
    alone = advantages(rewards[kept], groups[kept], baseline, scale)
    np.testing.assert_allclose(alone.values, result.values[kept], atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(samples=samples)
def test_leaving_one_out_by_its_definition(samples: list[tuple[float, int]]) -> None:
    rewards, groups = np.array([reward for reward, _ in samples]), np.array([group for _, group in samples])
    expected = []
    for place, (reward, group) in enumerate(samples):
        others = np.delete(rewards, place)[np.delete(groups, place) == group]
        others = others[~np.isnan(others)]
        expected.append(reward - others.mean() if others.size and not np.isnan(reward) else 0.0)
    np.testing.assert_allclose(advantages(rewards, groups, "leave_one_out").values, expected, atol=1e-12)


def test_a_running_mean_begins_as_a_mean_and_then_follows() -> None:
    mean = RunningMean(decay=0.75)
    mean = mean.updated(np.array([1.0, 0.0, NAN]))
    assert mean == RunningMean(0.5, 2, 0.75)
    mean = mean.updated(np.array([1.0, 1.0]))  # 2 of 4, more than a quarter: the mean of all
    assert mean == RunningMean(0.75, 4, 0.75)
    mean = mean.updated(np.array([0.0]))  # 1 of 5, less than a quarter: a quarter of the way
    assert mean == RunningMean(0.5625, 5, 0.75)
    assert mean.updated(np.array([NAN])) == mean
    assert RunningMean(**json.loads(json.dumps(asdict(mean)))) == mean


def test_a_running_mean_that_never_forgets() -> None:
    rewards = np.random.Generator(np.random.Philox(key=0)).normal(size=30)
    mean = RunningMean(decay=1.0)
    for batch in np.split(rewards, [3, 4, 20]):
        mean = mean.updated(batch)
    assert mean.mean == pytest.approx(rewards.mean())
