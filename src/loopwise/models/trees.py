"""How rows of prompt and completion are laid out for a model: as prefix trees in one row, or padded."""

from __future__ import annotations

import contextlib
import functools
import inspect
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from loopwise.models.forest import Forest, Stretch, Tree
from loopwise.models.tree_attention import TreeMask

if TYPE_CHECKING:
    from loopwise.models.logps import TokenRow

_WORTHWHILE = 0.05
"""Share of a group's tokens that must be saved by reading its prompt once: attention in two parts costs a little."""
_WINDOWS = ("sliding_window", "attention_chunk_size")
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
_COARSE = 0.05
"""Largest difference between logits of both layouts, as a share of the largest logit; of half precisions the second."""
_PROBED: weakref.WeakKeyDictionary[nn.Module, str | None] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Layout:
    """N predicted tokens of S rows in what a model reads: ``input_ids`` int64 ``[B, T]``.

    ``predicting`` ``[N]`` is the place in the flattened ``[B * T]`` that predicts each token, ``targets`` ``[N]`` the
    token and ``slots`` ``[N]`` its place in a flattened ``[S * C]``, C the longest completion.
    """

    input_ids: torch.Tensor
    predicting: torch.Tensor
    targets: torch.Tensor
    slots: torch.Tensor
    position_ids: torch.Tensor | None = None
    mask: TreeMask | None = None

    @property
    def inputs(self) -> dict[str, Any]:
        """Arguments of the model's forward pass."""
        placed = {"position_ids": self.position_ids, "attention_mask": self.mask}
        return {"input_ids": self.input_ids, "use_cache": False} | {k: v for k, v in placed.items() if v is not None}

    def logits(self, model: nn.Module) -> torch.Tensor:
        """The model's own logits ``[N, V]``; its output layer reads as few positions as it can be told to."""
        told = "logits_to_keep" in forward_arguments(model)
        rows, columns = self.predicting // self.input_ids.shape[1], self.predicting % self.input_ids.shape[1]
        kept: dict[str, Any] = {}
        if told and self.mask is not None:
            chosen: torch.Tensor = model(**self.inputs, logits_to_keep=columns).logits[0]
            return chosen
        if told and len(columns):
            # The last positions are all that every model can be told of.
            first = int(columns.min())
            kept, columns = {"logits_to_keep": self.input_ids.shape[1] - first}, columns - first
        found: torch.Tensor = model(**self.inputs, **kept).logits
        return found[rows, columns]


def lay_out(model: nn.Module, rows: Sequence[TokenRow], counted: np.ndarray) -> Layout:
    """The fastest layout that ``model`` can read. ``counted`` bool ``[S, C]`` says which tokens are to be predicted."""
    device = next(model.parameters()).device
    if why_not_shared(model, max(row.total_tokens for row in rows)) is None:
        return tree_layout(rows, counted, device)
    return padded_layout(rows, counted, device)


def padded_layout(rows: Sequence[TokenRow], counted: np.ndarray, device: torch.device) -> Layout:
    """Every row by itself, padded on the right, where causal attention cannot see: no mask is needed."""
    # Nothing is predicted from a row's last token, so it is not read.
    length = max(row.total_tokens for row in rows) - 1
    read = np.zeros((len(rows), length), dtype=np.int64)
    for place, row in enumerate(rows):
        ids = (*row.prompt_ids, *row.token_ids)
        read[place, : len(ids) - 1] = ids[:-1]
    starts = np.array([len(row.prompt_ids) - 1 for row in rows]) + length * np.arange(len(rows))
    predicting = starts[:, None] + np.arange(counted.shape[1])
    return Layout(torch.from_numpy(read).to(device), *_wanted(rows, counted, predicting, device))


def tree_layout(rows: Sequence[TokenRow], counted: np.ndarray, device: torch.device) -> Layout:
    """One row without padding: first every prompt, once, then what continues those that several rows share.

    A row whose prompt no other has is a stem without branches.
    """
    forest, stems, leaves = _plant(rows, device)
    read, positions = np.empty((2, 1, forest.length), dtype=np.int64)
    for row, stem, leaf in zip(rows, stems, leaves, strict=True):
        prompt, continued = len(row.prompt_ids), row.token_ids[:-1]
        read[0, stem : stem + prompt] = row.prompt_ids
        read[0, leaf : leaf + len(continued)] = continued
        positions[0, stem : stem + prompt] = np.arange(prompt)
        positions[0, leaf : leaf + len(continued)] = np.arange(prompt, prompt + len(continued))
    predicting = leaves[:, None] + np.arange(-1, counted.shape[1] - 1)
    predicting[:, :1] = stems[:, None] + [[len(row.prompt_ids) - 1] for row in rows]
    input_ids, position_ids = (torch.from_numpy(array).to(device) for array in (read, positions))
    wanted = _wanted(rows, counted, predicting, device)
    return Layout(input_ids, *wanted, position_ids=position_ids, mask=TreeMask.of(forest))


