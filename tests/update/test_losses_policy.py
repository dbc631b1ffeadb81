"""Policy losses: numbers worked out by hand, gradients against finite differences, micro-batches that add up."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwise.update.losses import Average, clipped_policy_loss, kl_estimate, likelihood_loss, row_weights

LOW, HIGH = 0.2, 0.28


def tensor(*values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_likelihood_by_hand() -> None:
    logps, mask = tensor([-1.0, -2.0], [-4.0, 0.0]), tensor([1, 1], [1, 0])
    assert likelihood_loss(logps, mask, tokens=3) == pytest.approx((1 + 2 + 4) / 3)
    assert torch.autograd.gradcheck(lambda x: likelihood_loss(x, mask, 3), logps.requires_grad_())


def test_row_weights_by_hand() -> None:
    lengths = [5, 2, 0, 1]
    assert row_weights(lengths, "sequence", 10) == pytest.approx([1 / 20, 1 / 8, 0, 1 / 4])
    assert row_weights(lengths, "token", 10) == pytest.approx([1 / 8, 1 / 8, 0, 1 / 8])
    assert row_weights(lengths, "constant", 10) == pytest.approx([1 / 40, 1 / 40, 0, 1 / 40])


@pytest.mark.parametrize("average", ["sequence", "token", "constant"])
def test_row_weights_of_nothing(average: Average) -> None:
    assert row_weights([], average, 4) == []
    assert row_weights([0, 0], average, 4) == [0, 0]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=8),
    cuts=st.sets(st.integers(1, 7)),
    average=st.sampled_from(["sequence", "token", "constant"]),
)
def test_micro_batches_of_any_cut_add_up_to_the_mean(lengths: list[int], cuts: set[int], average: Average) -> None:
    losses = [draw(length, seed=place) for place, length in enumerate(lengths)]
    weights = row_weights(lengths, average, 6)
    total = 0.0
    edges = [0, *sorted(cut for cut in cuts if cut < len(lengths)), len(lengths)]
    for start, stop in itertools.pairwise(edges):
        # Each micro-batch is padded to its own longest row.
        rows = torch.nn.utils.rnn.pad_sequence(losses[start:stop], batch_first=True)
        total += float((rows * tensor(*weights[start:stop])[:, None]).sum())
    sums = [float(loss.sum()) for loss in losses]
    whole = {
        "sequence": sum(value / length for value, length in zip(sums, lengths, strict=True) if length) / len(lengths),
        "token": sum(sums) / max(1, sum(lengths)),
        "constant": sum(sums) / (len(lengths) * 6),
    }
    assert total == pytest.approx(whole[average], abs=1e-12)


def test_clipped_by_hand() -> None:
    ratios = tensor([1.5, 1.5, 0.5, 0.5, 1.25, 0.75, 1.1])
    gains = tensor([2.0, -2.0, 2.0, -2.0, 2.0, -2.0, 0.0])
    result = clipped_policy_loss(ratios.log(), torch.zeros_like(ratios), gains, LOW, HIGH)
    # Kept within 0.8 and 1.28 where that makes the loss larger, and only there.
    expected = [-2 * 1.28, 2 * 1.5, -2 * 0.5, 2 * 0.8, -2 * 1.25, 2 * 0.8, 0.0]
    assert result.loss[0].tolist() == pytest.approx(expected)
    assert result.clipped_high[0].tolist() == [True, False, False, False, False, False, False]
    assert result.clipped_low[0].tolist() == [False, False, False, True, False, True, False]


def test_the_first_step_is_reinforce() -> None:
    logps, gains = draw(3, 4).requires_grad_(), draw(3, seed=1)
    result = clipped_policy_loss(logps, None, gains, LOW, HIGH)
    result.loss.sum().backward()
    assert torch.equal(result.loss.detach(), -gains[:, None].expand(3, 4))
    assert torch.equal(logps.grad, -gains[:, None].expand(3, 4))
    assert not (result.clipped_low | result.clipped_high).any()


def test_an_advantage_for_each_token() -> None:
    logps, old_logps, gains = draw(2, 3), draw(2, 3, seed=1), draw(2, seed=2)
    by_row = clipped_policy_loss(logps, old_logps, gains, LOW, HIGH)
    by_token = clipped_policy_loss(logps, old_logps, gains[:, None].expand(2, 3), LOW, HIGH)
    assert all(map(torch.equal, by_row, by_token))


def test_clipped_gradient() -> None:
    # No ratio lies on a bound, where there is no gradient to compare.
    old_logps, gains = draw(3, 4, seed=1), draw(3, 4, seed=2)
    logps = (old_logps + 0.4 * draw(3, 4, seed=3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: clipped_policy_loss(x, old_logps, gains, LOW, HIGH).loss, logps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_clipped_ratio_beyond_all_numbers_has_gradient_0(dtype: torch.dtype) -> None:
    logps = torch.zeros(2, 1, dtype=dtype, requires_grad=True)
    old_logps = torch.tensor([[-500.0], [500.0]], dtype=dtype)
    result = clipped_policy_loss(logps, old_logps, torch.tensor([1.0, -1.0], dtype=dtype), LOW, HIGH)
    result.loss.sum().backward()
    assert result.loss.flatten().tolist() == pytest.approx([-1.28, 0.8], abs=0.01)
    assert logps.grad.tolist() == [[0.0], [0.0]]
    assert result.loss.dtype == dtype


def test_kl_by_hand() -> None:
    logps, reference = tensor([-1.0, -2.0]), tensor([-1.5, -1.0])  # d = -0.5 and 1
    assert kl_estimate(logps, reference, "k1")[0].tolist() == pytest.approx([0.5, -1.0])
    assert kl_estimate(logps, reference, "k2")[0].tolist() == pytest.approx([0.125, 0.5])
    expected = [math.exp(-0.5) + 0.5 - 1, math.e - 2]
    assert kl_estimate(logps, reference, "k3")[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_gradient(estimator: str) -> None:
    reference = draw(2, 3, seed=1)
    assert torch.autograd.gradcheck(lambda x: kl_estimate(x, reference, estimator), draw(2, 3).requires_grad_())


def test_which_kl_values_and_gradients_are_unbiased() -> None:
    """Expectations over a vocabulary of five, taken exactly."""
    scores, reference = draw(5).requires_grad_(), draw(5, seed=1).log_softmax(0)
    logps = scores.log_softmax(0)
    drawn = logps.exp().detach()

    def mean_and_gradient(value: torch.Tensor) -> tuple[float, torch.Tensor]:
        return float(value.detach()), torch.autograd.grad(value, scores, retain_graph=True)[0]

    k1, k2, k3 = (
        mean_and_gradient((drawn * kl_estimate(logps, reference, estimator)).sum()) for estimator in ("k1", "k2", "k3")
    )
    reverse = mean_and_gradient((logps.exp() * (logps - reference)).sum())
    forward = mean_and_gradient((reference.exp() * (reference - logps)).sum())
    assert k1[0] == pytest.approx(reverse[0])
    assert k3[0] == pytest.approx(reverse[0])
    assert abs(k2[0] - reverse[0]) > 0.01
    torch.testing.assert_close(k1[1], torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(k2[1], reverse[1])
    torch.testing.assert_close(k3[1], forward[1])
