"""The supervised loss."""

from __future__ import annotations

import torch


def likelihood_loss(logps: torch.Tensor, mask: torch.Tensor, tokens: int) -> torch.Tensor:
    """Supervised loss ``-sum(mask * logp) / tokens``: logps and mask fp32 ``[S, T]`` to a scalar (nats per token).

    ``tokens`` counts the trained tokens of the whole batch, so that the losses of its micro-batches add up to the
    batch's mean whatever their lengths.
    """
    return -(logps * mask).sum() / tokens
