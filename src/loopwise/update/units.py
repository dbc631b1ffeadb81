"""How a batch is cut into forward passes: the fixed units of work that ranks share and gradients are summed in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from loopwise.models.logps import TokenRow

_PASS = 64
"""Tokens that take about as long as what a forward and backward pass costs besides its tokens."""


@dataclass(frozen=True)
class _Bundle:
    """Rows (by position) that stay together, and the tokens of the longest."""

    rows: list[int]
    length: int


def work_units(rows: Sequence[TokenRow], tokens_per_pass: int) -> list[list[int]]:
    """Positions of rows, cut into forward passes; the passes with the longest rows come first.

    A pass holds at most ``tokens_per_pass`` tokens as padded rows; a single longer row is a pass by itself. Rows of one
    prompt stay together, so that they can share it, unless they alone are too many. Of all cuts between bundles in
    order of length, the one is taken that costs least, in padded tokens and passes. Depends on nothing but lengths,
    equality of prompts, and order.

    Padded tokens are an upper bound for prefix trees, which read a shared prompt once and no padding: 4 groups of 8
    samples of 175 + 32 tokens count as 6624 and are read as 1724. The dial then means one amount of memory for every
    model, and all ranks cut alike. Passes of more trees would not be faster: see the decision on prefix trees.
    """
    bundles = sorted(_bundles(rows, tokens_per_pass), key=lambda bundle: bundle.length)
    # Cheapest way to cut the first n bundles: its cost, and where its last pass begins.
    best: list[tuple[int, int]] = [(0, 0)]
    for end, last in enumerate(bundles):
        options = []
        held = 0
        for start in range(end, -1, -1):
            held += len(bundles[start].rows)
            padded = held * last.length
            if start < end and padded > tokens_per_pass:
                break
            options.append((best[start][0] + padded + _PASS, start))
        best.append(min(options))
    units = []
    end = len(bundles)
    while end:
        start = best[end][1]
        units.append(sorted(row for bundle in bundles[start:end] for row in bundle.rows))
        end = start
    return units


def _bundles(rows: Sequence[TokenRow], tokens_per_pass: int) -> list[_Bundle]:
    """Rows of one prompt, in even parts where they do not fit into one pass."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(tuple(row.prompt_ids), []).append(place)
    found = []
    for places in groups.values():
        places.sort(key=lambda place: rows[place].total_tokens)
        fitting = max(1, tokens_per_pass // max(1, rows[places[-1]].total_tokens))
        parts = -(-len(places) // fitting)
        cuts = [len(places) * part // parts for part in range(parts + 1)]
        for start, stop in pairwise(cuts):
            found.append(_Bundle(places[start:stop], rows[places[stop - 1]].total_tokens))
    return found
