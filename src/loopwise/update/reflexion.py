"""Reflexion (Shinn et al. 2023): try, write down what went wrong, and try again with that in the prompt.

No weights change: lessons live in the policy's prompt state, each filed under its problem's task. Left out of the
paper: actions in an environment between the trials, and a check of the policy's own making in place of the reward.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import numpy as np

from loopwise.config.methods import ReflexionConfig
from loopwise.models.policy import Policy
from loopwise.models.prompts import task_of
from loopwise.models.templates import fill
from loopwise.models.tokens import encode_prompts, fits
from loopwise.types import REWARD_ROUNDING, Context, Message, Problem, Prompt, Rollout, Sample, Scored, Updated
from loopwise.update.refinement import Answer

Lessons = tuple[tuple[str, str], ...]
"""Pairs (task, lesson), the oldest first."""


@dataclass(frozen=True)
class Reflexion:
    """A round tries its problems ``config.trials`` times at most, those that are not solved yet.

    ``samples`` are drawn of a problem in a trial (one in the paper), and one that passes solves it. After every trial
    a lesson is written on misses, by the policy itself or in a critic's words, on ``config.lessons`` problems of a task
    at most; as many lessons of a task are kept, the newest. Prompts leave room for ``most_tokens`` of a completion:
    those of the round, and ``held_out`` ones, which are shown the lessons of their tasks, too.
    """

    config: ReflexionConfig
    samples: int
    most_tokens: int
    held_out: tuple[Problem, ...] = ()
    needs = frozenset({"text"})

    def __call__(
        self, policy: Policy, state: Any, problems: Sequence[Problem], rollout: Rollout, context: Context
    ) -> Updated:
        config, left = self.config, list(problems)
        room = _Room.of(policy, (*problems, *self.held_out), self.most_tokens)
        # Problems of this round may be longer than those that its lessons were learned on.
        policy, dropped = room.fitted(policy)
        counts = Counter({"lessons": 0, "lessons/dropped": dropped, "lessons/unwritten": 0})
        solved: dict[str, float] = {}
        for trial in range(1, config.trials + 1):
            if left:
                # A trial and the lessons on it are one policy's, and so one step of the round.
                scored = rollout(policy, left, self.samples, step=trial - 1)
                left, misses = tried(scored, config.threshold)
                written = self._written(policy, misses, rollout, trial - 1)
                context.keep(written.about)
                lessons = filed(policy.prompt_state.lessons, written.lessons, config.lessons)
                policy, dropped = room.fitted(_knowing(policy, lessons))
                told = {"lessons": len(written.lessons), "lessons/dropped": dropped}
                counts.update({**told, "lessons/unwritten": written.too_long})
            share = 1 - len(left) / max(1, len(problems))
            solved[f"solved/{trial}"] = share
            context.record(trial, {"solved": share, "lessons": float(counts["lessons"])})
        counts["lessons/kept"] = len(policy.prompt_state.lessons)
        return Updated(policy, state, {**solved, **{name: float(count) for name, count in counts.items()}})

    def _written(self, policy: Policy, misses: Sequence[Miss], rollout: Rollout, step: int) -> _Written:
        """Lessons on as many misses of each task as are kept."""
        config = self.config
        if config.writes == "critic":
            misses = _first_of_each_task([miss for miss in misses if miss.critique.strip()], config.lessons)
            return _Written.of(misses, [miss.critique.strip() for miss in misses])
        misses = _first_of_each_task(misses, config.lessons)
        asked = [_reflecting(miss, config.template) for miss in misses]
        room = [fits(policy, problem, self.most_tokens) for problem in asked]
        asked, misses = list(compress(asked, room)), list(compress(misses, room))
        samples = rollout(policy, asked, 1, step=step, judged=False).samples if asked else ()
        # A line of the prompt each.
        written = _Written.of(misses, [" ".join(sample.text.split()) for sample in samples])
        return replace(written, too_long=room.count(False))


@dataclass(frozen=True)
class Miss:
    """A problem that no sample solved, the first of its samples that was judged, and what was said of that."""

    problem: Problem
    sample: Sample
    critique: str = ""


@dataclass(frozen=True)
class _Written:
    """Lessons, the ids of the samples they are ``about``, and how many there was no room to write."""

    lessons: Lessons
    about: tuple[str, ...]
    too_long: int = 0

    @staticmethod
    def of(misses: Sequence[Miss], texts: Sequence[str]) -> _Written:
        """Those with words."""
        told = [(miss, text) for miss, text in zip(misses, texts, strict=True) if text]
        return _Written(
            tuple((task_of(miss.problem), text) for miss, text in told), tuple(miss.sample.id for miss, _ in told)
        )


def tried(scored: Scored, threshold: float) -> tuple[list[Problem], list[Miss]]:
    """The problems of a trial that are not solved, and the misses among them.

    A problem whose samples could not be judged is neither solved nor missed. Of a problem's misses the first counts, or
    the first that a critic had something to say of.
    """
    totals = scored.feedback.totals
    left, misses = [], []
    for problem, members in scored.groups():
        judged = [place for place in members if not np.isnan(totals[place])]
        if any(totals[place] >= threshold - REWARD_ROUNDING for place in judged):
            continue
        left.append(problem)
        answers = [Answer(scored, place) for place in judged]
        if answers:
            answer = next((answer for answer in answers if answer.critique), answers[0])
            misses.append(Miss(problem, answer.sample, answer.critique or ""))
    return left, misses


def filed(lessons: Lessons, new: Lessons, most: int) -> Lessons:
    """Lessons with the ``new`` ones after them: ``most`` of each task, the newest; one that is there already moves."""
    again = set(new)
    kept: list[tuple[str, str]] = []
    counts: Counter[str] = Counter()
    for task, lesson in reversed(dict.fromkeys((*(old for old in lessons if old not in again), *new))):
        counts[task] += 1
        if counts[task] <= most:
            kept.append((task, lesson))
    return tuple(reversed(kept))


@dataclass(frozen=True)
class _Room:
    """Room for ``most_tokens`` more after every prompt; ``longest`` is the longest of each task."""

    longest: Mapping[str, Problem]
    most_tokens: int

    @staticmethod
    def of(policy: Policy, problems: Sequence[Problem], most_tokens: int) -> _Room:
        """The longest of ``problems``, where the policy's context has a limit at all."""
        if policy.weights is None or policy.weights.context_length is None:
            return _Room({}, most_tokens)
        lengths = map(len, encode_prompts(_knowing(policy, ()), problems))
        ordered = sorted(zip(lengths, problems, strict=True), key=lambda pair: pair[0])
        return _Room({task_of(problem): problem for _, problem in ordered}, most_tokens)

    def fitted(self, policy: Policy) -> tuple[Policy, int]:
        """The policy less the lessons, oldest first, that leave no room after some prompt of their task; how many."""
        before = policy.prompt_state.lessons
        for task in dict.fromkeys(task for task, _ in before if task in self.longest):
            own = [lesson for lesson in before if lesson[0] == task]
            while own and not fits(policy, self.longest[task], self.most_tokens):
                oldest = own.pop(0)
                policy = _knowing(policy, tuple(one for one in policy.prompt_state.lessons if one != oldest))
        return policy, len(before) - len(policy.prompt_state.lessons)


def _reflecting(miss: Miss, template: str) -> Problem:
    """The problem of writing a lesson on a miss."""
    problem, draft = miss.problem, miss.sample.text
    shown: Prompt
    if isinstance(problem.prompt, str):
        shown = fill(template, prompt=problem.prompt, draft=draft, critique=miss.critique)
    else:
        # A conversation holds the question and the draft already.
        said = fill(template, prompt="", draft="", critique=miss.critique).strip()
        rest: list[Message] = [{"role": "assistant", "content": draft}, {"role": "user", "content": said}]
        shown = (*problem.prompt, *rest)
    return replace(problem, id=f"{problem.id}~lesson", shown=shown, parent=miss.sample.id)


def _first_of_each_task(misses: Sequence[Miss], most: int) -> list[Miss]:
    counts: Counter[str] = Counter()
    chosen = []
    for miss in misses:
        counts[task_of(miss.problem)] += 1
        if counts[task_of(miss.problem)] <= most:
            chosen.append(miss)
    return chosen


def _knowing(policy: Policy, lessons: Lessons) -> Policy:
    """The policy with these lessons."""
    if policy.prompt_state.lessons == lessons:
        return policy
    return replace(policy, prompt_state=replace(policy.prompt_state, lessons=lessons), name=None)
