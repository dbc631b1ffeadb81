"""The verdict in one sentence, computed from paired scores and no kinder than they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from loopwise.report import numbers
from loopwise.report.measures import Comparison, Kind, Measure, Standing, compare


@dataclass(frozen=True)
class Evidence:
    """All that a verdict rests on. ``controls`` have the words that name them, the main one first.

    ``gold`` compares result and start by answers that no part of the training saw. ``supervised``: learned from
    labelled rows rather than from its own samples. ``unchanged``: no round beat the start.
    """

    measure: Measure
    split: str
    before: Standing | None
    after: Standing | None
    controls: Sequence[tuple[str, Standing]] = ()
    gold: tuple[Standing, Standing] | None = None
    supervised: bool = False
    unchanged: bool = False


@dataclass(frozen=True)
class Verdict:
    """``headline`` is the sentence, ``details`` what it rests on."""

    kind: Kind
    headline: str
    details: tuple[str, ...] = ()


def judge(evidence: Evidence) -> Verdict:
    """The verdict on a run."""
    evidence = _measured(evidence)
    before, after = evidence.before, evidence.after
    if before is None or after is None or not (numbers.known(before.value) and numbers.known(after.value)):
        return Verdict(
            "unmeasured",
            "No verdict: nothing was held out and judged, so nobody can say whether the model is better.",
            ("Name held-out problems with data.dev and data.test to find out.",),
        )
    comparison = compare(after, before)
    kind: Kind = comparison.shows if comparison else "none"
    headline = _headline(evidence, kind, before, after)
    return Verdict(_checked(evidence, kind), headline, tuple(_details(evidence, comparison, after)))


def _measured(evidence: Evidence) -> Evidence:
    """The part of the evidence that says something: stages that were judged, both ends on the same problems."""
    before, after, gold = evidence.before, evidence.after, evidence.gold
    if before and after:
        before, after = _paired(before, after)
    if gold:
        first, last = _paired(*gold)
        gold = (first, last) if numbers.known(first.value) and numbers.known(last.value) else None
    controls = [
        (name, standing)
        for name, standing in evidence.controls
        if numbers.known(standing.value) and not (after and (against := compare(after, standing)) and not against.n)
    ]
    return replace(evidence, before=before, after=after, controls=controls, gold=gold)


def _paired(before: Standing, after: Standing) -> tuple[Standing, Standing]:
    """Both on the problems that both were judged on, where their scores are known to be of the same problems."""
    if before.scores is None or after.scores is None or before.scores.shape != after.scores.shape:
        return before, after
    judged = ~(np.isnan(before.scores) | np.isnan(after.scores))
    return _on(before, before.scores, judged), _on(after, after.scores, judged)


def _on(standing: Standing, scores: np.ndarray, chosen: np.ndarray) -> Standing:
    """A standing with ``scores`` on the ``chosen`` of its problems, bool ``[P]``."""
    if np.array_equal(chosen, ~np.isnan(scores)):
        return standing
    mean = float(scores[chosen].mean()) if chosen.any() else math.nan
    # Its interval was that of all its problems.
    return Standing(mean, math.nan, math.nan, int(chosen.sum()), np.where(chosen, scores, np.nan))


def _headline(evidence: Evidence, kind: Kind, before: Standing, after: Standing) -> str:
    measure = evidence.measure
    on = f"on {numbers.whole(after.n)} {measure.noun} it had never seen"
    change = measure.change(before.value, after.value)
    if evidence.unchanged:
        level = measure.level(before.value)
        return f"Nothing gained: no round beat the model it started from, so that model is the result ({level} {on})."
    if kind == "none":
        return f"No difference seen: {measure.level(before.value)} before, {measure.value(after.value)} after, {on}."
    if kind == "loss":
        return f"The model got worse: {change} {on}."
    if evidence.supervised:
        return f"Training on labelled {measure.noun} took the model {change} {on}."
    if _checked(evidence, kind) != "gain":
        return f"The model learned to please its reward ({change} {on}), but the true answers do not confirm a gain."
    if not evidence.controls:
        return f"The model got better: {change} {on}."
    name, control = evidence.controls[0]
    against = compare(after, control)
    if against is not None and against.shows == "gain":
        return f"The model taught itself: {change} {on}; {name} reached {measure.value(control.value)}."
    reason = "did no worse" if against is None or against.shows == "none" else "did better"
    level = measure.value(control.value)
    return f"The model got better ({change} {on}), but not by teaching itself: {name} {reason} ({level})."


def _checked(evidence: Evidence, kind: Kind) -> Kind:
    """The kind of verdict after a look at the gold answers, which overrule a gain by the reward alone."""
    if kind != "gain" or evidence.gold is None:
        return kind
    comparison = compare(evidence.gold[1], evidence.gold[0])
    return kind if comparison is None else comparison.shows


def _details(evidence: Evidence, comparison: Comparison | None, after: Standing) -> list[str]:
    measure = evidence.measure
    details = []
    if comparison and not evidence.unchanged:
        included = " The interval includes zero: this may be chance." if comparison.shows == "none" else ""
        details.append(
            f"Change: {comparison.words(measure)}, over the same {numbers.whole(comparison.n)} {measure.noun} "
            f"before and after.{included}"
        )
    for name, control in evidence.controls:
        against = compare(after, control)
        if against and not evidence.unchanged:
            details.append(f"Compared with {name.removesuffix(',')}: {against.words(measure)}.")
    if evidence.gold and not evidence.unchanged:
        first, last = evidence.gold
        gold = Measure("share" if first.is_share and last.is_share else "reward", "right", measure.noun)
        confirmed = compare(last, first)
        details.append(
            f"By the true answers, which decided nothing: {gold.change(first.value, last.value)}"
            + (f", {confirmed.words(gold)}." if confirmed else ".")
        )
    if evidence.split == "dev":
        details.append("These are dev problems, which the gate chose rounds by: expect a little less on fresh ones.")
    return details
