"""Losses that rank completions of one prompt: a better one over a worse one."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def dpo_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """``-log sigmoid(beta * margin)`` of each pair ``[P]`` (DPO, Rafailov et al. 2023, eq. 7).

    All four are summed log-probabilities of completions ``[P]``; the margin is how much further the policy has moved
    from the reference towards the chosen than towards the rejected one. SPIN (Chen et al. 2024, eq. 4.7) is this loss
    with labelled completions chosen and the last iterate's rejected. Left out: label smoothing, other divergences.
    """
    return -F.logsigmoid(beta * _margin(chosen, rejected, reference_chosen, reference_rejected))


def ipo_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """``(margin - 1 / (2 beta))^2`` of each pair ``[P]`` (IPO, Azar et al. 2024, eq. 17, whose tau is ``beta``).

    All four are log-probabilities of completions ``[P]``: sums as the paper writes it, or means over the tokens, as
    TRL takes them (by the word of IPO's authors also in the paper's experiments). Means ask the same of completions
    of every length.
    """
    margin = _margin(chosen, rejected, reference_chosen, reference_rejected)
    return (margin - 1 / (2 * beta)).square()


def slic_loss(chosen: torch.Tensor, rejected: torch.Tensor, delta: float) -> torch.Tensor:
    """``max(0, delta - chosen + rejected)`` of each pair ``[P]`` (SLiC-HF, Zhao et al. 2023, eq. 1, first term).

    Both are summed log-probabilities of completions ``[P]``, ``delta`` in nats. The paper's second term, imitation of
    a target, is ``likelihood_loss``, weighed by the caller.
    """
    return F.relu(delta - chosen + rejected)


def margin_loss(better: torch.Tensor, worse: torch.Tensor, margin: float) -> torch.Tensor:
    """``max(0, margin - better + worse)`` of each pair ``[P]``: SLiC's hinge on mean log-probabilities of a token.

    Both are means over a completion's tokens ``[P]``, ``margin`` in nats a token: sums would favour short completions.
    """
    return F.relu(margin - better + worse)


def rrhf_loss(scores: torch.Tensor, rewards: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Sum of ``max(0, s_i - s_j)`` over the pairs of a group with ``r_i < r_j`` (RRHF, Yuan et al. 2023, L_rank).

    ``scores`` ``[S]`` are mean log-probabilities of a token, ``rewards`` ``[S]``, ``groups`` int ``[S]``; a scalar. A
    NaN reward never counts. The sums of micro-batches add up to the batch's where each holds whole groups. The paper's
    second term, imitation of the best completion, is ``likelihood_loss``, weighed by the caller.
    """
    misranked = (rewards[:, None] < rewards) & (groups[:, None] == groups)
    return torch.where(misranked, F.relu(scores[:, None] - scores), 0).sum()


def _margin(
    chosen: torch.Tensor, rejected: torch.Tensor, reference_chosen: torch.Tensor, reference_rejected: torch.Tensor
) -> torch.Tensor:
    return (chosen - reference_chosen) - (rejected - reference_rejected)
