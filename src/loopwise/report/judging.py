"""What a report on a judge says, gathered from summary and journal into plain dataclasses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from loopwise.report import judging_words as words
from loopwise.report import numbers
from loopwise.report.details import Details, details
from loopwise.report.events import Notice, warnings
from loopwise.report.gate_log import GateLog, gate_log
from loopwise.report.history import Curve, History
from loopwise.report.judging_classes import Classes, Mistake, classes, wrong
from loopwise.report.measures import Measure
from loopwise.report.result import Stage, stage_rows, standings
from loopwise.report.samples import Text, text
from loopwise.report.series import Series, StepChart, step_series
from loopwise.report.source import Heading, Source
from loopwise.report.verdict import Verdict
from loopwise.report.wording import Step, counted

MASKED = "masked"
"""The run in which a judge's body learns to read."""
_ROUNDS = (
    ("Log-loss", "Nats a row of dev. Rising while more is right: it grows surer than it may be.", "log_loss", False),
    ("Calibration error", "On dev, before any temperature: how far from how sure to how often right.", "ece", True),
    ("Macro-F1", "Mean F1 over the classes of dev, each counted alike.", "macro_f1", True),
)
_STEPS = (
    StepChart("Training loss", "Mean over a step’s rows.", ("loss",)),
    StepChart("Right in training", "Share of a step’s rows.", ("accuracy",), share=True),
    StepChart("Told apart in training", "Share of a step’s pairs.", ("rewards/accuracies",), share=True),
    StepChart("Margin in training", "Score of the chosen, less that of the rejected.", ("rewards/margins",)),
    StepChart("Learning rate", "AdamW’s.", ("learning_rate",), varying=True),
    StepChart("Gradient norm", "Before clipping.", ("grad_norm",)),
)
_READING = (StepChart("Training loss", "Nats a masked token.", ("loss",)),)


@dataclass(frozen=True)
class Reliability:
    """Bins of like confidence: how ``sure`` the judge was on average, how often ``right``, and of how many rows."""

    sure: tuple[float, ...]
    right: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Calibration:
    """How sure the judge is on ``n`` rows of a split, beside how often it is right.

    ``rows`` are figures without and with the temperature; ``after`` is None where none was fitted. ``least`` is where
    confidence begins.
    """

    split: str
    n: str
    before: Reliability
    after: Reliability | None
    rows: tuple[tuple[str, str, str], ...]
    least: float
    said: str


