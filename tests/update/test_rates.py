"""The learning-rate sweep: what is read off a curve, and whether the rate it suggests trains better than others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from loopwise.config.blocks import OptimizerConfig
from loopwise.config.methods import PretrainConfig
from loopwise.data.windows import frame, pack
from loopwise.models.policy import Policy, Weights
from loopwise.runtime import Runtime
from loopwise.update.learner import Learner
from loopwise.update.pretrain import Pretrain
from loopwise.update.rates import FAR_OFF, first_factor, rates, read_sweep, scaled, sweep_rates

FACTORS = 10.0 ** (np.arange(60) / 10 - 3)
NOISE = np.random.Generator(np.random.Philox(key=0)).normal(0, 0.01, 61)


def curve(lowest: float, depth: float = 2.0, rise: float = 10.0) -> np.ndarray:
    """Losses that begin at 4, fall by ``depth`` over the decade before the factor ``lowest``, and rise after it."""
    logs = np.log10(np.concatenate([[FACTORS[0]], FACTORS]) / lowest)
    return 4.0 - depth * np.clip(logs + 1, 0, 1) + rise * np.clip(logs, 0, None) + NOISE


def test_a_curve_with_a_valley() -> None:
    sweep = read_sweep(FACTORS, curve(lowest=3.0))
    assert 1.0 <= sweep.suggested < 2.0  # the descent goes from 0.3 to 3, four fifths of it to 1.9
    assert sweep.steepest is not None
    assert 0.3 < sweep.steepest < 3.0
    assert sweep.largest is not None
    assert 3.0 <= sweep.largest < 10.0
    assert sweep.warning is None
    assert len(sweep.losses) == len(sweep.smoothed) == len(FACTORS)


@pytest.mark.parametrize(
    ("lowest", "rise", "says"),
    [
        (60.0, 10.0, "times below the suggested rate"),
        (0.15, 0.5, "times above the suggested rate"),
        (0.02, 10.0, "training diverged at this rate"),
    ],
)
def test_a_recipe_far_off(lowest: float, rise: float, says: str) -> None:
    warning = read_sweep(FACTORS, curve(lowest, rise=rise)).warning
    assert warning is not None
    assert warning.endswith(says)
    if "times" in says:
        assert 5 <= float(warning.split()[0]) <= 50


def test_a_rate_a_little_off_is_nobody_s_business() -> None:
    sweep = read_sweep(FACTORS, curve(lowest=5.0))
    assert sweep.suggested is not None
    assert 1.5 < sweep.suggested < FAR_OFF
    assert sweep.warning is None


def test_a_model_that_has_nothing_to_learn() -> None:
    sweep = read_sweep(FACTORS, curve(lowest=3.0, depth=0.0))
    assert sweep.steepest is None
    assert sweep.suggested is None
    assert sweep.largest is not None
    assert sweep.warning is None


def test_noise_is_no_descent() -> None:
    sweep = read_sweep(FACTORS, 4.0 + 20 * NOISE)
    assert (sweep.steepest, sweep.largest, sweep.suggested, sweep.warning) == (None, None, None, None)


@pytest.mark.parametrize("finite", [0, 1, 2, 3, 40])
def test_a_model_that_breaks(finite: int) -> None:
    losses = np.append(curve(lowest=3.0)[:finite], np.nan)
    sweep = read_sweep(FACTORS, losses)
    assert len(sweep.factors) == len(sweep.losses) == max(0, finite - 1)
    assert np.isfinite(sweep.smoothed).all()
    if finite:
        assert sweep.largest is not None
        assert sweep.largest <= FACTORS[max(finite - 2, 0)]


def test_both_rates_of_muon_grow_by_one_factor() -> None:
    config = OptimizerConfig(name="muon", lr=1e-3, matrix_lr=0.1, schedule="cosine", warmup_steps=9)
    assert rates(config, 2.0) == {"lr": 2e-3, "matrix_lr": 0.2}
    assert first_factor(config) == 1e-4  # of matrix_lr, which is the further of the two from where a sweep begins
    half = scaled(config, 0.5)
    assert (half.lr, half.matrix_lr, half.schedule, half.warmup_steps) == (5e-4, 0.05, "constant", 0)
    assert rates(OptimizerConfig(lr=1e-3)) == {"lr": 1e-3}


@pytest.fixture(scope="module")
def walks() -> Pretrain:
    """Windows of a text in which a token nearly always follows from the one before."""
    generator = np.random.Generator(np.random.Philox(key=0))
    text = [0]
    for jump, anywhere in zip(generator.random(6000) < 0.1, generator.integers(37, size=6000), strict=True):
        text.append(int(anywhere) if jump else (3 * text[-1] + 1) % 37)
    return Pretrain(PretrainConfig(batch_size=4, window=24), (pack([frame(text, None)], 24),), (1.0,), 1)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_suggestion_trains_better_than_rates_far_from_it(
    name: str, walks: Pretrain, make_policy: Callable[..., Policy], runtime: Runtime
) -> None:
    policy = make_policy(initializer_range=0.02)
    before = policy.weights.id
    config = OptimizerConfig(name=name, lr=1e-5, matrix_lr=1e-4)

    batch = partial(walks.batch, 0)
    first, again = (sweep_rates(policy.trainable_module(), config, runtime, batch, 60) for _ in range(2))
    np.testing.assert_array_equal(first.losses, again.losses)
    assert first.suggested is not None
    assert first.warning is not None

    def last_loss(factor: float) -> float:
        learner = Learner(policy.trainable_module(), scaled(config, factor), runtime, 60)
        work = [walks.batch(0, 100 + step) for step in range(60)]
        found = [learner.step(batch.micro_batches, batch.loss)["loss"] for batch in work]
        return float(np.mean(found[-10:]))

    losses = slow, right, fast = tuple(last_loss(first.suggested * times) for times in (1 / 30, 1, 30))
    assert right < 0.5 * min(slow, fast), losses
    assert Weights(policy.weights.module).id == before
