"""Log-probabilities of completions: the one place that knows how prompt and completion meet in a model."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


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
    count = len(rows)
    prompt_lengths = [len(row.prompt_ids) for row in rows]
    # Nothing is predicted from a row's last token, so it is not read.
    length = max(row.total_tokens for row in rows) - 1
    width = max(len(row.token_ids) for row in rows)
    input_ids = torch.zeros(count, length, dtype=torch.long)
    targets = torch.zeros(count, width, dtype=torch.long)
    mask = torch.zeros(count, width)
    for place, row in enumerate(rows):
        input_ids[place, : row.total_tokens - 1] = torch.tensor([*row.prompt_ids, *row.token_ids][:-1])
        targets[place, : len(row.token_ids)] = torch.tensor(row.token_ids, dtype=torch.long)
        mask[place, : len(row.token_ids)] = torch.tensor(
            row.loss_mask if row.loss_mask is not None else [1] * len(row.token_ids), dtype=torch.float32
        )
    # The position before a completion's first token predicts it: keep everything from the shortest prompt's end.
    kept = length - min(prompt_lengths) + 1
    logits = model(input_ids=input_ids.to(device), use_cache=False, **last_logits(model, kept)).logits
    offset = length - logits.shape[1]
    starts = torch.tensor(prompt_lengths)[:, None] - 1 - offset
    positions = (starts + torch.arange(width)[None]).clamp(max=logits.shape[1] - 1).to(device)
    if int(starts.min()) == int(starts.max()):
        chosen = logits[:, int(starts[0]) : int(starts[0]) + width]
    else:
        chosen = logits.gather(1, positions[..., None].expand(-1, -1, logits.shape[-1]))
    chosen = chosen.float()
    if temperature != 1.0:
        chosen = chosen / temperature
    targets, mask = targets.to(device), mask.to(device)
    logps = -F.cross_entropy(chosen.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    return logps * (mask != 0), mask


def last_logits(model: nn.Module, count: int) -> dict[str, int]:
    """The argument that makes a model compute logits of its last ``count`` positions only; none where it cannot."""
    return {"logits_to_keep": count} if "logits_to_keep" in _arguments(type(model).forward) else {}


@functools.cache
def _arguments(function: Any) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
