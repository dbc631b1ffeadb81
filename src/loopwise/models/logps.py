"""Log-probabilities of completions: the one place that knows how prompt and completion meet in a model."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

LOGITS_AT_ONCE = 2**24
"""Logits of packed text whose log-softmax is in memory at a time: 64 MiB of fp32."""


@dataclass(frozen=True)
class TokenRow:
    """A prompt and what follows it; ``loss_mask`` has 1 for each following token that counts. Ids stay apart."""

    prompt_ids: Sequence[int]
    token_ids: Sequence[int]
    loss_mask: Sequence[int] | None = None

    @property
    def trained_tokens(self) -> int:
        return len(self.token_ids) if self.loss_mask is None else int(sum(self.loss_mask))

    @property
    def total_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.token_ids)


def token_logps(
    model: nn.Module, rows: Sequence[TokenRow], temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 log-probabilities ``[S, C]`` of each row's following tokens, and their loss mask fp32 ``[S, C]``.

    C is the longest completion; shorter rows are padded with 0 in both. Rows are padded on the right, which causal
    attention cannot see, so no attention mask is needed. Only the positions that predict completions reach the
    output layer. ``log_softmax(logits / temperature)`` is taken in fp32, untruncated.
    """
    device = next(model.parameters()).device
    prompt_lengths = np.array([len(row.prompt_ids) for row in rows])
    # Nothing is predicted from a row's last token, so it is not read.
    length = max(row.total_tokens for row in rows) - 1
    width = max(len(row.token_ids) for row in rows)
    read = np.zeros((len(rows), length), dtype=np.int64)
    predicted = np.zeros((len(rows), width), dtype=np.int64)
    counted = np.zeros((len(rows), width), dtype=np.float32)
    for place, row in enumerate(rows):
        ids = (*row.prompt_ids, *row.token_ids)
        read[place, : len(ids) - 1] = ids[:-1]
        predicted[place, : len(row.token_ids)] = row.token_ids
        counted[place, : len(row.token_ids)] = 1.0 if row.loss_mask is None else row.loss_mask
    input_ids, targets, mask = (torch.from_numpy(array).to(device) for array in (read, predicted, counted))
    # The position before a completion's first token predicts it: keep everything from the shortest prompt's end.
    kept = length - int(prompt_lengths.min()) + 1
    logits = model(input_ids=input_ids, use_cache=False, **last_logits(model, kept)).logits
    offset = length - logits.shape[1]
    starts = prompt_lengths - 1 - offset
    if starts.min() == starts.max():
        chosen = logits[:, starts[0] : starts[0] + width]
    else:
        positions = np.minimum(starts[:, None] + np.arange(width), logits.shape[1] - 1)
        chosen = logits[torch.arange(len(rows), device=device)[:, None], torch.from_numpy(positions).to(device)]
    chosen = chosen.float()
    if temperature != 1.0:
        chosen = chosen / temperature
    logps = -F.cross_entropy(chosen.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    return logps * (mask != 0), mask


def window_logps(model: nn.Module, windows: Any) -> torch.Tensor:
    """fp32 log-probabilities ``[B, T]`` of the targets of packed text (``data.windows.Windows``).

    Positions that begin again inside a window keep its documents apart in architectures that heed them.
    ``log_softmax`` is taken in fp32, of at most ``LOGITS_AT_ONCE`` logits at a time.
    """
    device = next(model.parameters()).device
    input_ids, targets = (torch.from_numpy(array).to(device) for array in (windows.input_ids, windows.targets))
    restarts = windows.position_ids
    positions = {} if restarts is None else {"position_ids": torch.from_numpy(restarts).to(device)}
    logits, wanted = model(input_ids=input_ids, use_cache=False, **positions).logits.flatten(0, 1), targets.flatten()
    rows = max(1, LOGITS_AT_ONCE // logits.shape[-1])
    if len(wanted) <= rows:
        return _target_logps(logits, wanted).view_as(targets)
    # Computed again for the gradient: kept, the parts' log-softmaxes would be the whole after all.
    parts = [
        checkpoint(_target_logps, *part, use_reentrant=False, preserve_rng_state=False)
        for part in zip(torch.split(logits, rows), torch.split(wanted, rows), strict=True)
    ]
    return torch.cat(parts).view_as(targets)


def _target_logps(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return -F.cross_entropy(logits.float(), targets, reduction="none")


def last_logits(model: nn.Module, count: int) -> dict[str, int]:
    """The argument that makes a model compute logits of its last ``count`` positions only; none where it cannot."""
    return {"logits_to_keep": count} if "logits_to_keep" in _arguments(type(model).forward) else {}


@functools.cache
def _arguments(function: Any) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