@dataclass(frozen=True)
class Margins:
    """``counts`` of pairs by margin, between ``edges``, which are one more."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Use:
    """How other runs ask the judge: YAML, each with a line that says what it is for; ``labels`` are those it knows."""

    recipes: tuple[tuple[str, str], ...]
    labels: tuple[Text, ...]


@dataclass(frozen=True)
class JudgeContent:
    """The whole report. ``curves`` are dev figures by round, ``series`` by round, ``steps`` and ``reading`` by step.

    ``best`` says which round's judge is the result. ``rows`` are splits with what was used and what was too long;
    ``facts`` are rows of two cells.
    """

    heading: Heading
    verdict: Verdict
    kind: str
    measure: Measure
    split: str
    n: str
    stages: tuple[Stage, ...]
    opening: str
    story: tuple[Step, ...]
    rows: tuple[tuple[str, str, str], ...]
    dropped: tuple[tuple[str, str], ...]
    facts: tuple[tuple[str, str], ...]
    notices: tuple[Notice, ...]
    curves: tuple[Curve, ...]
    best: str
    series: tuple[Series, ...]
    steps: tuple[Series, ...]
    reading: tuple[Series, ...]
    calibration: Calibration | None
    classes: Classes | None
    mistakes: tuple[Mistake, ...]
    margins: Margins | None
    gate: GateLog
    use: Use
    details: Details


def gather_judge(source: Source) -> JudgeContent:
    """Everything the report on a judge says."""
    judge, history, split = source.summary["judge"], source.history, source.split
    kind, figures = judge["kind"], judge.get(split)
    found = standings(source) if split else {}
    points = history.dev()
    return JudgeContent(
        heading=source.heading,
        verdict=words.judge_verdict(_evidence(source)) if figures else words.unmeasured(),
        kind=kind,
        measure=source.measure,
        split=split,
        n=numbers.whole(figures["n"]) if figures else "",
        stages=stage_rows(found, source.measure),
        opening=words.opening(
            kind,
            len(history.rounds),
            made=bool(source.config["model"]["create"]),
            masked=source.config["masked"] is not None,
            measured=bool(points),
        ),
        story=_story(source),
        rows=_rows(source.summary["rows"]),
        dropped=_dropped(source.summary["rows"]),
        facts=_facts(source),
        notices=(*(Notice(doubt, "") for doubt in judge["doubts"]), *warnings(source.journal.events(source.run_id))),
        curves=(Curve("trained", "dev", points),) if points else (),
        best=f"round {history.best_round}" if history.best_round else "the start",
        series=_by_round(source),
        steps=step_series(source.journal.steps(source.run_id), _STEPS),
        reading=_reading(source),
        calibration=_calibration(judge, split) if figures else None,
        classes=classes(figures, len(judge["labels"]) or 2) if figures else None,
        mistakes=wrong(figures) if figures else (),
        margins=_margins(figures) if figures and kind == "preference" else None,
        gate=gate_log(source),
        use=_use(source),
        details=_details(source, figures),
    )


def _evidence(source: Source) -> words.Evidence:
    found, split, judge = standings(source), source.split, source.summary["judge"]
    return words.Evidence(
        kind=judge["kind"],
        split=split,
        figures=judge[split],
        measure=source.measure,
        before=found["base"],
        after=found["trained"],
        right_before=source.stages["base"][split]["judged_right"],
        best=source.history.best_round,
    )


def _story(source: Source) -> tuple[Step, ...]:
    decided = [row.decision.accepted for row in source.history.decisions if row.decision.n]
    held_out = int(source.summary["judge"].get("dev", {}).get("n", 0))
    return words.steps(
        source.config, source.summary["judge"]["kind"], _passes(source), held_out, sum(decided), len(decided)
    )


def _passes(source: Source) -> float:
    """How many times over the training rows were learned."""
    update, rows = source.config["update"], source.summary["rows"]
    used = rows["train/rows"] - rows["too_long/train"]
    return len(source.history.rounds) * update["steps"] * update["batch_size"] / used if used else math.nan


def _rows(counts: Mapping[str, int]) -> tuple[tuple[str, str, str], ...]:
    names = {"train": "to learn from", "dev": "held out: dev", "test": "held out: test"}
    return tuple(
        (name, numbers.whole(counts[f"{split}/rows"] - counts[f"too_long/{split}"]), _many(counts[f"too_long/{split}"]))
        for split, name in names.items()
        if f"{split}/rows" in counts
    )


def _dropped(counts: Mapping[str, int]) -> tuple[tuple[str, str], ...]:
    return (
        ("left out: repeat an earlier row", _many(counts["dropped/repeated"])),
        ("left out: contradict an earlier row", _many(counts["dropped/contradicting"])),
        ("groups that share a prompt or text", _many(counts["groups"])),
    )


def _many(count: int) -> str:
    return numbers.whole(count) if count else "none"


def _facts(source: Source) -> tuple[tuple[str, str], ...]:
    judge, model = source.summary["judge"], source.config["model"]
    made = f"made here: {counted(model['depth'], 'layer')} of width {model['width']}"
    most = judge["most_tokens"]
    return (
        ("Tells", words.LEARNED[judge["kind"]]),
        *((("Labels", numbers.whole(len(judge["labels"]))),) if judge["labels"] else ()),
        ("Reads as a reward", words.READ[judge["reads"]]),
        ("Longest text it reads", f"{numbers.whole(most)} tokens" if most else "any"),
        ("Body", made if model["create"] else text(Path(model["path"]).name).short),
        ("Parameters", numbers.amount(judge["parameters"])),
        ("Temperature", numbers.fixed(judge["temperature"], 3)),
        *((("Centre of its scores", numbers.fixed(judge["centre"], 3)),) if judge["kind"] == "preference" else ()),
        ("Wall time", source.heading.wall),
    )


def _by_round(source: Source) -> tuple[Series, ...]:
    """Dev figures of the judge before training and after each round."""
    before = source.stages["base"].get("dev", {})
    entries = [(0, before), *((row.round, _of_dev(row.summary)) for row in source.history.rounds)]
    drawn = []
    for title, hint, name, share in _ROUNDS:
        values = tuple(numbers.finite(figures.get(name)) for _, figures in entries)
        if any(map(numbers.known, values)):
            drawn.append(Series(title, hint, tuple(number for number, _ in entries), (("", values),), share))
    return tuple(drawn)


def _of_dev(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("dev/"): value for name, value in summary.items() if name.startswith("dev/")}


def _reading(source: Source) -> tuple[Series, ...]:
    """How well the body came to read, where it learned that first."""
    history = History.read(source.journal, MASKED)
    if history is None:
        return ()
    points = history.dev()
    nats = tuple(-point.value for point in points)
    held_out = Series(
        "Held-out text", "Nats a masked token of dev, by round.", tuple(p.round for p in points), (("", nats),)
    )
    return (*((held_out,) if points else ()), *step_series(source.journal.steps(MASKED), _READING))


def _calibration(judge: Mapping[str, Any], split: str) -> Calibration:
    found, fitted = judge[split]["calibration"], "dev" in judge
    before, after = found["before"], found["after"]
    said = words.tempered(judge["temperature"], fitted)
    if fitted and after["ece"] > before["ece"]:
        said += f" On these {split} rows the calibration error is no smaller for it."
    shown = [("as trained", before), *([("with its temperature", after)] if fitted else [])]
    return Calibration(
        split=split,
        n=numbers.whole(judge[split]["n"]),
        before=_reliability(before["reliability"]),
        after=_reliability(after["reliability"]) if fitted else None,
        rows=tuple(
            (name, numbers.percent(entry["ece"]).removesuffix("%") + " points", numbers.fixed(entry["log_loss"], 3))
            for name, entry in shown
        ),
        least=1 / (len(judge["labels"]) or 2),
        said=said,
    )


def _reliability(bins: Sequence[Mapping[str, Any]]) -> Reliability:
    return Reliability(
        tuple(one["confidence"] for one in bins),
        tuple(one["accuracy"] for one in bins),
        tuple(one["count"] for one in bins),
    )


def _margins(figures: Mapping[str, Any]) -> Margins:
    return Margins(tuple(figures["margins"]["edges"]), tuple(figures["margins"]["counts"]))


def _use(source: Source) -> Use:
    """Recipes with the options that this kind of judge has."""
    judge, folder = source.summary["judge"], source.out.resolve().name
    labels = judge["labels"]
    if labels:
        told = (
            ("For one label: the reward is its probability, here of the first.", {"label": labels[0]}),
            (
                "Or for the label that a column of each row names; this column is no reference, else it is "
                "trained_judge_gold.",
                {"column": source.config["data"]["label_column"]},
            ),
        )
    elif judge["kind"] == "preference":
        told = (
            ("The reward is between 0 and 1: sigmoid((score − centre) / temperature).", {}),
            ("Or the score itself.", {"scale": "raw"}),
        )
    else:
        told = (
            ("The reward is the probability that the answer is right.", {}),
            ("Or the score itself, above 0 where the answer is right.", {"scale": "raw"}),
        )
    return Use(tuple((said, _yaml({"path": folder, **options})) for said, options in told), tuple(map(text, labels)))


def _yaml(options: Mapping[str, str]) -> str:
    written = yaml.safe_dump(
        {"rewards": [{"use": "trained_judge", "options": dict(options)}]},
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=None,
        width=math.inf,
    )
    return str(written)


def _details(source: Source, figures: Mapping[str, Any] | None) -> Details:
    data, split = source.config["data"], source.split
    in_files = bool(split) and isinstance(data[split], str)
    n = int(figures["n"]) if figures else 0
    found = details(source, words.cautions(source.summary["judge"]["kind"], split, n, in_files))
    # A judge writes nothing.
    return replace(found, budget=tuple(row for row in found.budget if row[0] != "Tokens generated"))
