"""Log-probabilities of completions: the one place that knows how prompt and completion meet in a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from loopwise.errors import DataError
from loopwise.models.heads import comes_in_parts, logits_of, states_before_output
from loopwise.models.trees import Layout, forward_arguments, lay_out, vocabulary_size

T = TypeVar("T")
LOGITS_AT_ONCE = 2**24
"""Logits in memory at a time: 64 MiB of fp32. More are computed in parts, and again for the gradient.

All at once where a model scales or caps them and lies in shards: every part would be a forward pass of all ranks.
"""


@dataclass(frozen=True)
class TokenRow:
    """A prompt and what follows it; ``loss_mask`` has 1 for each following token that counts. Ids stay apart."""

    prompt_ids: Sequence[int]
    token_ids: Sequence[int]
    loss_mask: Sequence[int] | None = None

    @property
    def mask(self) -> Sequence[int]:
        """The loss mask, written out where there is none."""
        return [1] * len(self.token_ids) if self.loss_mask is None else self.loss_mask

    @property
    def trained_tokens(self) -> int:
        return len(self.token_ids) if self.loss_mask is None else int(sum(self.loss_mask))

    @property
    def total_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.token_ids)


@dataclass(frozen=True)
class TokenScores:
    """What a model says of the following tokens of S rows; C is the longest completion, shorter rows are padded with 0.

    ``logps`` ``[S, C]`` and ``mask`` fp32 ``[S, C]``: log-probabilities and the loss mask; where that is 0, so is every
    score. ``entropies`` ``[S, C]``: of the distribution each token was drawn from, in nats. Scores are fp32, or fp64
    where the logits are. ``states`` ``[S, C, H]``: the last hidden state that predicts each token. Entropies and states
    are None where they were not asked for.
    """

    logps: torch.Tensor
    mask: torch.Tensor
    entropies: torch.Tensor | None = None
    states: torch.Tensor | None = None


@dataclass(frozen=True)
class States:
    """Hidden states ``[S, C, H]`` that predict the following tokens of S rows, and their loss mask fp32 ``[S, C]``.

    ``logits_of(model, values[mask > 0][start:stop])`` are the logits of some of them. Where the mask is 0, so are they.
    """

    values: torch.Tensor
    mask: torch.Tensor


def token_logps(
    model: nn.Module, rows: Sequence[TokenRow], temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 log-probabilities ``[S, C]`` of each row's following tokens, and their loss mask fp32 ``[S, C]``.

    ``score_tokens`` without the rest.
    """
    scores = score_tokens(model, rows, temperature)
    return scores.logps, scores.mask


def score_tokens(
    model: nn.Module,
    rows: Sequence[TokenRow],
    temperature: float = 1.0,
    *,
    entropies: bool = False,
    states: bool = False,
) -> TokenScores:
    """Log-probabilities (and, if asked for, entropies and hidden states) of the following tokens of S rows.

    Rows in any order; those of one prompt read it once where the model allows it (``why_not_shared``), otherwise all
    are padded. Only positions that predict a counted token reach the output layer. ``log_softmax(logits /
    temperature)`` is taken in fp32 or more, untruncated, of at most ``LOGITS_AT_ONCE`` logits at a time. Everything
    passes gradients on. Raises DataError for a row without a prompt and, if ``states`` are asked for, ModelError for a
    model that hides its output layer and ConfigError for one in shards that scales or caps its logits.
    """
    mask, layout = _prepare(model, rows)
    many = len(layout.targets) * vocabulary_size(model) > LOGITS_AT_ONCE and comes_in_parts(model)
    hidden = states_before_output(model, layout, required=states) if states or many else None
    if hidden is None:
        found = _score(layout.logits(model), layout.targets, temperature, entropies)
    else:
        found = _score_in_parts(model, hidden, layout.targets, temperature, entropies)
    spread = [_spread(values, layout, mask) for values in found]
    held = _spread(hidden, layout, mask) if states and hidden is not None else None
    return TokenScores(spread[0], mask, spread[1] if entropies else None, held)


