"""What a report on pretraining says, gathered from the journal into plain dataclasses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from loopwise.report import numbers, text_wording
from loopwise.report.details import Details, details
from loopwise.report.gate_log import GateLog, gate_log
from loopwise.report.history import NGRAM, Curve, Point
from loopwise.report.perplexity import TextTable, tables, text_verdict
from loopwise.report.series import Series, step_series
from loopwise.report.source import Heading, Source
from loopwise.report.verdict import Verdict
from loopwise.report.wording import Step
from loopwise.report.writing import Writing, writing


@dataclass(frozen=True)
class TextFacts:
    """The text of a run: its sources with their shares of what was drawn, its splits as rows of four cells."""

    sources: tuple[tuple[str, str], ...]
    splits: tuple[tuple[str, str, str, str], ...]
    dropped: str


@dataclass(frozen=True)
class TextContent:
    """The whole report. ``curves`` are nats a token by round, the held-out text's first; ``floor`` the n-gram's."""

    heading: Heading
    verdict: Verdict
    tables: tuple[TextTable, ...]
    opening: str
    steps: tuple[Step, ...]
    facts: TextFacts
    writing: Writing
    temperature: str
    most_tokens: int
    curves: tuple[Curve, ...]
    floor: float | None
    series: tuple[Series, ...]
    gate: GateLog
    details: Details


def gather_text(source: Source) -> TextContent:
    """Everything the report on a pretraining run says."""
    config, history = source.config, source.history
    sampling = config.get("sampling", {})
    result = source.stages.get(source.ends[1], {}).get(source.split, {})
    return TextContent(
        heading=source.heading,
        verdict=text_verdict(source),
        tables=tables(source),
        opening=text_wording.opening(len(history.rounds), source.ends[0] == "base"),
        steps=_steps(source),
        facts=_facts(source),
        writing=writing(source.journal, history, len(config.get("prompts", ()))),
        temperature=f"{sampling.get('temperature', 1.0):g}",
        most_tokens=int(sampling.get("max_tokens", 0)),
        curves=_curves(source),
        floor=_floor(source),
        series=step_series(source.journal.steps(source.run_id)),
        gate=gate_log(source),
        details=details(source, text_wording.cautions(config, source.split, int(result.get("n", 0)))),
    )


def _steps(source: Source) -> tuple[Step, ...]:
    decided = [row.decision.accepted for row in source.history.decisions if row.decision.n]
    read = numbers.finite(source.summary.get("budget", {}).get("tokens_trained"))
    dev = source.stages.get(source.ends[1], {}).get("dev", {})
    tokens = numbers.finite(dev.get("tokens"))
    return text_wording.steps(source.config, read, read / _train_tokens(source), tokens, sum(decided), len(decided))


def _train_tokens(source: Source) -> float:
    """About how many tokens the training text has, by the tokens a byte of the held-out text; NaN where unknown."""
    figures = source.stages.get(source.ends[1], {}).get(source.split, {})
    train = numbers.finite(source.summary.get("corpus", {}).get("train/bytes"))
    return train * figures["tokens"] / figures["bytes"] if figures and train else math.nan


def _facts(source: Source) -> TextFacts:
    counts = source.summary.get("corpus", {})
    sources = source.config.get("data", {}).get("train", ())
    total = sum(entry["weight"] for entry in sources)
    return TextFacts(
        sources=tuple((Path(entry["path"]).name, numbers.percent(entry["weight"] / total)) for entry in sources),
        splits=tuple(
            (
                name,
                numbers.whole(counts[f"{split}/documents"]),
                numbers.whole(counts[f"{split}/characters"]),
                numbers.whole(counts[f"{split}/bytes"]),
            )
            for split, name in (("train", "to train on"), ("dev", "held out: dev"), ("test", "held out: test"))
            if counts.get(f"{split}/documents")
        ),
        dropped=text_wording.dropped(counts),
    )


def _curves(source: Source) -> tuple[Curve, ...]:
    """Nats a token of the dev text after each round, and the mean training loss of each."""
    held_out = tuple(
        Point(point.round, -point.value, -point.high, -point.low, point.mark) for point in source.history.dev()
    )
    losses = [(row.round, numbers.finite(row.summary.get("update/loss"))) for row in source.history.rounds]
    trained = tuple(Point(number, loss, math.nan, math.nan, "none") for number, loss in losses if numbers.known(loss))
    curves = (Curve("pretrained", "held-out text", held_out), Curve("training", "training text", trained))
    return tuple(curve for curve in curves if curve.points)


def _floor(source: Source) -> float | None:
    figures = source.stages.get(NGRAM, {}).get("dev")
    return float(figures["nats_per_token"]) if figures else None
