"""The sentences of the report that depend on how a run was made."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loopwise.evaluate.rules import RULES
from loopwise.evaluate.sources import sources
from loopwise.report import lessons, numbers

CONTROLS = {"control": "control-labelled", "control_unfiltered": "control-unfiltered", "control_gold": "control-gold"}
"""The journal's run behind each control stage."""

STAGES = {
    "untrained": ("Untrained", "random weights"),
    "base": ("Base", "where this run started"),
    "control": ("Control", "the same extra steps on the labelled {noun} alone"),
    "control_unfiltered": ("Control, unfiltered", "the same steps on its own answers, unchecked"),
    "control_gold": ("Control, gold", "the same steps on true answers: the ceiling"),
    "improved": ("Improved", "the result"),
    "tuned": ("Tuned", "the result"),
    "trained": ("Trained", "the result"),
}

CONTROL_NAMES = {
    "control": "the same extra training on the labelled {noun} alone",
    "control_unfiltered": "the same training on its own unchecked answers",
    "control_gold": "training on the true answers, the ceiling,",
}

CHECKERS = ("exact_match", "number", "choice", "math", "reasoning_gym", "label", "noisy", "python_tests")
"""Rewards that know whether an answer is right."""

NOUNS = {"addition": "sums", "sorting": "words"}
JUDGED_NOUNS = {"labels": "texts", "preference": "pairs", "unpaired": "answers"}
"""What the rows of a judge are called, by their kind."""


@dataclass(frozen=True)
class Step:
    """One of the steps of a round."""

    name: str
    text: str


def noun(task: str) -> str:
    """What the problems of a task are called."""
    return NOUNS.get(task, "problems")


def reading(task: str, prompt: str) -> str | None:
    """What a task's shorthand prompt means, where it needs saying."""
    if task == "sorting" and (word := re.fullmatch(r"([a-z]+)=", prompt)):
        return f"{prompt} asks for the letters of “{word[1]}” in alphabetical order: {''.join(sorted(word[1]))}."
    found = re.fullmatch(r"(\d+)\+(\d+)=", prompt) if task == "addition" else None
    if found is None:
        return None
    first, second = (int(digits[::-1]) for digits in found.groups())
    answer = f"{first + second:0{len(found[1]) + 1}d}"[::-1]
    return (
        f"{prompt} asks for {first} + {second}. Numbers are written backwards, units first, "
        f"so the right answer, {first + second}, is written {answer}."
    )


def opening(kind: str, rounds: int, config: Mapping[str, Any]) -> str:
    """The first sentences for someone who has read nothing."""
    name = lessons.method(config)
    if kind == "tune":
        shown = "a better and a worse answer to each" if name in lessons.NAMES else "their answers"
        return (
            f"A language model was fine-tuned: it was shown problems together with {shown}, in "
            f"{counted(rounds, 'round')}. After each it was measured on problems kept apart from training."
        )
    tried = f"in {counted(rounds, 'round')} it tried new problems"
    if name == "spin":
        return (
            f"A language model played against itself: {tried}, and learned to tell the labelled answers from its own."
        )
    if name == "distill":
        return f"A language model learned from a teacher: {tried}, and the teacher said what it would have answered."
    eye = "Nothing that it learned from had seen a true answer." if config.get("label_free") else ""
    source = "the good ones" if name not in lessons.NAMES else "the verdicts"
    return (
        f"A language model practised on its own: {tried}, its answers were judged, and it learned from {source}. "
        f"Nobody wrote those answers for it. {eye}"
    ).strip()


def steps(config: Mapping[str, Any], names: Sequence[str], task: str, accepted: int, decided: int) -> tuple[Step, ...]:
    """The steps of a round, with this run's own figures. ``names`` are the reward parts."""
    update = config.get("update", {})
    words = noun(task)
    if decided:
        kept = f"{accepted} of {decided} {'round was' if decided == 1 else 'rounds were'} accepted."
    else:
        kept = "Nothing was held out here, so every round was accepted unseen."
    gate = Step(
        "Accept or roll back",
        f"The new model met the best one so far on held-out {words}. Where it was clearly worse, the round was undone. "
        f"{kept}",
    )
    if "problems" not in config:
        name = lessons.NAMES.get(lessons.method(config))
        rows = f"pairs of a better and a worse answer ({name})" if name else "rows with known answers"
        text = f"The model took {update.get('steps', 0)} optimizer steps a round on {rows}."
        return Step("Train", text), gate
    labelled = f", mixed with labelled {words}" if config.get("data", {}).get("labelled") else ""
    asked = f"The model answered {numbers.whole(config['problems'])} {words} a round, {config['samples']} times each."
    return (
        Step("Generate", asked),
        Step("Evaluate", f"A reward ({', '.join(names) or 'none'}) judged each answer."),
        Step("Update", lessons.learned(config, labelled, words)),
        gate,
    )


def cautions(
    config: Mapping[str, Any], stages: Sequence[str], split: str, n: int, reward_names: Sequence[str]
) -> tuple[str, ...]:
    """What a reader should be careful about in this very run. ``n`` problems were held out in ``split``."""
    found = _reward_cautions(config, reward_names)
    if "improved" in stages and not any(stage in CONTROLS for stage in stages):
        found.append(
            "No control was run, so part of the change may be owed to extra training as such. "
            "Add controls: [labelled, unfiltered, gold] to the recipe to find out."
        )
    if split == "dev":
        found.append(
            "There was no test split. The figures are of dev problems, by which the gate chose the best round, "
            "and flatter it a little. Name test problems with data.test."
        )
    if 0 < n < 200:
        found.append(f"Only {n} problems were held out: the intervals are wide, and small gains cannot be seen.")
    found.append("This is one seed. Another one gives other figures; run several before you rely on a small gain.")
    return tuple(found)


def _reward_cautions(config: Mapping[str, Any], reward_names: Sequence[str]) -> list[str]:
    rewards = [reward.get("use", "") for reward in config.get("rewards", ())]
    if "problems" not in config:
        return []
    perfect = [name for name in rewards if name in CHECKERS]
    own = [name for name in reward_names if name not in RULES and name not in sources()]
    judges = [name for name in reward_names if name in sources() and not sources()[name].uses_reference]
    found = []
    if perfect:
        found.append(
            f"The reward {' and '.join(perfect)} compares each answer with the true one. A perfect checker of short "
            "answers is close to a hidden label: this shows what a model learns from being checked, not that it can "
            "do without the truth."
        )
    if own:
        found.append(
            f"The reward {' and '.join(own)} is somebody's program, and a model can learn to please it without getting "
            "better. Read the samples, and watch distinct answers, length and entropy."
        )
    if judges:
        found.append(
            f"The reward {' and '.join(judges)} is an opinion, and a model can learn to please it without getting "
            "better. Look at the monitors, and name a truth under report_rewards where there is one."
        )
    if config.get("label_free"):
        found.append(
            "This run promised that no training signal sees a true answer. Figures by true answers were taken for "
            "this report alone and decided nothing."
        )
    return found


def counted(count: int, noun: str) -> str:
    """A count with its noun: 1 round, 2 rounds."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
