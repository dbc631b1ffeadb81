"""The sentences of the report that depend on the method: what was learned from a round, and which samples show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from loopwise.report import numbers
from loopwise.report.samples import Example

Telling = Literal["kept", "contrast", "own"]
"""Which samples tell what was learned from: kept and rejected ones, the best and the worst of a problem, or any."""

NAMES = {
    "dr_grpo": "Dr. GRPO",
    "grpo": "GRPO",
    "dapo": "DAPO’s loss",
    "rloo": "RLOO",
    "reinforce": "REINFORCE",
    "ppo": "PPO",
    "dpo": "DPO",
    "ipo": "IPO",
    "spin": "SPIN",
    "slic": "SLiC",
    "margin": "margin ranking",
    "rrhf": "RRHF",
    "distill": "on-policy distillation",
    "hindsight": "Chain of Hindsight",
    "reflexion": "Reflexion",
}
EXPECTED = {
    "running": "than the answers before them",
    "batch": "than the step’s mean",
    "group": "than the others to the same problem",
    "leave_one_out": "than the others to the same problem",
}
KEPT = {
    "verified": "It trained {steps} steps on the answers that passed, one copy of each{labelled}.",
    "all": "It trained {steps} steps on all of its answers, passed or not{labelled}.",
    "gold": "It trained {steps} steps on the true answers to these {noun}{labelled}.",
    "none": "It trained {steps} steps on the labelled {noun} alone.",
}


@dataclass(frozen=True)
class Lesson:
    """How the samples that were learned from are shown: two columns with titles, and what stands in an empty one.

    Without ``worse`` there is one column.
    """

    telling: Telling
    lead: str
    better: str
    worse: str = ""
    none_better: str = "None was seen."
    none_worse: str = "None was seen."


_OWN = "Some of its own answers in some of the rounds"
_KEPT = Lesson(
    "kept",
    f"{_OWN}: those it learned from, and those that were rejected.",
    "Kept",
    "Rejected",
    "Nothing seen was kept.",
    "Nothing seen was rejected.",
)
_BETTER = Lesson(
    "contrast",
    f"{_OWN}, the best and the worst to a problem. Answers that scored better than expected became likelier, worse "
    "ones less likely. Problems whose answers all scored alike taught nothing, and are left out here.",
    "Better",
    "Worse",
)
_PREFERRED = Lesson(
    "contrast",
    f"{_OWN}: the better one of two to the same problem was preferred to the worse one. Problems whose answers all "
    "scored alike made no pair, and are left out here.",
    "Chosen",
    "Rejected",
)
_LABELLED = Lesson("own", f"{_OWN}. It learned to prefer the labelled answers to them.", "Its own answers")
_TAUGHT = Lesson(
    "own", f"{_OWN}. Token by token it learned what a teacher would have said in its place.", "Its own answers"
)
_REVISED = Lesson(
    "kept",
    f"{_OWN}: revisions that it learned to write at once, and drafts and revisions that were passed over.",
    "Learned from",
    "Passed over",
    "Nothing seen was learned from.",
    "Nothing seen was passed over.",
)
_REMEMBERED = Lesson(
    "own", f"{_OWN}. After a miss a lesson went into its prompt; no weight changed.", "Its own answers"
)
_LOOKED_BACK = Lesson(
    "contrast",
    f"{_OWN}: it read the worse one and then the better one of a problem, each under its name.",
    "Better",
    "Worse",
)


def method(config: Mapping[str, Any]) -> str:
    """The method of a recipe that draws samples; runs of the past had one alone, and no word for it."""
    return str(config.get("update", {}).get("method", "rft"))


def lesson(config: Mapping[str, Any]) -> Lesson:
    """How a recipe's samples are shown."""
    own = {"spin": _LABELLED, "distill": _TAUGHT, "rft": _KEPT, "ilf": _REVISED}
    own |= {"hindsight": _LOOKED_BACK, "reflexion": _REMEMBERED}
    pairs = dict.fromkeys(("dpo", "ipo", "slic", "margin", "rrhf"), _PREFERRED)
    return (own | pairs).get(method(config), _BETTER if method(config) in NAMES else _KEPT)


def learned(config: Mapping[str, Any], labelled: str, noun: str) -> str:
    """What a round did with its samples, in a sentence. ``labelled`` says what they were mixed with."""
    name, update = method(config), config.get("update", {})
    steps = update.get("steps", 0)
    if name == "ilf":
        return (
            f"Answers that the critics found fault with were revised, and it trained {steps} steps to write the best "
            f"revisions at once (ILF){labelled}."
        )
    if name == "reflexion":
        return "After a miss a lesson was put into its prompt for the next trial; no weight changed (Reflexion)."
    if name == "hindsight":
        return (
            f"It trained {steps} steps on worse and better answers under their names, to be asked for a good one "
            f"({NAMES[name]}){labelled}."
        )
    if name not in NAMES:
        sentence = KEPT.get(update.get("keep", ""), "It learned from them.")
        return sentence.format(steps=steps, noun=noun, labelled=labelled)
    if name == "distill":
        return f"Token by token it moved towards what a teacher would have said in its place ({NAMES[name]})."
    if name == "spin":
        return f"It trained {steps} steps to prefer the labelled answers to its own ({NAMES[name]})."
    if name == "rrhf":
        return f"It trained {steps} steps to rank its answers as the reward does, and to say the best ({NAMES[name]})."
    if lesson(config) is _PREFERRED:
        return f"It trained {steps} steps to prefer the better of two of its answers to a problem ({NAMES[name]})."
    hand = numbers.whole(update.get("problems_per_step", 0))
    expected = EXPECTED.get(update.get("advantage", {}).get("baseline", ""), "than expected")
    return (
        f"After every {hand} {noun} it took a step: answers that scored better {expected} became likelier, the others "
        f"less likely ({NAMES[name]})."
    )


def of_example(config: Mapping[str, Any], example: Example) -> str:
    """What was learned from one problem's answers, in a sentence."""
    count = "1 answer was" if example.count == 1 else f"{example.count} answers were"
    drawn = f"{count} drawn; {example.passed} passed"
    shown = lesson(config)
    if shown.telling == "own":
        return f"{drawn}."
    if shown.telling == "kept":
        copies = "; copies, and more than a few of one problem, are left out" if example.kept < example.passed else ""
        return f"{drawn}; the model learned from {example.kept or 'none'} of them{copies if example.kept else ''}."
    if not example.differ:
        return f"{drawn}. Nothing was learned here, where no score differs from another."
    if shown is _PREFERRED:
        return f"{drawn}. The better were preferred to the worse."
    return f"{drawn}. The better became likelier, the worse less likely."
