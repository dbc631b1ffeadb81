"""The sentences of a report on a judge: its verdict, and what depends on how the run was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loopwise.report import numbers
from loopwise.report.measures import Comparison, Kind, Measure, Standing, compare
from loopwise.report.samples import text
from loopwise.report.verdict import Verdict
from loopwise.report.wording import JUDGED_NOUNS, Step, counted

_FEW = 200
_NO_CHANGE = 0.02
LEARNED = {
    "labels": "which label a text has",
    "preference": "which of two answers is the better one",
    "unpaired": "whether an answer is right",
}
READ = {"completion": "the answer alone", "prompt": "the prompt alone", "both": "the prompt and the answer"}


@dataclass(frozen=True)
class Evidence:
    """What the verdict on a judge of ``kind`` rests on: its ``figures`` on a split, as in the summary.

    ``before`` and ``after`` training it was measured on the same rows, of which it had ``right_before`` as a share;
    ``best`` is the round whose judge it is, 0 the start.
    """

    kind: str
    split: str
    figures: Mapping[str, Any]
    measure: Measure
    before: Standing
    after: Standing
    right_before: float
    best: int


def judge_verdict(evidence: Evidence) -> Verdict:
    """The verdict on a judge: no kinder than a comparison with its start and with one that cannot read."""
    figures, noun = evidence.figures, evidence.measure.noun
    comparison = compare(evidence.after, evidence.before) if evidence.best else None
    shows: Kind = comparison.shows if comparison else "none"
    low, high = figures["ci95"]
    blind, of_the_blind = _blind(evidence)
    beats = low > blind
    details = [_change(evidence, comparison)] if comparison else []
    details.append(
        f"It is right on {numbers.percent(low)} to {numbers.percent(high)} of such {noun} (Wilson’s 95% interval)."
    )
    details.append(of_the_blind + ("" if beats else " The judge is not seen to do better."))
    if evidence.split == "dev":
        details.append(f"These are dev {noun}, which the gate chose rounds by: expect a little less on fresh ones.")
    kind: Kind = "none" if shows == "gain" and not beats else shows
    return Verdict(kind, _headline(evidence, shows, beats), tuple(details))


def unmeasured() -> Verdict:
    """The verdict where nothing was held out."""
    return Verdict(
        "unmeasured",
        "No verdict: no rows were held out, so nobody can say how often this judge is right.",
        ("Hold rows out with data.dev and data.test to find out.",),
    )


def _headline(evidence: Evidence, shows: Kind, beats: bool) -> str:
    right = _right(evidence)
    before = f"{right}; {numbers.percent(evidence.right_before)} before training."
    if not evidence.best:
        return f"Nothing gained: no round beat the judge it started from, so that one is the result. It {right}."
    if shows == "loss":
        return f"The judge got worse. It {before}"
    if shows == "none":
        return f"Not seen to be better than before training. The judge {before}"
    if not beats:
        return f"Better than before training, but not seen to beat one that cannot read. The judge {before}"
    return f"The judge learned its task. It {before}"


def _right(evidence: Evidence) -> str:
    share, n = numbers.percent(evidence.figures["accuracy"]), numbers.whole(evidence.figures["n"])
    if evidence.kind == "preference":
        return f"tells {share} of {n} pairs apart that it had never seen"
    return f"is right on {share} of {n} {evidence.measure.noun} it had never seen"


def _change(evidence: Evidence, comparison: Comparison) -> str:
    measure = evidence.measure
    of = "" if measure.kind == "share" else " of the mean log-probability of the right judgement"
    chance = " The interval includes zero: this may be chance." if comparison.shows == "none" else ""
    same = f"the same {numbers.whole(comparison.n)} {measure.noun}"
    return f"Change{of}: {comparison.words(measure)}, over {same} before and after.{chance}"


def _blind(evidence: Evidence) -> tuple[float, str]:
    """How often a judge would be right that cannot read, and that in a sentence."""
    if evidence.kind == "preference":
        return 0.5, "Tossing a coin would be right on half of the pairs."
    name, entry = max(evidence.figures["classes"].items(), key=lambda item: item[1]["n"])
    share = entry["n"] / evidence.figures["n"]
    return share, f"Always saying “{text(name).short}”, the most frequent, would be right on {numbers.percent(share)}."


def opening(kind: str, rounds: int, *, made: bool, masked: bool, measured: bool) -> str:
    """The first sentences for someone who has read nothing.

    ``made`` from nothing; ``masked`` tokens came first; each round was ``measured``.
    """
    who = "A small encoder was made from nothing. It" if made else "An existing model"
    first = "filled in masked tokens of the training texts until it could read a little, and then " if masked else ""
    apart = f", each measured on {JUDGED_NOUNS[kind]} kept apart from training" if measured else ""
    return (
        f"{who} {first}learned, from rows whose judgement is known, to tell {LEARNED[kind]}: in "
        f"{counted(rounds, 'round')}{apart}. Other runs can use it as a reward."
    )


def steps(
    config: Mapping[str, Any], kind: str, passes: float, held_out: int, accepted: int, decided: int
) -> tuple[Step, ...]:
    """The steps of a round. The training rows were learned ``passes`` times over; ``held_out`` are in dev, and
    ``accepted`` of ``decided`` rounds were."""
    update, noun = config["update"], JUDGED_NOUNS[kind]
    learning = (
        f"Each round took {numbers.whole(update['steps'])} optimizer steps on {update['batch_size']} {noun}; in all, "
        f"the training rows about {passes:.3g} times over."
    )
    if decided:
        measuring = f"It then judged {counted(held_out, 'held-out row')} of dev."
        kept = f"{accepted} of {decided} {'round was' if decided == 1 else 'rounds were'} accepted."
        gate = f"Where it was clearly worse than before, the round was undone. {kept}"
        calibrating = "At the end, dev told how sure the judge may be: a temperature was fitted to it."
    else:
        measuring = "No rows were held out in dev, so no round was measured."
        gate = "With nothing held out, every round was accepted unseen."
        calibrating = "Without dev rows nothing could tell how sure the judge may be: its temperature is 1."
    return (
        Step("Learn", learning),
        Step("Measure", measuring),
        Step("Accept or roll back", gate),
        Step("Calibrate", calibrating),
    )


def tempered(temperature: float, fitted: bool) -> str:
    """What a temperature did."""
    if not fitted:
        return "No temperature was fitted, because no rows were held out in dev."
    said = f"The temperature that was fitted on dev is {numbers.figure(temperature)}: "
    if abs(temperature - 1) < _NO_CHANGE:
        return f"{said}there was next to nothing to mend."
    if temperature > 1:
        return f"{said}the judge was surer than it was right, and is less sure with it. No judgement changes."
    return f"{said}the judge was less sure than it may be, and is surer with it. No judgement changes."


def cautions(kind: str, split: str, n: int, held_out_files: bool) -> tuple[str, ...]:
    """What a reader should be careful about in this very run, measured on ``n`` rows of ``split``."""
    noun = JUDGED_NOUNS[kind]
    found = [
        "A model that learns from this judge learns what the judge likes, its mistakes included. Keep a truth beside "
        "it in report_rewards, and watch the monitors."
    ]
    if kind == "preference":
        found.append(
            "Its scores say which of two answers to one prompt is better. How far apart answers to different prompts "
            "are, the pairs did not tell it."
        )
    if split and not held_out_files:
        found.append(
            f"The held-out {noun} come from the same file as the training rows. How well it judges others, such as "
            "those of a model that learns from it, these figures do not say."
        )
    if split == "dev":
        found.append(
            "There was no test split. The figures are of dev rows, by which the gate chose the best round and the "
            "temperature was fitted, and flatter it a little. Hold rows out with data.test."
        )
    if split and n < _FEW:
        found.append(
            f"Only {counted(n, 'row')} held out: the intervals are wide, and much of the calibration error is chance."
        )
    found.append("This is one seed. Another one gives other figures; run several before you rely on a small gain.")
    return tuple(found)