def read_states(model: nn.Module, rows: Sequence[TokenRow]) -> States:
    """The hidden states that predict the following tokens of S rows, before the output layer.

    For losses over whole distributions, whose logits ``logits_of`` gives a few at a time. Raises DataError for a row
    without a prompt and ModelError for a model that hides its output layer.
    """
    mask, layout = _prepare(model, rows)
    hidden = states_before_output(model, layout, required=True)
    assert hidden is not None
    return States(_spread(hidden, layout, mask), mask)


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
    return torch.cat(in_parts(_target_logps, logits.shape[-1], logits, wanted)).view_as(targets)


def in_parts(work: Callable[..., T], vocabulary: int, *tensors: torch.Tensor) -> list[T]:
    """``work(*parts)`` of tensors ``[N, ...]`` cut alike, with at most ``LOGITS_AT_ONCE`` logits of N each time.

    Parts are computed again for the gradient: kept, what they make of their logits would be the whole after all.
    """
    rows = max(1, LOGITS_AT_ONCE // vocabulary)
    if len(tensors[0]) <= rows:
        return [work(*tensors)]
    parts = zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True)
    return [checkpoint(work, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]


def last_logits(model: nn.Module, count: int) -> dict[str, int]:
    """The argument that makes a model compute logits of its last ``count`` positions only; none where it cannot."""
    return {"logits_to_keep": count} if "logits_to_keep" in forward_arguments(model) else {}


def _prepare(model: nn.Module, rows: Sequence[TokenRow]) -> tuple[torch.Tensor, Layout]:
    """The loss mask fp32 ``[S, C]``, and how the rows are read to predict what counts."""
    counted = np.zeros((len(rows), max(len(row.token_ids) for row in rows)), dtype=np.float32)
    for place, row in enumerate(rows):
        if not len(row.prompt_ids):
            raise DataError(
                f"row {place} has no prompt, and its first token nothing to be predicted from. "
                "Begin it with the tokenizer's beginning-of-text or end-of-text token."
            )
        counted[place, : len(row.token_ids)] = row.mask
    layout = lay_out(model, rows, counted != 0)
    return torch.from_numpy(counted).to(layout.targets.device), layout


def _score(
    logits: torch.Tensor, targets: torch.Tensor, temperature: float, entropies: bool
) -> tuple[torch.Tensor, ...]:
    """Log-probabilities ``[n]`` of targets ``[n]`` under logits ``[n, V]``, and entropies ``[n]`` if asked for."""
    logits = _at_least_single(logits)
    if temperature != 1.0:
        logits = logits / temperature
    if not entropies:
        return (_target_logps(logits, targets),)
    logps = logits.log_softmax(-1)
    return logps.gather(-1, targets[:, None])[:, 0], -(logps.exp() * logps).sum(-1)


def _score_in_parts(
    model: nn.Module, hidden: torch.Tensor, targets: torch.Tensor, temperature: float, entropies: bool
) -> tuple[torch.Tensor, ...]:
    """The same from hidden states ``[N, H]``; no more than a part's logits exist at a time."""

    def score(hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return _score(logits_of(model, hidden), targets, temperature, entropies)

    parts = in_parts(score, vocabulary_size(model), hidden, targets)
    return tuple(torch.cat(values) for values in zip(*parts, strict=True))


def _target_logps(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return -F.cross_entropy(_at_least_single(logits), targets, reduction="none")


def _at_least_single(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _spread(values: torch.Tensor, layout: Layout, mask: torch.Tensor) -> torch.Tensor:
    """Values ``[N, ...]`` of the counted tokens at their places in ``[S, C, ...]``, 0 elsewhere."""
    rest = values.shape[1:]
    return values.new_zeros((mask.numel(), *rest)).index_copy(0, layout.slots, values).view(*mask.shape, *rest)
