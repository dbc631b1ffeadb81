"""From logits and uniforms to tokens. Nothing here draws random numbers of its own."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from loopwise.types import Sampling

AT_ONCE = 2**18
"""Logits that a processor works on at a time, so that what is made of them stays in its cache."""


class Chosen(NamedTuple):
    """One token of each of S rows: ``tokens`` int64 ``[S]``, the rest fp32 ``[S]``, in nats.

    ``logps`` are the tokens' log-probabilities, ``entropies`` those of the distribution p that a token was drawn from,
    and ``certainties`` its distance from indifference, KL(uniform, p) = -log V - mean_j log p_j: infinite where a token
    is impossible.
    """

    tokens: torch.Tensor
    logps: torch.Tensor
    entropies: torch.Tensor
    certainties: torch.Tensor


def choose(logits: torch.Tensor, uniforms: torch.Tensor, sampling: Sampling) -> Chosen:
    """Pick one token per row.

    ``logits`` ``[S, V]``, ``uniforms`` float64 ``[S]`` in [0, 1). What is said of the distribution is said of
    ``softmax(logits / temperature)`` before top-k and top-p (of ``softmax(logits)`` when greedy). The token is the
    inverse of the cumulative distribution at the uniform, in float64, so it is a pure function of its arguments.
    """
    count, size = logits.shape
    rows = max(1, AT_ONCE // size)
    if count <= rows or logits.device.type != "cpu":
        return _choose(logits, uniforms, sampling)
    parts = zip(torch.split(logits, rows), torch.split(uniforms, rows), strict=True)
    return Chosen(*map(torch.cat, zip(*(_choose(*part, sampling) for part in parts), strict=True)))


def _choose(logits: torch.Tensor, uniforms: torch.Tensor, sampling: Sampling) -> Chosen:
    scaled = logits.float()
    if sampling.temperature not in (0.0, 1.0):
        scaled = scaled / sampling.temperature
    logps = torch.log_softmax(scaled, dim=-1)
    probabilities = logps.exp()
    certainties = -logps.mean(-1) - math.log(logps.shape[-1])
    if sampling.temperature == 0.0:
        tokens = scaled.argmax(-1)
    else:
        kept = truncate(probabilities, sampling.top_k, sampling.top_p)
        cumulative = kept.double().cumsum(-1)
        targets = uniforms.to(cumulative.device)[:, None] * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, targets, right=True)[:, 0]
        # A uniform next to 1 may round onto the total: step back to the last token that has any probability.
        beyond = tokens == kept.shape[-1]
        if bool(beyond.any()):
            last = kept.shape[-1] - 1 - (kept.flip(-1) > 0).int().argmax(-1)
            tokens = torch.where(beyond, last, tokens)
    chosen = logps.gather(-1, tokens[:, None])[:, 0]
    # In place: two copies of the logits less, which pays for the certainties.
    entropies = -logps.clamp_(min=-1e9).mul_(probabilities).sum(-1)
    return Chosen(tokens, chosen, entropies, certainties)


def truncate(probabilities: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Zero all but the ``top_k`` likeliest tokens, then all beyond the smallest set with at least ``top_p`` of what is
    left. ``[S, V]`` to ``[S, V]``, not renormalised. The likeliest token always stays.
    """
    if not 0 < top_k < probabilities.shape[-1] and top_p >= 1.0:
        return probabilities
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    if top_k > 0:
        ordered[:, top_k:] = 0.0
    if top_p < 1.0:
        share = ordered.double() / ordered.double().sum(-1, keepdim=True)
        before = share.cumsum(-1) - share
        ordered = torch.where(before < top_p, ordered, 0.0)
    return torch.zeros_like(probabilities).scatter_(-1, order, ordered)
