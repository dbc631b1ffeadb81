"""What teaches a judge, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from loopwise.update.losses import bradley_terry_loss, hinge_loss, label_loss, logistic_loss


def wide(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_labels_cost_their_negative_log_probability() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]], dtype=torch.float64)
    found = label_loss(logits, torch.tensor([0, 1]))
    assert found.tolist() == pytest.approx([math.log(4.0), math.log(2.0)])


def test_right_and_wrong_cost_alike_from_either_side() -> None:
    found = logistic_loss(wide(2.0, -2.0, 0.0), torch.tensor([1, 0, 1]))
    assert found.tolist() == pytest.approx([math.log1p(math.exp(-2)), math.log1p(math.exp(-2)), math.log(2)])


def test_a_margin_moves_the_bradley_terry_loss() -> None:
    chosen, rejected = wide(3.0, 1.0), wide(1.0, 1.0)
    plain = bradley_terry_loss(chosen, rejected, torch.zeros(2, dtype=torch.float64))
    assert plain.tolist() == pytest.approx([math.log1p(math.exp(-2)), math.log(2)])
    asked = bradley_terry_loss(chosen, rejected, torch.tensor([2.0, 1.0], dtype=torch.float64))
    assert asked.tolist() == pytest.approx([math.log(2), math.log1p(math.e)])
    asked.sum().backward()
    # d/dr -log sigmoid(d - m) = -sigmoid(m - d), here -1/2 and -sigmoid(1).
    assert chosen.grad is not None
    assert chosen.grad.tolist() == pytest.approx([-0.5, -1 / (1 + math.exp(-1))])


def test_a_hinge_leaves_a_pair_beyond_its_margin_alone() -> None:
    chosen, rejected = wide(2.0, 0.5), wide(0.0, 0.25)
    found = hinge_loss(chosen, rejected, torch.ones(2, dtype=torch.float64))
    assert found.tolist() == pytest.approx([0.0, 0.75])
    found.sum().backward()
    assert chosen.grad is not None
    assert chosen.grad.tolist() == [0.0, -1.0]


@pytest.mark.parametrize("loss", [bradley_terry_loss, hinge_loss])
def test_gradients_are_those_of_finite_differences(loss: object) -> None:
    margins = torch.tensor([0.5, 1.5], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda chosen, rejected: loss(chosen, rejected, margins),  # type: ignore[operator]
        (wide(0.3, 0.1), wide(0.2, -0.4)),
    )