def _plant(rows: Sequence[TokenRow], device: torch.device) -> tuple[Forest, np.ndarray, np.ndarray]:
    """The forest, and where each row's prompt and what is read of its completion begin, int64 ``[S]`` each."""
    # Nothing is predicted from a row's last token, so it is not read.
    continued = [max(0, len(row.token_ids) - 1) for row in rows]
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(tuple(row.prompt_ids), []).append(place)
    shapes: list[tuple[int, list[int], list[int]]] = []
    for prompt, places in groups.items():
        places.sort(key=continued.__getitem__)
        branches = [continued[place] for place in places]
        if (len(places) - 1) * len(prompt) >= _WORTHWHILE * (len(places) * len(prompt) + sum(branches)):
            shapes.append((len(prompt), branches, places))
        else:
            shapes += [(len(prompt) + length, [], [place]) for place, length in zip(places, branches, strict=True)]
    # Equal shapes side by side are attended to without copying.
    shapes.sort(key=lambda shape: (shape[0], sum(shape[1]), shape[1]))
    stems, leaves = np.zeros((2, len(rows)), dtype=np.int64)
    trees, end = [], 0
    for length, _, places in shapes:
        stems[places] = end
        leaves[places] = end + len(rows[places[0]].prompt_ids)
        trees.append(Tree(Stretch(end, length)))
        end += length
    for number, (_, branches, places) in enumerate(shapes):
        stretches = []
        for place, length in zip(places, branches, strict=False):
            leaves[place] = end
            stretches.append(Stretch(end, length))
            end += length
        trees[number] = Tree(trees[number].stem, tuple(stretch for stretch in stretches if stretch.length))
    return Forest(tuple(trees), end, device), stems, leaves


def _wanted(
    rows: Sequence[TokenRow], counted: np.ndarray, predicting: np.ndarray, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``predicting``, ``targets`` and ``slots`` of a layout, of the tokens that count."""
    targets = np.zeros(counted.shape, dtype=np.int64)
    for place, row in enumerate(rows):
        targets[place, : len(row.token_ids)] = row.token_ids
    slots = np.flatnonzero(counted)
    chosen = (predicting.reshape(-1)[slots], targets.reshape(-1)[slots], slots)
    first, second, third = (torch.from_numpy(array).to(device) for array in chosen)
    return first, second, third


def why_not_shared(model: nn.Module, longest: int = 0) -> str | None:
    """Why the completions of a prompt cannot share it in this model; None where they can.

    ``longest`` is the number of tokens, prompt included, of the longest row to be read with others: one that reaches
    beyond a model's window sends all of them to padded batches. The rest is found out once for each module, on a few
    tokens: both layouts must give the same logits, and every layer must have attended through the trees.
    """
    implementation = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if implementation != "sdpa":
        return f'its attention is computed by "{implementation}"; prompts are shared in "sdpa" only'
    missing = [name for name in ("position_ids", "attention_mask") if name not in forward_arguments(model)]
    if missing:
        return f"its forward pass takes no {missing[0]}"
    if model not in _PROBED:
        _PROBED[model] = _probe(model)
    # A row's last token is not read.
    if _PROBED[model] is None and longest - 1 > _window(model):
        return f"rows of up to {longest} tokens exceed the {_window(model):.0f} its attention looks back on"
    return _PROBED[model]


def _probe(model: Any) -> str | None:
    """Read three short rows both ways. What goes wrong with the trees is an answer, not an error."""
    from loopwise.models.logps import TokenRow

    vocabulary, device = vocabulary_size(model), next(model.parameters()).device
    ids = [(7 * place + 3) % vocabulary for place in range(11)]
    rows = [TokenRow(ids[:2], ids[2:5]), TokenRow(ids[:2], ids[5:7]), TokenRow(ids[7:8], ids[8:11])]
    counted = np.array([[1, 1, 1], [1, 1, 0], [1, 1, 1]], dtype=bool)
    layout = tree_layout(rows, counted, device)
    assert layout.mask is not None
    with evaluating(model), torch.no_grad(), torch.autocast(device.type, enabled=False):
        expected = padded_layout(rows, counted, device).logits(model)
        try:
            found = layout.logits(model)
        except Exception as error:  # whatever a foreign model raises on a layout it was not made for
            return f"its forward pass refuses a packed row ({type(error).__name__}: {error})"
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", layout.mask.calls)
    if layout.mask.unfolded or layout.mask.calls != layers:
        return f"{layout.mask.calls} of its {layers} layers attend by scaled_dot_product_attention with the mask given"
    difference, largest = float((found - expected).abs().max()), float(expected.abs().max())
    if difference > _TOLERANCES.get(expected.dtype, _COARSE) * largest:
        return f"logits of a packed row differ by {difference:.2g} from those of rows by themselves"
    return None


def _window(model: Any) -> float:
    """Tokens that attention looks back on; infinite where it sees everything."""
    config = model.config.get_text_config()
    return min((size for name in _WINDOWS if (size := getattr(config, name, None))), default=float("inf"))


def vocabulary_size(model: Any) -> int:
    """Entries of the distribution that a model gives of each token."""
    return int(model.config.get_text_config().vocab_size)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout; afterwards every part is in the mode it was in."""
    training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def forward_arguments(model: nn.Module) -> frozenset[str]:
    """Names of the arguments of a model's forward pass."""
    return _arguments(type(model).forward)


@functools.cache
def _arguments(function: Any) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
