"""Estimators and tests against hand-worked numbers, brute force and simulation."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwise.evaluate.stats import FEW, bootstrap, difference, holm, mean_interval, paired, pass_at_k, wilson


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_equals_all_combinations(case: tuple[int, int, int]) -> None:
    n, c, k = case
    draws = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


def test_pass_at_k_of_many() -> None:
    assert pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5, abs=1e-9)
    assert pass_at_k(8, 0, 8) == 0.0


@pytest.mark.parametrize(("n", "c", "k"), [(3, 1, 4), (3, 4, 1), (3, -1, 1), (3, 1, 0)])
def test_pass_at_k_refuses(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="expected 1 <= k <= n"):
        pass_at_k(n, c, k)


def test_wilson() -> None:
    assert wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert wilson(0, 10) == (0.0, pytest.approx(0.277533, abs=1e-6))
    assert wilson(10, 10) == (pytest.approx(0.722467, abs=1e-6), 1.0)
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="expected 0 <= successes <= n"):
        wilson(3, 2)


def test_bootstrap() -> None:
    values = np.random.default_rng(1).normal(2.0, 1.0, 400)
    low, high = bootstrap(values)
    # The normal interval of a mean of 400 unit normals is 0.098 to either side.
    assert low == pytest.approx(values.mean() - 0.098, abs=0.015)
    assert high == pytest.approx(values.mean() + 0.098, abs=0.015)
    assert bootstrap(values) == (low, high)
    assert bootstrap(values, seed=1) != (low, high)
    assert np.isnan(bootstrap([0.3])).all()
    assert bootstrap([0.1] * 7) == (0.1, 0.1)
    assert np.isnan(bootstrap([])).all()


def test_mean_interval() -> None:
    assert mean_interval([1, 0, np.nan, 1]) == wilson(2, 3)
    many = np.linspace(0, 2, FEW)
    assert mean_interval([*many, np.nan]) == bootstrap(many)
    assert mean_interval([0.5, 0.25, np.nan]) == (0.0, 1.0)
    # Alike, they vary less than zeros and ones would: Wilson's interval is wide enough for them.
    assert mean_interval([0.625] * 8) == wilson(5, 8)
    assert mean_interval([0.625] * 80) == wilson(50, 80)
    assert mean_interval([1.372] * 80) == (1.372, 1.372)
    assert np.isnan(mean_interval([0.625])).all()
    # 4.303 is Student's t of 97.5% with 2 degrees of freedom.
    assert mean_interval([1.0, 2.0, 6.0]) == pytest.approx(
        (3 - 4.303 * 7**0.5 / 3**0.5, 3 + 4.303 * 7**0.5 / 3**0.5), abs=1e-3
    )
    assert np.isnan(mean_interval([np.nan])).all()


def test_paired_by_hand() -> None:
    result = paired([0.5, 0.75, np.nan, 0.25], [0.25, 0.75, 1.0, 0.75])
    # Differences 0.25, 0, -0.5: mean -1/12, standard deviation 0.381881, t(0.95, 2) = 2.919986.
    reach = 2.919986 * 0.381881 / math.sqrt(3)
    assert (result.n, result.difference) == (3, pytest.approx(-1 / 12))
    assert (result.lower, result.upper) == (
        pytest.approx(-1 / 12 - reach, abs=1e-5),
        pytest.approx(-1 / 12 + reach, abs=1e-5),
    )
    assert result.p_loss == pytest.approx(0.370901, abs=1e-5)
    assert not result.shows_loss


def test_tiny_counts_do_not_roll_back() -> None:
    incumbent = np.ones(1000)
    for lost, p_loss in ((3, 1 / 8), (4, 1 / 16), (5, 1 / 32)):
        candidate = np.where(np.arange(1000) < lost, 0.0, 1.0)
        result = paired(candidate, incumbent)
        assert result.p_loss == pytest.approx(p_loss)
        assert result.shows_loss is (lost == 5)


def test_paired_without_change_or_evidence() -> None:
    same = paired([1, 0, 1], [1, 0, 1])
    assert (same.difference, same.lower, same.upper, same.p_loss) == (0, 0, 0, 1)
    assert not paired([], []).shows_loss
    assert not paired([np.nan], [1.0]).shows_loss
    assert not paired([0.1], [0.9]).shows_loss
    assert not paired([0.1, 0.2], [0.4, 0.5]).shows_loss
    assert paired(np.linspace(0, 0.5, 6), np.linspace(0, 0.5, 6) + 0.3).shows_loss
    with pytest.raises(ValueError, match="same problems"):
        paired([1], [1, 0])


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13])
def test_bound_and_verdict_never_contradict(n: int) -> None:
    for losses, wins in product(range(n + 1), repeat=2):
        if losses + wins <= n:
            difference = np.array([-1.0] * losses + [1.0] * wins + [0.0] * (n - losses - wins))
            result = paired((difference > 0).astype(float), (difference < 0).astype(float))
            assert result.shows_loss == (result.upper < 0), (n, losses, wins)


@pytest.mark.parametrize(("n", "repeats"), [(5, 2000), (20, 2000), (1000, 1000)])
@pytest.mark.parametrize("scores", ["binary", "graded"])
def test_false_rollbacks_stay_rare(n: int, repeats: int, scores: str) -> None:
    """Candidate and incumbent are equally good: at 95% at most one in twenty may be rolled back, and noise."""
    generator = np.random.default_rng(n)
    hardness = generator.random(n)
    rollbacks = 0
    for _ in range(repeats):
        before, after = generator.random((2, n))
        if scores == "binary":
            before, after = (before < hardness).astype(float), (after < hardness).astype(float)
        rollbacks += paired(after, before).shows_loss
    assert rollbacks / repeats <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / repeats)
    if n == 1000:
        assert rollbacks / repeats >= 0.02


def test_true_losses_are_seen() -> None:
    generator = np.random.default_rng(0)
    before = (generator.random(1000) < 0.8).astype(float)
    after = (generator.random(1000) < 0.7).astype(float)
    assert paired(after, before).shows_loss
    assert not paired(before, after).shows_loss


def test_a_difference_of_shares_is_worked_out_by_hand() -> None:
    ours, theirs = [1] * 7 + [1, 0, 0], [0] * 7 + [1, 0, 0]
    found = difference(ours, theirs)
    won, lost = 8 / 12, 1 / 12
    reach = 1.959964 * math.sqrt((won + lost - (won - lost) ** 2) / 12)
    assert (found.value, found.n, found.p) == (pytest.approx(0.7), 10, 2 * 0.5**7)
    assert (found.low, found.high) == (pytest.approx(won - lost - reach), pytest.approx(won - lost + reach))
    back = difference(theirs, ours)
    assert (back.value, back.low, back.high, back.p) == (-found.value, -found.high, -found.low, found.p)


def test_a_difference_of_means_is_students() -> None:
    found = difference([0.5, 0.7, 0.2, math.nan, 0.9], [0.1, 0.4, 0.3, 0.2, 0.5])
    gaps = np.array([0.4, 0.3, -0.1, 0.4])
    reach = 3.182446 * gaps.std(ddof=1) / 2
    assert found.n == 4
    assert found.low == pytest.approx(min(gaps.mean() - reach, 0.0))
    assert found.high == pytest.approx(gaps.mean() + reach)
    assert found.p == pytest.approx(0.126515, abs=1e-6)  # scipy.stats.ttest_1samp of the gaps


def test_equal_scores_are_no_difference_but_no_certainty() -> None:
    same = difference([1, 0, 1, 1], [1, 0, 1, 1])
    assert (same.value, same.p) == (0.0, 1.0)
    assert same.low == -same.high < 0
    whole = difference([0.5, 0.25], [0.5, 0.25])
    assert (whole.value, whole.low, whole.high, whole.p) == (0.0, 0.0, 0.0, 1.0)
    nobody = difference([math.nan], [1.0])
    assert (nobody.n, nobody.low, nobody.high) == (0, -math.inf, math.inf)
    assert difference([0.3], [0.1]).high == math.inf


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_an_interval_holds_its_value_and_never_contradicts_its_test(pairs: list[tuple[bool, bool]]) -> None:
    ours, theirs = np.array(pairs, dtype=np.float64).T
    found = difference(ours, theirs)
    assert -1 <= found.low <= found.value <= found.high <= 1
    if found.p >= 0.05:
        assert found.low <= 0 <= found.high


def test_the_interval_of_a_difference_covers() -> None:
    draws = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        first, second = draws.random(60) < 0.7, draws.random(60) < 0.5
        found = difference(first.astype(float), second.astype(float))
        held += found.low <= 0.2 <= found.high
    assert 0.93 <= held / 400 <= 0.99


def test_holm_keeps_the_order_of_its_arguments() -> None:
    assert holm([0.2, 0.01, 0.02]) == [0.2, 0.03, 0.04]
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
