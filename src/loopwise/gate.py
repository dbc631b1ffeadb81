"""The gate: a round is rolled back where a paired test shows that it lost something."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loopwise.evaluate.stats import paired
from loopwise.types import Decision, Evaluation

Measure = Callable[[int, Any, str], Evaluation]


@dataclass(frozen=True)
class Gate:
    """Compares candidate and incumbent on dev and on old skills, problem by problem.

    ``measure(round, policy, split)`` evaluates (or re-reads) a policy of a round. A loss is shown when the one-sided
    upper bound of the mean paired difference lies below zero at ``confidence``. A candidate that shows no loss is
    accepted; it becomes the best where its dev mean is at least the incumbent's.
    """

    measure: Measure
    splits: Sequence[str]
    confidence: float = 0.95
    enabled: bool = True

    def decide(self, number: int, candidate: Any, incumbent: Any, incumbent_round: int) -> Decision:
        """Decide on the candidate of round ``number``. Without held-out splits every candidate is accepted."""
        compared: dict[str, Mapping[str, float]] = {}
        losses: list[str] = []
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
            if test.shows_loss:
                losses.append(split)
        if not compared:
            nan = float("nan")
            return Decision(True, "no held-out split: accepted unseen", nan, nan, nan, nan, 0, True)
        first = compared[self.splits[0]]
        accepted = not losses or not self.enabled
        best = accepted and (not self.enabled or bool(first["difference"] >= 0) or np.isnan(first["difference"]))
        return Decision(
            accepted=accepted,
            reason=_reason(compared, losses, accepted, best, self.confidence),
            candidate=first["candidate"],
            incumbent=first["incumbent"],
            difference=first["difference"],
            upper=first["upper"],
            n=int(first["n"]),
            best=bool(best),
            splits=compared,
        )


def _reason(
    compared: Mapping[str, Mapping[str, float]], losses: Sequence[str], accepted: bool, best: bool, confidence: float
) -> str:
    def words(split: str) -> str:
        figures = compared[split]
        bound = f"upper {100 * confidence:g}% bound {figures['upper']:+.4f}"
        return f"{split} {figures['difference']:+.4f} ({bound}, n={figures['n']:.0f})"

    if losses and not accepted:
        return "rolled back, loss shown: " + "; ".join(map(words, losses))
    if losses:
        return "gate off, loss shown: " + "; ".join(map(words, losses))
    split = next(iter(compared))
    return f"{'new best' if best else 'no loss shown, not the best'}: {words(split)}"
