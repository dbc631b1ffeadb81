"""Keys and values of rows that share prompts, in memory taken ahead, and the attention over them.

Shapes: P prompts (groups), T tokens of the longest prompt, S rows, G rows of the largest group, H query heads, h heads
of keys and values, C columns that memory is taken for, D numbers a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

SPARE = 64
"""Columns that memory is taken for at first; whenever they are full, for twice as many."""


@dataclass
class _Layer:
    """Keys and values of one layer: of rows ``[S, h, C, D]`` and, where shared, of prompts ``[P, h, T, D]``."""

    rows: tuple[torch.Tensor, torch.Tensor]
    prompts: tuple[torch.Tensor, torch.Tensor] | None


@dataclass(frozen=True)
class _Pass:
    """A forward pass over prompts: ``places`` of their keys and values, and the prompt that goes to each (``sources``).

    ``sources`` is None where each prompt goes to one place, in order.
    """

    places: torch.Tensor | slice
    sources: torch.Tensor | None
    mask: torch.Tensor | None


class PrefixCache:
    """What a transformers model takes for its cache. Prompts are read first, then one column of all rows at a time.

    With ``share`` the prompt of a group is kept once; without, each row's own memory begins with its prompt.
    """

    is_compileable = False

    def __init__(self, lengths: Sequence[int], owners: np.ndarray, max_tokens: int, device: torch.device, share: bool):
        """``owners`` int ``[S]``: the prompt of each row. ``lengths`` ``[P]`` of the prompts, in tokens."""
        self._share, self._device, self._owners = share, device, owners
        self._width = max(lengths)
        self._filled = 0 if share else self._width
        self._most = self._filled + max_tokens
        self._layers: dict[int, _Layer] = {}
        self._pass: _Pass | None = None
        self._current = 0
        self._seen = self._without_padding(np.array(lengths))
        self._arrange()

    # What models ask of their cache.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns that were read before this forward pass."""
        if self._pass is not None:
            return 0
        return self._filled - 1 + (self._width if self._share else 0)

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """The column that this forward pass begins at."""
        return self.get_seq_length()

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """The columns of a mask, and the first of them."""
        return self.get_seq_length() + query_length, 0

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in a layer's keys and values ``[B, h, tokens, D]`` and give them back; ``attend`` does the rest."""
        self._current = layer_idx
        layer = self._layers.get(layer_idx) or self._allocate(layer_idx, key, value)
        given = self._pass
        if given is None:
            for kept, new in zip(layer.rows, (key, value), strict=True):
                kept[: len(new), :, self._filled - 1] = new[:, :, 0]
            return key, value
        columns = slice(self._width - key.shape[2], self._width)
        for kept, new in zip(layer.prompts or layer.rows, (key, value), strict=True):
            new = new.to(kept.dtype)
            kept[given.places, :, columns] = new if given.sources is None else new.index_select(0, given.sources)
        return key, value

    # What the rows do with it.

    def open_prompts(self, places: Sequence[int], real: torch.Tensor | None) -> None:
        """The next forward pass reads the prompts at ``places``; ``real`` bool ``[B, tokens]`` is False at padding."""
        if self._share:
            sources, targets = None, np.array(places)
        else:
            order = {place: source for source, place in enumerate(places)}
            targets = np.flatnonzero(np.isin(self._owners, places))
            sources = self._index(np.array([order[owner] for owner in self._owners[targets].tolist()]))
        mask = None
        if real is not None:
            length = real.shape[1]
            causal = torch.ones(length, length, dtype=torch.bool, device=self._device).tril()
            # Padding sees itself: a query without any key has no softmax, and its NaN would spread.
            itself = torch.eye(length, dtype=torch.bool, device=self._device)
            mask = (causal & real[:, None, None, :]) | itself
        ordered = bool((np.diff(targets) == 1).all())
        where = slice(int(targets[0]), int(targets[-1]) + 1) if ordered else self._index(targets)
        self._pass = _Pass(where, sources, mask)

    def open_column(self) -> None:
        """The next forward pass reads one token more of each row."""
        self._pass = None
        self._filled += 1
        for layer in self._layers.values():
            if layer.rows[0].shape[2] < self._filled:
                self._grow(layer)

    def keep(self, kept: np.ndarray) -> None:
        """Go on with the rows ``kept``, in that order. Only rows whose place changes are copied."""
        self._move([tensor[:, :, : self._filled] for layer in self._layers.values() for tensor in layer.rows], kept)
        self._owners = self._owners[kept]
        if self._share:
            self._close_groups()
        elif self._seen is not None:
            self._seen = self._seen.index_select(0, self._index(kept))
        self._arrange()

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        """Attention of the layer updated last: queries ``[B, H, tokens, D]`` to outputs ``[B, tokens, H, D]``."""
        if self._pass is not None:
            mask = self._pass.mask
            shared_heads = query.shape[1] != key.shape[1]
            output = F.scaled_dot_product_attention(
                query, key, value, mask, is_causal=mask is None, scale=scale, enable_gqa=shared_heads
            )
            return output.transpose(1, 2)
        layer = self._layers[self._current]
        rows, heads, _, size = query.shape
        key, value = (tensor[:rows, :, : self._filled] for tensor in layer.rows)
        # Query heads that share keys are so many queries more of one head.
        query = query.reshape(rows, key.shape[1], -1, size)
        if layer.prompts is None:
            mask = None if self._seen is None else self._seen[..., : self._filled]
            output = F.scaled_dot_product_attention(query, key, value, mask, scale=scale)
        else:
            output = self._attend_apart(query * scale, layer.prompts, (key, value))
        return output.reshape(rows, 1, heads, -1)

    def _attend_apart(
        self, query: torch.Tensor, prompts: tuple[torch.Tensor, torch.Tensor], own: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Queries ``[S, h, q, D]`` to outputs of that shape: one softmax over the prompt's scores and the row's own."""
        groups = self._groups
        key, value = (tensor[:groups] for tensor in prompts)
        own_scores = query @ own[0].transpose(2, 3)
        grouped, own_scores = (self._by_group(tensor) for tensor in (query, own_scores))
        queries = grouped.shape[2] * grouped.shape[3]
        scores = grouped.reshape(groups, -1, queries, grouped.shape[-1]) @ key.transpose(2, 3)
        if self._seen is not None:
            scores = scores.masked_fill(~self._seen, -torch.inf)
        scores = torch.cat([scores.view(*own_scores.shape[:-1], -1), own_scores], dim=-1)
        weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
        output = weights[..., : self._width].flatten(2, 3) @ value
        output = self._by_row(output.view(*own_scores.shape[:-1], -1))
        own_weights = self._by_row(weights[..., self._width :])
        return output + own_weights @ own[1]

    def _by_group(self, tensor: torch.Tensor) -> torch.Tensor:
        """``[S, h, q, ...]`` to ``[P, h, G, q, ...]``; the places that a smaller group leaves empty repeat a row."""
        tensor = tensor if self._rows_of_slots is None else tensor[self._rows_of_slots]
        return tensor.reshape(self._groups, self._size, *tensor.shape[1:]).transpose(1, 2)

    def _by_row(self, tensor: torch.Tensor) -> torch.Tensor:
        """``[P, h, G, q, ...]`` to ``[S, h, q, ...]``."""
        tensor = tensor.transpose(1, 2).flatten(0, 1)
        return tensor if self._slots_of_rows is None else tensor[self._slots_of_rows]

    def _close_groups(self) -> None:
        """Leave out the prompts whose rows are all gone."""
        living = closed_up(np.bincount(self._owners, minlength=self._groups) > 0)
        if len(living) == self._groups:
            return
        self._move([tensor for layer in self._layers.values() for tensor in layer.prompts or ()], living)
        if self._seen is not None:
            self._seen = self._seen.index_select(0, self._index(living))
        renamed = np.zeros(self._groups, dtype=np.int64)
        renamed[living] = np.arange(len(living))
        self._owners = renamed[self._owners]

    def _arrange(self) -> None:
        """Give each row a place in its group."""
        counts = np.bincount(self._owners)
        self._groups, self._size = len(counts), int(counts.max())
        order = np.argsort(self._owners, kind="stable")
        ranks = np.arange(len(order)) - (counts.cumsum() - counts)[self._owners[order]]
        slots = np.empty_like(order)
        slots[order] = self._owners[order] * self._size + ranks
        self._rows_of_slots = self._slots_of_rows = None
        if self._share and not np.array_equal(slots, np.arange(self._groups * self._size)):
            rows = np.zeros(self._groups * self._size, dtype=np.int64)
            rows[slots] = np.arange(len(slots))
            self._rows_of_slots, self._slots_of_rows = self._index(rows), self._index(slots)

    def _without_padding(self, lengths: np.ndarray) -> torch.Tensor | None:
        """Which columns hold a token: bool ``[P, 1, 1, T]``, or ``[S, 1, 1, columns]`` where rows have all of them."""
        if (lengths == self._width).all():
            return None
        lengths = lengths if self._share else lengths[self._owners]
        columns = np.arange(self._width if self._share else self._most)
        return self._index(columns >= self._width - lengths[:, None])[:, None, None]

    def _allocate(self, layer_idx: int, key: torch.Tensor, value: torch.Tensor) -> _Layer:
        kind = self._device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else key.dtype
        columns = min(self._most, self._filled + SPARE)

        def take(count: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
            # What padding hides counts 0 times, but what happens to lie in memory may be NaN, which stays NaN.
            fill = torch.empty if self._seen is None else torch.zeros
            found = [
                fill(count, tensor.shape[1], length, tensor.shape[3], dtype=dtype, device=tensor.device)
                for tensor in (key, value)
            ]
            return found[0], found[1]

        layer = _Layer(take(len(self._owners), columns), take(self._groups, self._width) if self._share else None)
        self._layers[layer_idx] = layer
        return layer

    def _grow(self, layer: _Layer) -> None:
        columns = min(self._most, 2 * self._filled)
        grown = []
        for tensor in layer.rows:
            larger = tensor.new_empty(len(self._owners), tensor.shape[1], columns, tensor.shape[3])
            larger[:, :, : tensor.shape[2]] = tensor[: len(self._owners)]
            grown.append(larger)
        layer.rows = grown[0], grown[1]

    def _index(self, places: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(places).to(self._device)

    def _move(self, tensors: Sequence[torch.Tensor], kept: np.ndarray) -> None:
        """In each of ``tensors``, put what is at ``kept`` at 0, 1, 2, ..."""
        moved = np.flatnonzero(kept != np.arange(len(kept)))
        if len(moved):
            to, origin = self._index(moved), self._index(kept[moved])
            for tensor in tensors:
                tensor[to] = tensor.index_select(0, origin)


def closed_up(going: np.ndarray) -> np.ndarray:
    """The places that go on (bool ``[S]``), those at the end moved up into the gaps: few of them change places."""
    count = int(going.sum())
    kept = np.arange(count)
    kept[~going[:count]] = count + np.flatnonzero(going[count:])
    return kept
