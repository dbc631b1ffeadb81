"""How well a model predicts the text that was held out of its training: the table of stages, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loopwise.report import numbers
from loopwise.report.history import NGRAM
from loopwise.report.measures import Comparison, Kind, Standing, compare
from loopwise.report.source import SPLITS, Source
from loopwise.report.verdict import Verdict

STAGES = {
    "untrained": ("Untrained", "random weights"),
    "base": ("Base", "where this run started"),
    "ngram": ("N-gram floor", "counts which tokens follow which; no network"),
    "pretrained": ("Pretrained", "the result"),
}


@dataclass(frozen=True)
class TextStage:
    """A row of the table. ``width`` and ``whisker`` place its bar of bits a byte, in percent of the track."""

    key: str
    name: str
    what: str
    perplexity: str
    nats: str
    bits: str
    interval: str
    width: float
    whisker: tuple[float, float]


@dataclass(frozen=True)
class TextTable:
    """The stages on the ``tokens`` predictions of a held-out split, which are ``bytes`` of UTF-8."""

    split: str
    tokens: str
    bytes: str
    stages: tuple[TextStage, ...]


def tables(source: Source) -> tuple[TextTable, ...]:
    """A table for each held-out split, the one that the verdict rests on first."""
    found = []
    for split in SPLITS:
        figures = {key: source.stages[key][split] for key in STAGES if split in source.stages.get(key, {})}
        if figures:
            one = next(iter(figures.values()))
            counts = numbers.whole(one["tokens"]), numbers.whole(one["bytes"])
            found.append(TextTable(split, *counts, _rows(figures)))
    return tuple(found)


def _rows(stages: Mapping[str, Mapping[str, Any]]) -> tuple[TextStage, ...]:
    bits = {key: figures["bits_per_byte"] for key, figures in stages.items()}
    intervals = {key: _interval(figures) for key, figures in stages.items()}
    ends = [bound for key in stages for bound in (bits[key], *intervals[key]) if numbers.known(bound)]
    end = 1.03 * max(ends, default=0.0)

    def place(value: float) -> float:
        return round(100 * value / end, 2) if numbers.known(value) and end else 0.0

    rows = []
    for key, figures in stages.items():
        low, high = intervals[key]
        known = numbers.known(low) and high > low
        rows.append(
            TextStage(
                key,
                *STAGES[key],
                perplexity=numbers.figure(figures["perplexity"]),
                nats=numbers.fixed(figures["nats_per_token"], 3),
                bits=numbers.fixed(bits[key], 3),
                interval=f"{numbers.fixed(low, 3)} to {numbers.fixed(high, 3)}" if known else "",
                width=place(bits[key]),
                whisker=(place(low), round(place(high) - place(low), 2)),
            )
        )
    return tuple(rows)


def _interval(figures: Mapping[str, Any]) -> tuple[float, float]:
    """The 95% interval in bits a byte, about the figure itself: the mean over windows weighs a short last one fully."""
    bits = _bits_a_nat(figures)
    low, high = (numbers.finite(bound) - figures["accuracy"] for bound in figures["ci95"])
    return figures["bits_per_byte"] - bits * high, figures["bits_per_byte"] - bits * low


def _bits_a_nat(figures: Mapping[str, Any]) -> float:
    """Bits a byte that one nat a token is on this text."""
    return float(figures["tokens"] / figures["bytes"] / math.log(2))


def text_verdict(source: Source) -> Verdict:
    """The verdict on a pretraining run, from the same held-out windows before and after."""
    first, last = (source.stages.get(stage, {}).get(source.split) for stage in source.ends)
    if first is None or last is None or not numbers.known(last["nats_per_token"]):
        return Verdict(
            "unmeasured",
            "No verdict: no text was held out, so nobody can say how well the model predicts text it has not read.",
            ("Hold text out with data.dev and data.test to find out.",),
        )
    standings = _standings(source)
    comparison = _compared(standings, source.ends[1], source.ends[0])
    unchanged = source.history.best_round == 0
    floor = source.stages.get(NGRAM, {}).get(source.split)
    against = _compared(standings, source.ends[1], NGRAM)
    kind: Kind = comparison.shows if comparison and not unchanged else "none"
    details = []
    if comparison and not unchanged:
        chance = " The interval includes zero: this may be chance." if kind == "none" else ""
        windows = f"{numbers.whole(comparison.n)} windows of text"
        details.append(f"Change: {_words(comparison, last)}, over the same {windows} before and after.{chance}")
    if floor and against:
        details.append(f"Compared with the n-gram floor: {_words(against, last)}.")
    if source.split == "dev":
        details.append("This is dev text, which the gate chose rounds by: expect a little less on fresh text.")
    return Verdict(kind, _headline(kind, first, last, unchanged) + _floor(last, floor, against), tuple(details))


def _headline(kind: Kind, first: Mapping[str, Any], last: Mapping[str, Any], unchanged: bool) -> str:
    on = f"on {numbers.whole(last['tokens'])} held-out tokens"
    before, after = numbers.figure(first["perplexity"]), numbers.figure(last["perplexity"])
    bits = f"{numbers.figure(last['bits_per_byte'])} bits a byte"
    if unchanged:
        kept = "no round beat the model it started from, so that model is the result"
        return f"Nothing gained: {kept} (perplexity {after} {on})"
    if kind == "none":
        return f"No difference seen: perplexity {before} before, {after} after ({bits}), {on}"
    if kind == "loss":
        return f"The model got worse at this text: perplexity from {before} to {after} ({bits}) {on}"
    return f"Training took the text’s perplexity from {before} to {after} ({bits}) {on}"


def _floor(last: Mapping[str, Any], floor: Mapping[str, Any] | None, against: Comparison | None) -> str:
    """The end of the headline: where the n-gram model stands."""
    if floor is None:
        return "."
    level = numbers.figure(floor["perplexity"])
    shows = against.shows if against else "gain" if last["nats_per_token"] < floor["nats_per_token"] else "loss"
    if shows == "gain":
        return f"; the n-gram floor is at {level}."
    if shows == "none":
        return f", no better than the n-gram floor at {level}."
    return f", still worse than the n-gram floor at {level}."


def _standings(source: Source) -> dict[str, Standing]:
    """The stages on the verdict's split, with their scores of each window."""
    history, split = source.history, source.split
    found = {}
    for key, figures in source.stages.items():
        number = history.best_round if key == source.ends[1] else 0
        standing = history.floor(figures, split) if key == NGRAM else history.standing(figures, split, number)
        if standing:
            found[key] = standing
    return found


def _compared(standings: Mapping[str, Standing], after: str, before: str) -> Comparison | None:
    return compare(standings[after], standings[before]) if after in standings and before in standings else None


def _words(comparison: Comparison, figures: Mapping[str, Any]) -> str:
    """A change of the mean log-probability as nats a token and bits a byte, of which fewer are better."""
    change = f"{numbers.fixed(-comparison.difference, 3, signed=True)} nats a token"
    bits = _bits_a_nat(figures)
    change += f", which is {numbers.fixed(-bits * comparison.difference, 3, signed=True)} bits a byte"
    if not numbers.known(comparison.low) or not numbers.known(comparison.high):
        return f"{change} (too few windows for an interval)"
    low, high = (numbers.fixed(-bits * bound, 3, signed=True) for bound in (comparison.high, comparison.low))
    return f"{change} (95% interval {low} to {high})"
