"""Token documents as full windows of one length: no padding, and no document sees another.

A document is framed by what it begins from (the tokenizer's opening token or, without one, end-of-text: as an empty
prompt does) and by end-of-text, with which it closes. Each of its tokens but the first is predicted from those before
it, so n tokens of text make n + 1 predictions, and nothing is ever predicted across a boundary. Windows are cut from
these predictions, laid end to end. Where a document begins inside a window its positions begin at 0 again; most
architectures of transformers (GPT-2, Llama and their kin, not OPT, BLOOM, Falcon, MPT, BioGPT, Mamba) then keep
attention inside the document by themselves, given ``attention_mask=None`` and ``use_cache=False`` (a cache switches
that off). ``evaluate.perplexity.keeps_apart`` finds out whether one does.
Shape letters: B windows, T tokens of a window, D documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from loopwise.data.batches import MixtureBatch
from loopwise.errors import DataError
from loopwise.runtime import seed_key


@dataclass(frozen=True)
class Windows:
    """``input_ids`` and ``targets`` int64 ``[B, T]``: at each place the target is the token that comes next.

    ``position_ids`` int64 ``[B, T]``, or None where no document begins inside a window: plain causal attention is then
    right, and faster.
    """

    input_ids: np.ndarray
    targets: np.ndarray
    position_ids: np.ndarray | None


def frame(
    tokens: Sequence[int] | np.ndarray,
    end: int | None,
    begin: int | None = None,
    *,
    opens: bool = True,
    closes: bool = True,
) -> np.ndarray:
    """A document's tokens between ``begin`` (default: ``end``) and ``end``, the end-of-text: int32, up to two longer.

    A text cut out of a longer one has no boundary where it was cut: there ``opens`` or ``closes`` is false. Without
    ``end`` (None) nothing closes a document; without either, its first token is never predicted.
    """
    first = end if begin is None else begin
    opening, closing = ([] if boundary is None else [boundary] for boundary in (first, end))
    parts = [opening if opens else [], tokens, closing if closes else []]
    return np.concatenate([np.asarray(part, dtype=np.int32) for part in parts])


@dataclass(frozen=True)
class _Predictions:
    """The predictions of all documents, end to end. ``tokens`` int32 holds the framed documents, one after the other;
    document d makes the predictions from ``starts[d]`` on (int64 ``[D]``), one less than it has tokens.
    ``given`` int64 ``[D]`` is its place among those given, of which some may be too short to predict anything.
    """

    tokens: np.ndarray
    starts: np.ndarray
    given: np.ndarray

    @staticmethod
    def of(documents: Sequence[np.ndarray], place: str) -> _Predictions:
        given = np.array([place for place, document in enumerate(documents) if len(document) > 1], dtype=np.int64)
        counts = np.array([len(documents[place]) - 1 for place in given], dtype=np.int64)
        if not len(given):
            raise DataError(
                f"{place} has {len(documents)} documents of less than two tokens: nothing to predict. Add text."
            )
        tokens = np.concatenate([documents[place] for place in given]).astype(np.int32, copy=False)
        return _Predictions(tokens, np.cumsum(counts) - counts, given)

    def __len__(self) -> int:
        return len(self.tokens) - len(self.starts)

    def at(self, places: np.ndarray) -> tuple[Windows, np.ndarray]:
        """The windows of the predictions at ``places`` int64 ``[B, T]``, and each one's document."""
        document = np.searchsorted(self.starts, places, side="right") - 1
        token = places + document
        columns = np.broadcast_to(np.arange(places.shape[1]), places.shape)
        # A document that began before the window goes on at its left edge from position 0, like one that begins there.
        positions = np.minimum(columns, places - self.starts[document])
        windows = Windows(
            self.tokens[token].astype(np.int64),
            self.tokens[token + 1].astype(np.int64),
            None if (positions == columns).all() else positions,
        )
        return windows, self.given[document]


