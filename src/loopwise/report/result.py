"""The result of a run: its stages side by side, and the verdict on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from loopwise.report import numbers, wording
from loopwise.report.history import History
from loopwise.report.measures import Measure, Standing
from loopwise.report.source import Source
from loopwise.report.verdict import Evidence, Verdict, judge
from loopwise.runs.rows import REFINED


@dataclass(frozen=True)
class Stage:
    """A row of the table of stages. ``left``, ``width``, ``whisker`` place its bar, in percent of the track.

    ``aside`` is the same figure in other words.
    """

    key: str
    name: str
    what: str
    value: str
    aside: str
    interval: str
    left: float
    width: float
    whisker: tuple[float, float]
    is_bar: bool


@dataclass(frozen=True)
class Outcome:
    """The verdict and the stages it is about, ``held_out`` problems of ``split``."""

    verdict: Verdict
    measure: Measure
    split: str
    held_out: int
    stages: tuple[Stage, ...]


def outcome(source: Source) -> Outcome:
    """Compare the stages of a run."""
    found = standings(source)
    result = found.get(source.ends[1])
    return Outcome(
        verdict=judge(_evidence(source, found)),
        measure=source.measure,
        split=source.split,
        held_out=result.n if result else 0,
        stages=stage_rows(found, source.measure),
    )


def standings(source: Source) -> dict[str, Standing]:
    """Each stage on the split, with the scores from the run that it belongs to."""
    found = {}
    for key, figures in source.stages.items():
        run_id = "tune" if key == "untrained" else wording.CONTROLS.get(key, source.run_id)
        owner = History.read(source.journal, run_id) if run_id != source.run_id else source.history
        owner = owner or source.history
        number = 0 if key in ("untrained", "base") else owner.best_round
        if standing := owner.standing(figures, source.split, number):
            found[key] = standing
        if revised := figures.get(source.split, {}).get("refined"):
            found[f"{key}{REFINED}"] = owner.refined(revised, source.split, number)
    return found


def _evidence(source: Source, found: Mapping[str, Standing]) -> Evidence:
    first, last = source.ends
    controls = [
        (words.format(noun=source.measure.noun), found[key])
        for key, words in wording.CONTROL_NAMES.items()
        if key in found
    ]
    return Evidence(
        measure=source.measure,
        split=source.split,
        before=found.get(first),
        after=found.get(last),
        controls=controls,
        gold=_gold(source, found.get(last)),
        supervised=last == "tuned",
        unchanged=source.history.best_round == 0,
    )


def _gold(source: Source, result: Standing | None) -> tuple[Standing, Standing] | None:
    """Start and result by the true answers, where those were asked."""
    history, split = source.history, source.split
    row = history.evaluation(history.best_round, split, result.value) if result else None
    if row is None or not source.has_gold:
        return None
    before, after = (history.gold(source.journal, split, number) for number in (0, row.round))
    return (before, after) if before and after else None


def stage_rows(found: Mapping[str, Standing], measure: Measure) -> tuple[Stage, ...]:
    """The rows of the table of stages."""
    bounds = [
        bound for entry in found.values() for bound in (entry.low, entry.high, entry.value) if numbers.known(bound)
    ]
    lowest, highest = min(bounds, default=0.0), max(bounds, default=1.0)
    # A bar stands for an amount. Log-probabilities, all below zero, are places on a scale: dots.
    is_bar = lowest >= 0
    start = 0.0 if is_bar else lowest - 0.05 * (highest - lowest)
    end = 1.0 if measure.kind == "share" else highest + 0.05 * (highest - start)
    size = (end - start) or 1.0

    def place(value: float) -> float:
        return round(100 * (value - start) / size, 2) if numbers.known(value) else 0.0

    rows = []
    for key, entry in found.items():
        name, what = wording.STAGES.get(key, (key.replace("_", " ").capitalize(), ""))
        if key.endswith(REFINED):
            name = f"{wording.STAGES[key.removesuffix(REFINED)][0]}, revised"
            what = "its answers after their critics"
        known = numbers.known(entry.low) and numbers.known(entry.high)
        rows.append(
            Stage(
                key=key,
                name=name,
                what=what.format(noun=measure.noun),
                value=measure.value(entry.value),
                aside=measure.aside(entry.value),
                interval=f"{measure.value(entry.low)} to {measure.value(entry.high)}" if known else "",
                left=place(entry.value),
                width=place(entry.value) if is_bar else 0.0,
                whisker=(place(entry.low), round(place(entry.high) - place(entry.low), 2)),
                is_bar=is_bar,
            )
        )
    return tuple(rows)
