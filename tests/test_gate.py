"""The gate's decisions on hand-made scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from loopwise.gate import Gate
from loopwise.types import Decision, Evaluation

SAME = np.tile([1.0, 0.0], 50)
WORSE = np.concatenate([np.zeros(20), SAME[20:]])
ONE_LOST = np.concatenate([[0.0], SAME[1:]])
BETTER = np.concatenate([np.ones(20), SAME[20:]])
NAN = np.full(100, np.nan)


def decide(
    candidate: dict[str, np.ndarray], incumbent: dict[str, np.ndarray] | None = None, **settings: Any
) -> Decision:
    """Decide on scores by split; the incumbent's are SAME unless given."""
    asked: list[tuple[int, str, str]] = []

    def measure(number: int, policy: str, split: str) -> Evaluation:
        asked.append((number, policy, split))
        scores = candidate[split] if policy == "candidate" else (incumbent or {}).get(split, SAME)
        return Evaluation(split, policy, scores)

    decision = Gate(measure, tuple(candidate), **settings).decide(5, "candidate", "incumbent", 3)
    assert asked == [entry for split in candidate for entry in ((5, "candidate", split), (3, "incumbent", split))], (
        "each is measured in its own round"
    )
    return decision


def test_a_shown_loss_rolls_back() -> None:
    decision = decide({"dev": WORSE})
    assert not decision.accepted
    assert not decision.best
    assert decision.reason.startswith("rolled back, loss shown: dev -0.1000 (upper 95% bound -0.")
    assert decision.upper < 0
    assert (decision.candidate, decision.incumbent, decision.n) == (0.4, 0.5, 100)
    assert decision.difference == pytest.approx(-0.1)


def test_a_loss_that_may_be_chance_is_accepted_but_not_best() -> None:
    decision = decide({"dev": ONE_LOST})
    assert decision.accepted
    assert not decision.best
    assert decision.reason.startswith("no loss shown, not the best: dev -0.0100")


@pytest.mark.parametrize("scores", [BETTER, SAME], ids=["better", "equal"])
def test_a_candidate_as_good_becomes_the_best(scores: np.ndarray) -> None:
    decision = decide({"dev": scores})
    assert decision.accepted
    assert decision.best
    assert decision.reason.startswith("new best: dev +0.")


def test_a_lost_skill_rolls_back_whatever_dev_says() -> None:
    decision = decide({"dev": BETTER, "skill:sums.jsonl": WORSE})
    assert not decision.accepted
    assert not decision.best
    assert "skill:sums.jsonl -0.1000" in decision.reason
    assert "dev" not in decision.reason
    assert decision.difference > 0, "the figures in front are dev's"
    assert set(decision.splits) == {"dev", "skill:sums.jsonl"}
    assert decision.splits["skill:sums.jsonl"]["upper"] < 0
    assert decision.splits["dev"]["n"] == 100


def test_skills_alone_can_gate() -> None:
    assert not decide({"skill:sums.jsonl": WORSE}).accepted
    assert decide({"skill:sums.jsonl": BETTER}).best


def test_a_higher_confidence_is_harder_to_convince() -> None:
    six_lost = np.concatenate([np.zeros(12), SAME[12:]])
    assert not decide({"dev": six_lost}, confidence=0.95).accepted
    decision = decide({"dev": six_lost}, confidence=0.999)
    assert decision.accepted
    assert "upper 99.9% bound" in decision.reason


def test_a_gate_switched_off_accepts_and_still_tells() -> None:
    decision = decide({"dev": WORSE}, enabled=False)
    assert decision.accepted
    assert decision.best, "without a gate the last round is the result"
    assert decision.reason.startswith("gate off, loss shown: dev -0.1000")


def test_problems_that_could_not_be_judged_drop_out_in_pairs() -> None:
    half = np.arange(100) < 50
    decision = decide({"dev": np.where(half, np.nan, WORSE)}, {"dev": np.where(half, np.nan, SAME)})
    assert decision.n == 50
    assert decision.difference == 0, "the losses lie among the problems left out"
    assert decision.accepted


@pytest.mark.parametrize(("judged", "reason"), [(0, "100 of 100"), (50, "50 of 100"), (89, "11 of 100")])
def test_a_candidate_that_cannot_be_judged_is_rolled_back(judged: int, reason: str) -> None:
    decision = decide({"dev": np.where(np.arange(100) < judged, 1.0, np.nan)})
    assert (decision.accepted, decision.best) == (False, False)
    assert decision.reason == f"rolled back, dev could not be judged: {reason} problems"


def test_a_few_problems_less_are_still_judged() -> None:
    assert decide({"dev": np.where(np.arange(100) < 90, BETTER, np.nan)}).best


def test_shares_are_of_what_the_incumbent_was_judged_on() -> None:
    known = np.where(np.arange(100) < 50, SAME, np.nan)
    assert decide({"dev": known}, {"dev": known}).best
    elsewhere = np.where(np.arange(100) < 50, np.nan, 1.0)
    assert decide({"dev": elsewhere}, {"dev": known}).reason.endswith("dev could not be judged: 50 of 50 problems")


def test_an_unjudged_skill_rolls_back_whatever_dev_says() -> None:
    decision = decide({"dev": BETTER, "skill:sums.jsonl": NAN})
    assert not decision.accepted
    assert "skill:sums.jsonl could not be judged: 100 of 100 problems" in decision.reason


def test_against_an_unjudged_incumbent_what_is_judged_is_accepted() -> None:
    decision = decide({"dev": WORSE}, {"dev": NAN})
    assert (decision.accepted, decision.best, decision.n) == (True, True, 0)
    assert decision.reason == ("new best: dev 0.4000, accepted without comparison: the incumbent could not be judged")
    both = decide({"dev": NAN}, {"dev": NAN})
    assert (both.accepted, both.best) == (False, False)


def test_a_gate_switched_off_never_makes_the_unjudged_the_result() -> None:
    decision = decide({"dev": NAN}, enabled=False)
    assert (decision.accepted, decision.best) == (True, False)
    assert decision.reason == "gate off, dev could not be judged: 100 of 100 problems"


def test_without_held_out_problems_every_candidate_is_accepted() -> None:
    decision = decide({})
    assert decision.accepted
    assert decision.best
    assert decision.reason == "no held-out split: accepted unseen"
    assert decision.n == 0
