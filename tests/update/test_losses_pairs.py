"""Losses of pairs: numbers worked out by hand, and gradients against finite differences in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch

from loopwise.update.losses import dpo_loss, ipo_loss, margin_loss, rrhf_loss, slic_loss


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


CHOSEN, REJECTED = tensor(-1.0, -2.0), tensor(-2.0, -1.0)
REFERENCE = (tensor(-1.5, -1.0), tensor(-1.0, -2.0))
# The policy moved from the reference: (-1 + 1.5) - (-2 + 1) = 1.5 and (-2 + 1) - (-1 + 2) = -2.
MARGINS = (1.5, -2.0)


def test_dpo_by_hand() -> None:
    losses = dpo_loss(CHOSEN, REJECTED, *REFERENCE, beta=0.5)
    assert losses.tolist() == pytest.approx([math.log(1 + math.exp(-0.5 * margin)) for margin in MARGINS])


def test_dpo_of_the_reference_itself() -> None:
    assert dpo_loss(*REFERENCE, *REFERENCE, beta=0.1).tolist() == pytest.approx([math.log(2)] * 2)


def test_ipo_by_hand() -> None:
    losses = ipo_loss(CHOSEN, REJECTED, *REFERENCE, beta=0.5)  # drawn to 1 / (2 * 0.5) = 1
    assert losses.tolist() == pytest.approx([0.5**2, 3.0**2])


@pytest.mark.parametrize("loss", [slic_loss, margin_loss])
def test_hinges_by_hand(loss: Callable[..., torch.Tensor]) -> None:
    # 0.25 + 1 - 2 < 0, and 0.25 + 2 - 1; a margin wider than the difference: 1.5 + 1 - 2.
    assert loss(CHOSEN, REJECTED, 0.25).tolist() == pytest.approx([0.0, 1.25])
    assert loss(CHOSEN, REJECTED, 1.5).tolist() == pytest.approx([0.5, 2.5])


def test_rrhf_by_hand() -> None:
    scores = tensor(-1.0, -0.5, -2.0, -0.25, -3.0)
    rewards = tensor(1.0, 0.0, 2.0, math.nan, 9.0)
    groups = torch.tensor([0, 0, 0, 0, 1])
    # r_1 < r_0: -0.5 + 1; r_1 < r_2: -0.5 + 2; r_0 < r_2: -1 + 2. The unjudged one and the other group do not count.
    assert rrhf_loss(scores, rewards, groups) == pytest.approx(0.5 + 1.5 + 1.0)


def test_rrhf_of_equal_rewards_and_of_right_ranks() -> None:
    scores, groups = tensor(-1.0, -2.0, -3.0), torch.zeros(3, dtype=torch.long)
    assert rrhf_loss(scores, tensor(1.0, 1.0, 1.0), groups) == 0
    assert rrhf_loss(scores, tensor(3.0, 2.0, 1.0), groups) == 0


def test_rrhf_adds_up_over_whole_groups() -> None:
    draw = torch.Generator().manual_seed(0)
    scores, rewards = torch.randn(2, 12, generator=draw, dtype=torch.float64)
    groups = torch.arange(12) // 4
    parts = [rrhf_loss(scores[cut], rewards[cut], groups[cut]) for cut in (slice(0, 4), slice(4, 12))]
    torch.testing.assert_close(sum(parts), rrhf_loss(scores, rewards, groups))


@pytest.mark.parametrize(
    "loss",
    [
        lambda one, other: dpo_loss(one, other, *REFERENCE, beta=0.5),
        lambda one, other: ipo_loss(one, other, *REFERENCE, beta=0.5),
        partial(slic_loss, delta=0.25),
        partial(margin_loss, margin=1.5),
        lambda one, other: rrhf_loss(torch.cat([one, other]), tensor(0.0, 1.0, 2.0, 1.0), torch.tensor([0, 0, 0, 0])),
    ],
    ids=["dpo", "ipo", "slic", "margin", "rrhf"],
)
def test_gradients(loss: Callable[..., torch.Tensor]) -> None:
    # Scores apart from one another and from the hinges' corners, where there is no gradient to compare.
    chosen, rejected = tensor(-1.03, -2.01).requires_grad_(), tensor(-2.11, -1.17).requires_grad_()
    assert torch.autograd.gradcheck(loss, (chosen, rejected))
    one, other = torch.autograd.grad(loss(chosen, rejected).sum(), (chosen, rejected))
    assert one.abs().sum() > 0
    assert other.abs().sum() > 0