@dataclass(frozen=True)
class Packed:
    """Training windows of ``window`` tokens. Made by ``pack``.

    The predictions form a ring, of which an epoch is one turn from a random place, cut into ``windows`` windows; the
    less than one window left over is elsewhere each epoch.
    """

    predictions: _Predictions
    window: int

    @property
    def documents(self) -> int:
        """Documents that are packed; windows of a single one have nothing to keep apart."""
        return len(self.predictions.starts)

    @property
    def windows(self) -> int:
        """Windows of an epoch: the same in every one."""
        return len(self.predictions) // self.window

    @property
    def tokens(self) -> int:
        """Predictions of the whole text, each with its own target."""
        return len(self.predictions)

    def batch(self, seed: int, epoch: int | np.ndarray, indices: np.ndarray) -> Windows:
        """The windows ``indices`` (int64 ``[B]``, below ``windows``) of an epoch, or of one epoch each (``[B]``).

        A pure function of its arguments: where an epoch begins depends on seed and epoch alone.
        """
        epochs = np.broadcast_to(epoch, indices.shape)
        first = {int(e): seed_key("offset", seed, int(e)) % len(self.predictions) for e in np.unique(epochs)}
        begins = np.array([first[int(e)] for e in epochs], dtype=np.int64) + indices * self.window
        return self.predictions.at((begins[:, None] + np.arange(self.window)) % len(self.predictions))[0]


def pack(documents: Sequence[np.ndarray], window: int, place: str = "the text") -> Packed:
    """Lay framed documents (each from ``frame``) end to end, to be cut into windows of ``window`` tokens.

    Raises DataError, beginning with ``place``, where they do not fill a single window.
    """
    predictions = _Predictions.of(documents, place)
    if len(predictions) < window:
        raise DataError(
            f"{place} makes {len(predictions)} tokens to predict, less than one window of {window}. "
            "Lower update.window, or add text."
        )
    return Packed(predictions, window)


def gather(sources: Sequence[Packed], rows: MixtureBatch, seed: int) -> Windows:
    """The windows that ``mixture_batch`` drew from several sources, in its order. All have the same length.

    >>> from loopwise.data.batches import mixture_batch
    >>> plays, poems = (pack([frame(range(100), end=0)], window=8) for _ in range(2))
    >>> rows = mixture_batch([plays.windows, poems.windows], [3, 1], batch_size=4, seed=0, step=0)
    >>> gather([plays, poems], rows, seed=0).input_ids.shape
    (4, 8)
    """
    shape = (len(rows.source), sources[0].window)
    inputs, targets = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.int64)
    positions = np.broadcast_to(np.arange(shape[1]), shape).copy()
    restarts = False
    for place in np.unique(rows.source):
        own = np.flatnonzero(rows.source == place)
        drawn = sources[place].batch(seed, rows.epoch[own], rows.index[own])
        inputs[own], targets[own] = drawn.input_ids, drawn.targets
        if drawn.position_ids is not None:
            positions[own] = drawn.position_ids
            restarts = True
    return Windows(inputs, targets, positions if restarts else None)


@dataclass(frozen=True)
class HeldOut:
    """Windows over everything held out, in order, without overlap: every prediction exactly once. The last one holds
    what is left and may be shorter. Made by ``evaluation_windows``."""

    predictions: _Predictions
    window: int

    @property
    def documents(self) -> int:
        """Documents that are packed."""
        return len(self.predictions.starts)

    @property
    def tokens(self) -> int:
        """How many tokens are predicted: of every document all but the first of its framed tokens."""
        return len(self.predictions)

    def batches(self, size: int) -> Iterator[tuple[Windows, np.ndarray]]:
        """At most ``size`` windows at a time (the shorter last one alone), with the place of the document that each
        prediction belongs to: int64 ``[B, T]``, closing end-of-text included."""
        full = self.tokens // self.window
        for first in range(0, full, size):
            begins = np.arange(first, min(first + size, full)) * self.window
            yield self.predictions.at(begins[:, None] + np.arange(self.window))
        if self.tokens % self.window:
            yield self.predictions.at(np.arange(full * self.window, self.tokens)[None])


def evaluation_windows(documents: Sequence[np.ndarray], window: int, place: str = "the text") -> HeldOut:
    """Windows that predict every token of framed documents once.

    Raises DataError, beginning with ``place``, where there is nothing to predict.

    A text framed with ``opens=False, closes=False`` gives the windows of nanoGPT's evaluation: inputs
    ``[i T, (i + 1) T)`` and targets one further on. Bits per byte are the summed nats, divided by log 2 and by the
    bytes of the documents; of a text without an opening token the first token is in the bytes alone.
    """
    return HeldOut(_Predictions.of(documents, place), window)
