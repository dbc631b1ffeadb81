"""Advantages from a value head, and the loss that trains it."""

from __future__ import annotations

import torch


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimates and the returns a value head learns: ``(advantages, returns)``, both ``[S, T]``.

    ``A_t = sum_l (gamma * lam)^l delta_(t+l)`` with ``delta_t = r_t + gamma * V_(t+1) - V_t`` (Schulman et al. 2016,
    eq. 16), returns ``A_t + V_t``. ``rewards``, ``values`` and ``mask`` are ``[S, T]``; ``values[:, t]`` is
    the value before token t, ``mask`` 1 where the policy wrote the token. Other tokens (a tool's, padding) are stepped
    over: their rewards do not count, and both results are 0 there.

    A completion ends the episode, also one that was cut off: the value after its last token is 0. No gradient flows
    through either result. Left out: whitening of the advantages.
    """
    rewards, values, written = rewards.detach(), values.detach(), mask != 0
    advantages = torch.zeros_like(values)
    next_advantage = next_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(written[:, t], delta + gamma * lam * next_advantage, next_advantage)
        next_value = torch.where(written[:, t], values[:, t], next_value)
        advantages[:, t] = next_advantage
    return advantages.masked_fill(~written, 0), (advantages + values).masked_fill(~written, 0)


def value_loss(values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, clip: float) -> torch.Tensor:
    """Half the squared error, the worse of the value and of the value kept within ``clip`` of its old one: ``[S, T]``.

    ``max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2``. PPO (Schulman et al. 2017, eq. 9) has the plain
    squared error; the clip is of its authors' code (Engstrom et al. 2020, section 3), and the half too.
    """
    near = old_values + (values - old_values).clamp(-clip, clip)
    return torch.maximum((values - returns).square(), (near - returns).square()) / 2
