"""The gate: a round is rolled back where a paired test shows that it lost something."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loopwise.evaluate.stats import paired
from loopwise.types import Decision, Evaluation

Measure = Callable[[int, Any, str], Evaluation]

LEAST_JUDGED = 0.9
"""Share of the incumbent's judged problems that a candidate must be judged on too, to be compared at all."""


@dataclass(frozen=True)
class Gate:
    """Compares candidate and incumbent on dev and on old skills, problem by problem.

    ``measure(round, policy, split)`` evaluates (or re-reads) a policy of a round. A loss is shown when the one-sided
    upper bound of the mean paired difference lies below zero at ``confidence``. A candidate that shows no loss is
    accepted; it becomes the best where its dev mean is at least the incumbent's.

    What cannot be judged is no pass: a candidate judged on none, or on clearly fewer problems than the incumbent
    (LEAST_JUDGED), is rolled back, and is never the best. Against an incumbent that was judged on none, a candidate
    that is judged is accepted.
    """

    measure: Measure
    splits: Sequence[str]
    confidence: float = 0.95
    enabled: bool = True

    def decide(self, number: int, candidate: Any, incumbent: Any, incumbent_round: int) -> Decision:
        """Decide on the candidate of round ``number``. Without held-out splits every candidate is accepted."""
        compared: dict[str, Mapping[str, float]] = {}
        losses: list[str] = []
        unjudged: list[str] = []
        for split in self.splits:
            after = self.measure(number, candidate, split)
            before = self.measure(incumbent_round, incumbent, split)
            test = paired(after.scores, before.scores, self.confidence)
            compared[split] = {
                "candidate": after.mean,
                "incumbent": before.mean,
                "difference": test.difference,
                "upper": test.upper,
                "p_loss": test.p_loss,
                "n": float(test.n),
            }
            if gap := _gap(after, before, test.n):
                unjudged.append(f"{split} could not be judged: {gap}")
            elif test.shows_loss:
                losses.append(split)
        if not compared:
            nan = float("nan")
            return Decision(True, "no held-out split: accepted unseen", nan, nan, nan, nan, 0, True)
        first = compared[self.splits[0]]
        accepted = not (losses or unjudged) or not self.enabled
        # Without a difference here there is no judged incumbent to be worse than: one that is takes its place.
        as_good = bool(first["difference"] >= 0) or np.isnan(first["difference"])
        best = accepted and not unjudged and (as_good or not self.enabled)
        return Decision(
            accepted=accepted,
            reason=_reason(compared, losses, unjudged, accepted, best, self.confidence),
            candidate=first["candidate"],
            incumbent=first["incumbent"],
            difference=first["difference"],
            upper=first["upper"],
            n=int(first["n"]),
            best=bool(best),
            splits=compared,
        )


def refusal(reason: str) -> Decision:
    """The rollback of a candidate that is not worth measuring."""
    nan = float("nan")
    return Decision(False, f"rolled back, {reason}", nan, nan, nan, nan, 0, False)


def _gap(after: Evaluation, before: Evaluation, shared: int) -> str:
    """How many problems keep the candidate from being compared, if any do; ``shared`` are judged in both."""
    known = before.judged.size
    if not known:
        return "" if after.judged.size else f"{after.scores.size} of {after.scores.size} problems"
    if shared and after.judged.size >= LEAST_JUDGED * known:
        return ""
    return f"{known - shared} of {known} problems"


def _reason(
    compared: Mapping[str, Mapping[str, float]],
    losses: Sequence[str],
    unjudged: Sequence[str],
    accepted: bool,
    best: bool,
    confidence: float,
) -> str:
    def words(split: str) -> str:
        figures = compared[split]
        if not figures["n"]:
            return f"{split} {figures['candidate']:.4f}, accepted without comparison: the incumbent could not be judged"
        bound = f"upper {100 * confidence:g}% bound {figures['upper']:+.4f}"
        return f"{split} {figures['difference']:+.4f} ({bound}, n={figures['n']:.0f})"

    if losses or unjudged:
        shown = ["loss shown: " + "; ".join(map(words, losses))] if losses else []
        return f"{'gate off' if accepted else 'rolled back'}, " + "; ".join([*shown, *unjudged])
    split = next(iter(compared))
    return f"{'new best' if best else 'no loss shown, not the best'}: {words(split)}"
