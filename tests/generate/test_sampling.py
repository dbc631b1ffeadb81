"""choose() and truncate() against probabilities worked out apart, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from loopwise.generate.sampling import choose, truncate
from loopwise.runtime import uniforms
from loopwise.types import Sampling

LOGITS = np.array([1.2, -0.3, 0.4, 2.0, -1.5, 0.0, 1.9, -2.5], dtype=np.float32)
DRAWS = 20_000


def exact(temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """The distribution by hand: tokens from the likeliest down, until top_k or top_p is reached."""
    weights = np.exp(LOGITS.astype(np.float64) / temperature)
    order = np.argsort(-weights)
    kept = list(order[:top_k] if top_k else order)
    total, reached, nucleus = sum(weights[kept]), 0.0, []
    for token in kept:
        nucleus.append(token)
        reached += weights[token] / total
        if reached >= top_p:
            break
    probabilities = np.zeros(len(LOGITS))
    probabilities[nucleus] = weights[nucleus] / sum(weights[nucleus])
    return probabilities


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.5, 0, 1.0), (1.0, 3, 1.0), (1.0, 0, 0.8), (0.7, 5, 0.75), (1.3, 1, 1.0)],
)
def test_frequencies_are_the_exact_probabilities(temperature: float, top_k: int, top_p: float) -> None:
    draws = torch.from_numpy(uniforms(np.arange(DRAWS, dtype=np.uint64) * 7919, position=3))
    logits = torch.from_numpy(LOGITS).expand(DRAWS, -1)
    tokens = choose(logits, draws, Sampling(temperature=temperature, top_k=top_k, top_p=top_p)).tokens
    expected = exact(temperature, top_k, top_p)
    counts = np.bincount(tokens.numpy(), minlength=len(LOGITS))
    assert counts[expected == 0].sum() == 0, "a truncated token was drawn"
    possible = expected > 0
    if possible.sum() > 1:
        assert chisquare(counts[possible], DRAWS * expected[possible]).pvalue > 1e-3


def test_what_is_said_of_the_distribution_is_untruncated() -> None:
    scaled = LOGITS.astype(np.float64) / 0.7
    expected = scaled - np.log(np.exp(scaled).sum())
    tokens, logps, entropies, certainties = choose(
        torch.from_numpy(LOGITS)[None], torch.tensor([0.5]), Sampling(temperature=0.7, top_k=2, top_p=0.5)
    )
    assert logps.item() == pytest.approx(expected[tokens.item()], abs=1e-6)
    assert entropies.item() == pytest.approx(-(np.exp(expected) * expected).sum(), abs=1e-6)
    indifferent = np.full(len(LOGITS), 1 / len(LOGITS))
    distance = (indifferent * (np.log(indifferent) - expected)).sum()
    assert certainties.item() == pytest.approx(distance, abs=1e-6)


def test_nothing_is_as_certain_as_an_impossible_token() -> None:
    chosen = choose(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -torch.inf]]), torch.tensor([0.5, 0.5]), Sampling())
    assert chosen.certainties.tolist() == pytest.approx([0.0, np.inf])
    assert chosen.entropies.tolist() == pytest.approx([np.log(3), np.log(2)])


def test_greedy_takes_the_likeliest_and_reports_temperature_one() -> None:
    tokens, logps, _, _ = choose(torch.from_numpy(LOGITS)[None], torch.tensor([0.999]), Sampling(temperature=0.0))
    assert tokens.item() == 3
    expected = LOGITS[3] - np.log(np.exp(LOGITS.astype(np.float64)).sum())
    assert logps.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_k=2), Sampling(top_p=0.6), Sampling(top_k=4, top_p=0.9)])
def test_the_ends_of_the_unit_interval_draw_possible_tokens(sampling: Sampling) -> None:
    # The outermost tokens are impossible, so that a slip past either end shows.
    logits = torch.tensor([[-torch.inf, 2.0, 1.0, -torch.inf, 0.5, -torch.inf]]).expand(2, -1)
    tokens, logps, entropies, _ = choose(logits, torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64), sampling)
    kept = truncate(logits.softmax(-1), sampling.top_k, sampling.top_p)[0]
    possible = kept.nonzero()[:, 0]
    assert tokens.tolist() == [possible[0].item(), possible[-1].item()]
    assert logps.isfinite().all()
    assert entropies.isfinite().all()


def test_equal_logits_are_all_within_reach() -> None:
    # 1/3 has no exact form: sums of rounded thirds must still leave the last token its third.
    draws = torch.tensor([0.0, 0.34, 0.67, 1 - 2.0**-53], dtype=torch.float64)
    assert choose(torch.zeros(4, 3), draws, Sampling()).tokens.tolist() == [0, 1, 2, 2]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, top_p=0.9), Sampling(temperature=0.0)])
def test_a_few_rows_at_a_time_draw_what_all_at_once_do(monkeypatch: pytest.MonkeyPatch, sampling: Sampling) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(7, 50, generator=generator)
    draws = torch.rand(7, generator=generator, dtype=torch.float64)
    whole = choose(logits, draws, sampling)
    for at_once in (1, 100, 199):
        monkeypatch.setattr("loopwise.generate.sampling.AT_ONCE", at_once)
        assert all(map(torch.equal, choose(logits, draws, sampling), whole))


def test_truncation_keeps_the_smallest_sufficient_set() -> None:
    probabilities = torch.tensor([[0.125, 0.5, 0.25, 0.125]])
    assert truncate(probabilities, 0, 0.5)[0].tolist() == [0, 0.5, 0, 0]
    assert truncate(probabilities, 0, 0.51)[0].tolist() == [0, 0.5, 0.25, 0]
    assert truncate(probabilities, 2, 1.0)[0].tolist() == [0, 0.5, 0.25, 0]
    assert truncate(probabilities, 3, 1e-9)[0].tolist() == [0, 0.5, 0, 0]
    assert truncate(probabilities, 9, 1.0)[0].tolist() == probabilities[0].tolist()
    # top_p is a share of what top_k left: 0.5 of 0.75 is two thirds.
    assert truncate(probabilities, 2, 0.66)[0].tolist() == [0, 0.5, 0, 0]
    assert truncate(probabilities, 2, 0.67)[0].tolist() == [0, 0.5, 0.25, 0]


def test_ties_are_broken_by_the_lower_token() -> None:
    assert truncate(torch.tensor([[0.2, 0.3, 0.3, 0.2]]), 3, 1.0)[0].tolist() == pytest.approx([0.2, 0.3, 0.3, 0])
