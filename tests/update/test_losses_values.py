"""Advantages from values, the loss that trains them, and distillation: by hand and against finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from loopwise.update.losses import gae, generalised_jsd, value_loss


def tensor(*values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


REWARDS, VALUES = tensor([0.0, 0.0, 1.0]), tensor([0.5, 0.4, 0.2])
# With gamma 0.9 and lam 0.5: delta = 0.9 * 0.4 - 0.5, 0.9 * 0.2 - 0.4, 1 - 0.2 = -0.14, -0.22, 0.8;
# from the end, A = 0.8, -0.22 + 0.45 * 0.8, -0.14 + 0.45 * 0.14.
ADVANTAGES = [-0.077, 0.14, 0.8]
RETURNS = [0.423, 0.54, 1.0]


def test_gae_by_hand() -> None:
    advantages, returns = gae(REWARDS, VALUES, torch.ones(1, 3), gamma=0.9, lam=0.5)
    assert advantages[0].tolist() == pytest.approx(ADVANTAGES)
    assert returns[0].tolist() == pytest.approx(RETURNS)


def test_gae_steps_over_what_the_policy_did_not_write() -> None:
    mask = torch.tensor([[1, 0, 1, 1, 0]])
    rewards, values = tensor([0.0, 7.0, 0.0, 1.0, 7.0]), tensor([0.5, 9.0, 0.4, 0.2, 9.0])
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=0.5)
    assert advantages[mask != 0].tolist() == pytest.approx(ADVANTAGES)
    assert returns[mask != 0].tolist() == pytest.approx(RETURNS)
    assert not advantages[mask == 0].any()
    assert not returns[mask == 0].any()


def test_gae_without_discount_returns_what_is_still_to_come() -> None:
    rewards, mask = draw(2, 5), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    _, returns = gae(rewards, draw(2, 5, seed=1), mask, gamma=1.0, lam=1.0)
    to_come = (rewards * mask).flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(returns, to_come * mask)


def test_gae_lets_no_gradient_through() -> None:
    advantages, returns = gae(REWARDS, VALUES.clone().requires_grad_(), torch.ones(1, 3), 1.0, 0.95)
    assert not advantages.requires_grad
    assert not returns.requires_grad


def test_value_loss_by_hand() -> None:
    values, old_values, returns = tensor([0.5, 0.2, 0.5]), tensor([0.1, 0.1, 0.1]), tensor([1.0, 1.0, 0.0])
    # Kept within 0.2 of 0.1: 0.3, 0.2, 0.3. The worse of (0.5, 0.7)^2, (0.8, 0.8)^2, (0.5, 0.3)^2, halved.
    losses = value_loss(values, old_values, returns, clip=0.2)
    assert losses[0].tolist() == pytest.approx([0.49 / 2, 0.64 / 2, 0.25 / 2])


def test_value_loss_gradient() -> None:
    old_values, returns = draw(2, 4, seed=1), draw(2, 4, seed=2)
    assert torch.autograd.gradcheck(lambda x: value_loss(x, old_values, returns, 0.2), draw(2, 4).requires_grad_())


STUDENT, TEACHER = tensor([0.5, 0.5]), tensor([0.75, 0.25])


def test_jsd_by_hand() -> None:
    def kl(p: tuple[float, float], q: tuple[float, float]) -> float:
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))

    student, teacher = (0.5, 0.5), (0.75, 0.25)
    expected = {
        0.0: kl(teacher, student),
        1.0: kl(student, teacher),
        # Mixture 0.2 * teacher + 0.8 * student.
        0.2: 0.2 * kl(teacher, (0.55, 0.45)) + 0.8 * kl(student, (0.55, 0.45)),
    }
    for beta, value in expected.items():
        assert generalised_jsd(STUDENT.log(), TEACHER.log(), beta, 1.0).tolist() == pytest.approx([value])


def test_jsd_temperature_divides_the_logits() -> None:
    hot = generalised_jsd(STUDENT.log() * 2, TEACHER.log() * 2, 0.5, temperature=2.0)
    torch.testing.assert_close(hot, generalised_jsd(STUDENT.log(), TEACHER.log(), 0.5, temperature=1.0))


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_jsd_of_chunks_and_of_equals(beta: float) -> None:
    student, teacher = draw(6, 5), draw(6, 5, seed=1)
    whole = generalised_jsd(student, teacher, beta, 0.7)
    chunks = [generalised_jsd(*pair, beta, 0.7) for pair in zip(student.split(4), teacher.split(4), strict=True)]
    torch.testing.assert_close(torch.cat(chunks), whole)
    assert (whole > 0).all()
    torch.testing.assert_close(generalised_jsd(student, student + 3.0, beta, 0.7), torch.zeros_like(whole))


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_jsd_gradient(beta: float) -> None:
    teacher = draw(3, 4, seed=1)
    assert torch.autograd.gradcheck(lambda x: generalised_jsd(x, teacher, beta, 0.7), draw(3, 4).requires_grad_())


def test_jsd_is_taken_in_single_precision_of_half_precision_logits() -> None:
    student, teacher = draw(3, 4).bfloat16(), draw(3, 4, seed=1).bfloat16()
    result = generalised_jsd(student, teacher, 0.5, 0.7)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, generalised_jsd(student.double(), teacher.double(), 0.5, 0.7).float())
