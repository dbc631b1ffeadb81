"""Prefix trees packed in one row, and the few calls in which all of it is attended to.

The row is ``[stem 1 | stem 2 | ... | branch | branch | ...]``: every prompt once, then what continues those that
several rows share. A token sees its stem and its own branch up to itself, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

_WASTE = 1.34
"""Padded scores of a piece for each real one, at most..."""
_SMALL = 2**16
"""... unless there are fewer than this: a call costs more."""
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Stretch:
    """Neighbouring tokens ``[start, start + length)`` of the row."""

    start: int
    length: int


@dataclass(frozen=True)
class Tree:
    """A prompt and the completions that share it; side by side, branches are one stretch, too."""

    stem: Stretch
    branches: tuple[Stretch, ...] = ()

    @property
    def crown(self) -> Stretch:
        """All branches."""
        return Stretch(self.branches[0].start, sum(branch.length for branch in self.branches))


@dataclass(frozen=True)
class Span:
    """``count`` stretches of up to ``length`` tokens, taken from a row as ``[count, heads, length, ...]``.

    Equal neighbours are a view of the row. Others are gathered by ``index`` ``[count, length]``, which repeats the last
    token of shorter ones; ``real`` (same shape) is False there, None where nothing is repeated.
    """

    start: int
    count: int
    length: int
    index: torch.Tensor | None = None
    real: torch.Tensor | None = None

    @staticmethod
    def of(stretches: Sequence[Stretch], device: torch.device) -> Span:
        first, length = stretches[0].start, max(stretch.length for stretch in stretches)
        if all(s.length == length and s.start == first + place * length for place, s in enumerate(stretches)):
            return Span(first, len(stretches), length)
        starts = np.array([stretch.start for stretch in stretches])[:, None]
        lengths = np.array([stretch.length for stretch in stretches])[:, None]
        columns = np.arange(length)[None]
        index = torch.from_numpy(starts + np.minimum(columns, lengths - 1)).to(device)
        real = None if (lengths == length).all() else torch.from_numpy(columns < lengths).to(device)
        return Span(first, len(stretches), length, index, real)

    def take(self, row: torch.Tensor) -> torch.Tensor:
        """``[count, heads, length, ...]`` of a row ``[T, heads, ...]``."""
        if self.index is not None:
            return row[self.index].transpose(1, 2)
        return self._view(row).transpose(1, 2)

    def take_gradient(self, row: torch.Tensor) -> torch.Tensor:
        """The same with 0 where a token is only repeated."""
        part = self.take(row)
        return part if self.real is None else part * self.real[:, None, :, None]

    def put(self, row: torch.Tensor, part: torch.Tensor, *, add: bool = False) -> None:
        """Write (or add) ``[count, heads, length, ...]`` to the tokens of a row ``[T, heads, ...]``."""
        part = part.transpose(1, 2)
        if self.index is None:
            self._view(row).add_(part) if add else self._view(row).copy_(part)
            return
        index, part = (self.index, part) if self.real is None else (self.index[self.real], part[self.real])
        # Each token is in one stretch, so none is added to twice.
        row[index] = row[index] + part if add else part

    def _view(self, row: torch.Tensor) -> torch.Tensor:
        # Only the first dimension is cut in two, so this never copies.
        return row[self.start : self.start + self.count * self.length].view(self.count, self.length, *row.shape[1:])


@dataclass(frozen=True)
class Piece:
    """Queries and the keys they see, in one call: causal among themselves, or all keys that ``mask`` leaves."""

    queries: Span
    keys: Span
    causal: bool
    mask: torch.Tensor | None

    def forward(self, rows: Sequence[torch.Tensor], scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Output ``[count, heads, queries, D]`` and log of the softmax's sum ``[count, heads, queries]``."""
        query, key, value = (span.take(row) for span, row in zip(self.spans, rows, strict=True))
        output, logsumexp = _flash(query, key, value, 0.0, self.causal, attn_mask=self._bias(query), scale=scale)
        return output, logsumexp

    def backward(
        self,
        gradient: torch.Tensor,
        rows: Sequence[torch.Tensor],
        output: torch.Tensor,
        sums: torch.Tensor,
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradients of this piece's queries, keys and values, given the row's merged ``output`` and ``sums``."""
        query, key, value = (span.take(row) for span, row in zip(self.spans, rows, strict=True))
        out, logsumexp = self.queries.take(output), self.queries.take(sums).contiguous()
        given = self.queries.take_gradient(gradient)
        bias = self._bias(query)
        found = _flash_backward(given, query, key, value, out, logsumexp, 0.0, self.causal, attn_mask=bias, scale=scale)
        return found[0], found[1], found[2]

    @property
    def spans(self) -> tuple[Span, Span, Span]:
        return self.queries, self.keys, self.keys

    def _bias(self, query: torch.Tensor) -> torch.Tensor | None:
        if self.mask is None:
            return None
        bias = torch.zeros(self.mask.shape, dtype=query.dtype).masked_fill_(~self.mask, float("-inf"))
        return bias[:, None, None].expand(-1, 1, query.shape[2], -1)


@dataclass(frozen=True, eq=False)
class Forest:
    """Trees packed in one row of ``length`` tokens, and how to attend to them piece by piece."""

    trees: tuple[Tree, ...]
    length: int
    device: torch.device

    @cached_property
    def own(self) -> list[Piece]:
        """Every stem and every branch, causal in itself: together they write each token of the row once."""
        stems = [tree.stem for tree in self.trees]
        branches = [branch for tree in self.trees for branch in tree.branches]
        pairs = ([(stretch, stretch) for stretch in part] for part in (stems, branches))
        return [piece for part in pairs for piece in self._pieces(part, causal=True)]

    @cached_property
    def across(self) -> list[Piece]:
        """Branches looking at their stem."""
        return self._pieces([(tree.crown, tree.stem) for tree in self.trees if tree.branches], causal=False)

    def dense(self, index: torch.Tensor) -> torch.Tensor:
        """Which of the tokens ``index`` ``[..., L]`` sees which: bool ``[..., L, L]``."""
        tree, branch, place = (label[index] for label in self._labels)
        query, key = (..., slice(None), None), (..., None, slice(None))
        related = (branch[key] == branch[query]) | (branch[key] == -1)
        return (tree[query] == tree[key]) & related & (place[key] <= place[query])

    @cached_property
    def whole(self) -> list[Span]:
        """Trees as spans of stem and branches, similar sizes together, for attention that takes a mask."""
        found = []
        for group in _similar([(self._tokens(tree), self._tokens(tree)) for tree in self.trees], len):
            length = max(len(tokens) for tokens, _ in group)
            index = np.array([[*tokens, *[tokens[-1]] * (length - len(tokens))] for tokens, _ in group])
            real = np.arange(length) < np.array([[len(tokens)] for tokens, _ in group])
            tensors = (torch.from_numpy(array).to(self.device) for array in (index, real))
            found.append(Span(0, len(group), length, *tensors))
        return found

    @cached_property
    def _labels(self) -> tuple[torch.Tensor, ...]:
        labels = np.full((3, self.length), -1)
        for number, tree in enumerate(self.trees):
            for place, stretch in enumerate((tree.stem, *tree.branches)):
                start = 0 if place == 0 else tree.stem.length
                columns = slice(stretch.start, stretch.start + stretch.length)
                labels[0, columns], labels[1, columns] = number, place - 1
                labels[2, columns] = np.arange(start, start + stretch.length)
        return tuple(torch.from_numpy(labels).to(self.device))

    def _pieces(self, pairs: Iterable[tuple[Stretch, Stretch]], *, causal: bool) -> list[Piece]:
        found = []
        for group in _similar([pair for pair in pairs if pair[0].length], lambda stretch: stretch.length):
            queries, keys = (Span.of(side, self.device) for side in zip(*group, strict=True))
            found.append(Piece(queries, keys, causal, None if causal else keys.real))
        return found

    @staticmethod
    def _tokens(tree: Tree) -> list[int]:
        parts = (tree.stem, *tree.branches)
        return [token for part in parts for token in range(part.start, part.start + part.length)]


def _similar(pairs: list[tuple[Any, Any]], size: Callable[[Any], int]) -> list[list[tuple[Any, Any]]]:
    """Pairs of queries and keys to pad together: few calls, little padding."""
    groups: list[list[tuple[Any, Any]]] = []
    queries = keys = real = 0
    for pair in sorted(pairs, key=lambda pair: (size(pair[1]), size(pair[0]))):
        many, seen = size(pair[0]), size(pair[1])
        area = (len(groups[-1]) + 1 if groups else 1) * max(queries, many) * max(keys, seen)
        if groups and (area <= _SMALL or area <= _WASTE * (real + many * seen)):
            groups[-1].append(pair)
            queries, keys, real = max(queries, many), max(keys, seen), real + many * seen
        else:
            groups.append([pair])
            queries, keys, real = many, seen, many * seen
    return groups
