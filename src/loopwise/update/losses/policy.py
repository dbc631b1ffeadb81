"""Policy gradient: how samples with advantages move the policy, and how a reference holds it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

Average = Literal["sequence", "token", "constant"]
Estimator = Literal["k1", "k2", "k3"]


class PolicyLoss(NamedTuple):
    """``loss`` ``[S, T]``; bool ``[S, T]``: where the ratio is below, or above, the range and therefore not learned."""

    loss: torch.Tensor
    clipped_low: torch.Tensor
    clipped_high: torch.Tensor


def row_weights(lengths: Sequence[int], average: Average, constant: int) -> list[float]:
    """Weight of each trained token of the S rows of a batch; a row of length 0 weighs 0.

    ``lengths`` counts the trained tokens of every row of the whole batch, not of a micro-batch: the weighted sums of
    its micro-batches then add up to the batch's loss however it is cut.

    - ``sequence``, ``1 / (S * length)``: GRPO (Shao et al. 2024, eq. 3), the mean over samples of their token means.
    - ``token``, ``1 / sum(lengths)``: DAPO (Yu et al. 2025, eq. 8), every token of the batch alike.
    - ``constant``, ``1 / (S * constant)``: Dr. GRPO (Liu et al. 2025, section 3). The paper's equation has no divisor
      beside S; its code divides by the most tokens a completion may have, which only rescales the learning rate.

    S counts rows without trained tokens too (TRL does): the sample was drawn, so it is part of the mean.
    """
    if average == "sequence":
        return [1 / (len(lengths) * length) if length else 0.0 for length in lengths]
    share = 1 / max(1, sum(lengths)) if average == "token" else 1 / (max(1, len(lengths)) * constant)
    return [share if length else 0.0 for length in lengths]


def clipped_policy_loss(
    logps: torch.Tensor, old_logps: torch.Tensor | None, advantages: torch.Tensor, low: float, high: float
) -> PolicyLoss:
    """PPO's clipped objective (Schulman et al. 2017, eq. 7), negated: ``-min(ratio * A, clip(ratio) * A)``.

    ``logps`` ``[S, T]`` of the policy that is trained, ``old_logps`` ``[S, T]`` of the one that drew the samples,
    ``advantages`` ``[S]`` or ``[S, T]``; ratio ``exp(logps - old_logps)`` kept in ``[1 - low, 1 + high]``. PPO and GRPO
    have one bound on both sides, DAPO a higher ``high``.

    ``old_logps`` None stands for ``logps.detach()``, of the first optimizer step on a rollout: the ratio is 1 and the
    gradient ``-A * grad logp``, which is REINFORCE (Williams 1992); the value is ``-A``.

    RLOO (Ahmadian et al. 2024) takes the whole completion as one action: pass sums of log-probabilities ``[S, 1]``, the
    ratio is then the sequence's. Left out: GSPO's length-mean ratio, PPO's dual clip, CISPO's detached ratio.
    """
    gains = advantages.unsqueeze(1) if advantages.dim() == 1 else advantages
    log_ratio = logps - (logps.detach() if old_logps is None else old_logps)
    # The minimum of the equation binds on one side only, the one the advantage's sign chooses. Bounding before the
    # exponential keeps its overflow out of the backward pass, where 0 * inf would be NaN.
    ratio = torch.where(gains >= 0, log_ratio.clamp(max=math.log1p(high)), log_ratio).exp()
    ratio = torch.where(gains < 0, ratio.clamp(min=1 - low), ratio)
    with torch.no_grad():
        clipped_low = (log_ratio.exp() < 1 - low) & (gains < 0)
        clipped_high = (log_ratio.exp() > 1 + high) & (gains > 0)
    return PolicyLoss(-ratio * gains, clipped_low, clipped_high)


def kl_estimate(logps: torch.Tensor, reference_logps: torch.Tensor, estimator: Estimator) -> torch.Tensor:
    """Estimate of ``KL(policy || reference)`` at each token that the policy drew (Schulman 2020), in nats: ``[S, T]``.

    With ``d = reference_logps - logps``:

    - ``k1``, ``-d``: unbiased, may be negative. As a term of the loss its gradient has mean 0, so it holds nothing; it
      belongs in the reward, as in RLOO.
    - ``k2``, ``d^2 / 2``: biased value, unbiased gradient of this KL.
    - ``k3``, ``exp(d) - d - 1``: unbiased, never negative (GRPO, eq. 4). Its gradient is that of the other direction,
      ``KL(reference || policy)``, without bias (Tang and Munos 2025).

    All of this for tokens drawn from the policy as it is now; no ratio corrects for older samples.
    """
    difference = reference_logps - logps
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return difference.square() / 2
    return difference.expm1() - difference
