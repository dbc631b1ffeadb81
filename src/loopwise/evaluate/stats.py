"""Honest numbers: unbiased pass@k, intervals, the paired test behind a rollback, and the difference of two models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

Interval = tuple[float, float]
_BOOTSTRAP_CELLS = 2_000_000
_ROUNDING = 1e-12
FEW = 30
"""Scores of which resampling is too sure."""


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that k of n samples, drawn without replacement, hold at least one of the c correct ones.

    The unbiased estimator of Chen et al. 2021, "Evaluating Large Language Models Trained on Code", eq. 1:
    1 - C(n-c, k) / C(n, k), as a product. Raises ValueError unless 1 <= k <= n and 0 <= c <= n.

    >>> round(pass_at_k(n=8, c=2, k=4), 4)
    0.7857
    """
    if not (1 <= k <= n and 0 <= c <= n):
        raise ValueError(f"pass@{k} of {c} correct among {n} samples: expected 1 <= k <= n and 0 <= c <= n.")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def wilson(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion; (0, 1) where nothing was tried. Raises ValueError on bad counts.

    Of n shares that add up to ``successes`` it is too wide rather than too narrow: they vary less than zeros and ones.

    >>> low, high = wilson(successes=986, n=1000)
    >>> round(low, 3), round(high, 3)
    (0.977, 0.992)
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: expected 0 <= successes <= n.")
    if n == 0:
        return 0.0, 1.0
    from scipy.special import ndtri

    z2 = float(ndtri(0.5 + confidence / 2)) ** 2
    share = successes / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # At the ends the formula gives 0 or 1 only up to rounding.
    return (centre - half if successes else 0.0, centre + half if successes < n else 1.0)


def bootstrap(values: ArrayLike, confidence: float = 0.95, seed: int = 0, resamples: int = 2000) -> Interval:
    """Percentile bootstrap interval of the mean of ``values`` [N]; the same ``seed`` gives the same interval.

    Fewer than two values say nothing of others: (nan, nan). Values all alike give an interval of no width.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size < 2:
        return math.nan, math.nan
    if np.all(sample == sample[0]):
        return float(sample[0]), float(sample[0])
    generator = np.random.Generator(np.random.PCG64(seed))
    rows = max(1, _BOOTSTRAP_CELLS // sample.size)
    means = np.concatenate(
        [
            sample[generator.integers(0, sample.size, (min(rows, resamples - start), sample.size))].mean(axis=1)
            for start in range(0, resamples, rows)
        ]
    )
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def mean_interval(scores: ArrayLike, confidence: float = 0.95) -> Interval:
    """Interval of a mean score [N]: Wilson's where all scores are 0 or 1, else bootstrap. NaNs are dropped.

    Of fewer than FEW other scores it is Student's t, within 0 and 1 where they all are: resampling so few is too sure.
    Shares that are all alike have Wilson's, too. One other score says nothing of others: (nan, nan).
    """
    judged = np.asarray(scores, dtype=np.float64)
    judged = judged[~np.isnan(judged)]
    shares = bool(np.all((judged >= 0) & (judged <= 1)))
    alike = judged.size > 1 and bool(np.all(judged == judged[0]))
    if judged.size and (np.all((judged == 0) | (judged == 1)) or (shares and alike)):
        return wilson(float(judged.sum()), judged.size, confidence)
    if not 1 < judged.size < FEW:
        return bootstrap(judged, confidence)
    mean = float(judged.mean())
    low, high, _ = _student(mean, float(judged.std(ddof=1)) / math.sqrt(judged.size), judged.size, 0.5 + confidence / 2)
    return (max(low, 0.0), min(high, 1.0)) if shares else (low, high)


@dataclass(frozen=True)
class Paired:
    """A paired comparison over the ``n`` problems both scored.

    ``lower`` and ``upper`` are one-sided bounds of the mean ``difference`` (candidate minus incumbent), each at
    ``confidence``; ``p_loss`` is the p-value of "the candidate is no worse".
    """

    difference: float
    lower: float
    upper: float
    p_loss: float
    n: int
    confidence: float = 0.95

    @property
    def shows_loss(self) -> bool:
        """Whether the candidate is worse at this confidence; the same as ``upper < 0``."""
        return self.p_loss < 1.0 - self.confidence


def paired(
    candidate: Sequence[float] | np.ndarray, incumbent: Sequence[float] | np.ndarray, confidence: float = 0.95
) -> Paired:
    """Compare scores of the same problems [P] before and after; NaN (could not be judged) on either side drops one.

    Bounds are Student's t on the differences. Where all scores are 0 or 1, ``p_loss`` is the exact sign test on the
    problems that changed: t is too sure of tiny counts (3 of 1,000 problems lost and none won is chance), and the
    upper bound is then lifted to 0 where that test sees no loss, so that bound and verdict never contradict. The
    sign test also stands in for t where the differences do not vary. Raises ValueError on unequal lengths.
    """
    ours, theirs = np.asarray(candidate, dtype=np.float64), np.asarray(incumbent, dtype=np.float64)
    if ours.shape != theirs.shape or ours.ndim != 1:
        raise ValueError(f"paired scores must be of the same problems: found shapes {ours.shape} and {theirs.shape}.")
    both = ~(np.isnan(ours) | np.isnan(theirs))
    ours, theirs = ours[both], theirs[both]
    difference, n = ours - theirs, int(both.sum())
    if n == 0:
        return Paired(math.nan, -math.inf, math.inf, 1.0, 0, confidence)
    mean = float(difference.mean())
    error = float(difference.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    lower, upper, p_loss = _student(mean, error, n, confidence)
    scores = np.concatenate([ours, theirs])
    if np.ptp(difference) < _ROUNDING or bool(np.all((scores == 0) | (scores == 1))):
        p_loss = _sign_test(difference)
        shows_loss = p_loss < 1.0 - confidence
        upper = upper if shows_loss else max(upper, 0.0)
    return Paired(mean, lower, upper, p_loss, n, confidence)


@dataclass(frozen=True)
class Difference:
    """The mean difference (ours minus theirs) over the ``n`` problems both scored, with its two-sided interval.

    ``p`` is the two-sided p-value of "there is none". The interval excludes 0 only where ``p`` is below 1 - confidence.
    """

    value: float
    low: float
    high: float
    p: float
    n: int


def difference(
    ours: Sequence[float] | np.ndarray, theirs: Sequence[float] | np.ndarray, confidence: float = 0.95
) -> Difference:
    """Compare two models' scores of the same problems [P]; NaN (could not be judged) on either side drops one.

    Where all scores are 0 or 1 the interval is Bonett and Price's (2012, "Adjusted Wald confidence interval for a
    difference of binomial proportions based on paired data", eq. 3), which has a width even where no problem changed,
    and ``p`` is McNemar's exact test; else both are Student's t on the differences, or the sign test where these do
    not vary. Raises ValueError on unequal lengths.

    >>> found = difference([1, 1, 1, 1, 1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1, 0, 0])
    >>> round(found.value, 2), round(found.low, 2), round(found.high, 2), round(found.p, 3)
    (0.7, 0.22, 0.95, 0.016)
    """
    first, second = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"paired scores must be of the same problems: found shapes {first.shape} and {second.shape}.")
    both = ~(np.isnan(first) | np.isnan(second))
    first, second = first[both], second[both]
    gaps, n = first - second, int(both.sum())
    if n == 0:
        return Difference(math.nan, -math.inf, math.inf, 1.0, 0)
    mean = float(gaps.mean())
    scores = np.concatenate([first, second])
    exact = 2 * min(_sign_test(gaps), _sign_test(-gaps), 0.5)
    if bool(np.all((scores == 0) | (scores == 1))):
        low, high, p = *_bonett_price(gaps, confidence), exact
    elif np.ptp(gaps) < _ROUNDING and n > 1:
        low, high, p = mean, mean, exact
    else:
        error = float(gaps.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
        low, high, p_less = _student(mean, error, n, 0.5 + confidence / 2)
        p = 2 * min(p_less, 1 - p_less) if math.isfinite(error) else 1.0
    if p >= 1 - confidence:
        low, high = min(low, 0.0), max(high, 0.0)
    return Difference(mean, low, high, p, n)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, corrected so that the chance of any false alarm among them stays what it was.

    Holm (1979), "A simple sequentially rejective multiple test procedure".

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, most = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        most = max(most, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = most
    return corrected


def _bonett_price(gaps: np.ndarray, confidence: float) -> Interval:
    from scipy.special import ndtri

    won, lost = ((int((sign * gaps > 0).sum()) + 1) / (gaps.size + 2) for sign in (1, -1))
    reach = float(ndtri(0.5 + confidence / 2)) * math.sqrt((won + lost - (won - lost) ** 2) / (gaps.size + 2))
    return max(won - lost - reach, -1.0), min(won - lost + reach, 1.0)


def _student(mean: float, error: float, n: int, confidence: float) -> tuple[float, float, float]:
    from scipy.special import stdtr, stdtrit

    if not math.isfinite(error):
        return -math.inf, math.inf, 1.0
    reach = float(stdtrit(n - 1, confidence)) * error
    p_loss = float(stdtr(n - 1, mean / error)) if error else 1.0
    return mean - reach, mean + reach, p_loss


def _sign_test(difference: np.ndarray) -> float:
    """P(at most so many wins) if each problem that changed were won or lost by a fair coin."""
    from scipy.special import bdtr

    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    return float(bdtr(wins, wins + losses, 0.5))
