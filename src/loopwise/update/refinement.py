"""Self-Refine (Madaan et al. 2023): draft, critique, revision, until the critics have nothing to say.

Left out of the paper: a revision is shown the newest draft and its critique, not all that came before them; and who
criticises is anybody, the model itself among others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from loopwise.config.blocks import RefineConfig
from loopwise.feedback import joined_feedback
from loopwise.models.policy import Policy
from loopwise.models.templates import fill
from loopwise.models.tokens import fits
from loopwise.types import LOST, Feedback, Message, Problem, Prompt, Rollout, Sample, Scored

CRITIC_ERROR = "critic_error"
"""The key of ``Feedback.extra`` that says why a critic could not judge a sample."""


@dataclass(frozen=True)
class Refined:
    """Drafts and their revisions: ``steps[0]`` are the drafts, ``steps[n]`` the n-th revisions of those that needed
    one.

    ``final`` holds each draft's last revision, or itself, in the drafts' order and under their problems, groups and
    indexes; its critiques and rewards are those of the text it holds. ``metrics``: shares of drafts ``accepted`` in the
    end, ``unjudged`` (a critic failed) and ``too_long`` to be revised, mean ``revisions`` of a draft, and the mean
    ``reward/{n}`` after n revisions at most, of what could be judged.
    """

    steps: tuple[Scored, ...]
    final: Scored
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Answer:
    """A sample in its rollout: ``place`` is its position there."""

    scored: Scored
    place: int

    @property
    def sample(self) -> Sample:
        return self.scored.samples[self.place]

    @property
    def problem(self) -> Problem:
        return self.scored.problems[self.sample.group]

    @property
    def critique(self) -> str | None:
        """What is said against it; None where nothing is, or nothing could be."""
        critiques = self.scored.feedback.critiques
        return critiques[self.place] if critiques and self.judged else None

    @property
    def judged(self) -> bool:
        """Whether all critics could judge it: what one failed on is neither accepted nor revised."""
        extra = self.scored.feedback.extra
        return self.sample.finish_reason != LOST and not (extra and extra[self.place].get(CRITIC_ERROR))

    @property
    def accepted(self) -> bool:
        """Whether the critics have nothing to say against it."""
        return self.judged and self.critique is None


def refine(
    rollout: Rollout,
    policy: Policy,
    problems: Sequence[Problem],
    k: int,
    config: RefineConfig,
    *,
    step: int = 0,
    drafts: Scored | None = None,
    max_tokens: int = 0,
) -> Refined:
    """Revise k drafts of each problem until nothing is said against them, ``config.revisions`` times at most.

    The n-th revisions are a rollout of their own at ``step`` + n, each sample linked with what it revises by its
    ``parent``. ``drafts`` are those of ``step`` where they are there already. A draft stays as it is where its revision
    prompt and ``max_tokens`` more exceed the model's context. Raises what ``rollout`` does.
    """
    first = rollout(policy, problems, k, step=step) if drafts is None else drafts
    steps = [first]
    newest = [Answer(first, place) for place in range(len(first.samples))]
    stages = [newest]
    stuck: set[int] = set()
    for number in range(1, config.revisions + 1):
        asked = [place for place, answer in enumerate(newest) if answer.critique is not None and place not in stuck]
        revised = {place: revision_problem(newest[place], config) for place in asked}
        stuck |= {place for place in asked if not fits(policy, revised[place], max_tokens)}
        going = [place for place in asked if place not in stuck]
        if not going:
            break
        scored = rollout(policy, [revised[place] for place in going], 1, step=step + number)
        steps.append(scored)
        answers = {place: Answer(scored, row) for row, place in enumerate(going)}
        newest = [answers.get(place, answer) for place, answer in enumerate(newest)]
        stages.append(newest)
    return Refined(tuple(steps), _final(steps, newest), _metrics(steps, stages, config.revisions, len(stuck)))


def revision_problem(answer: Answer, config: RefineConfig) -> Problem:
    """The problem of revising a criticised answer: that of the answer, but for what the policy is shown."""
    problem, sample = answer.problem, answer.sample
    shown = revision_prompt(problem.prompt, sample.text, answer.critique or "", config)
    return replace(problem, id=f"{problem.id}~{sample.index}", shown=shown, parent=sample.id)


def revision_prompt(prompt: Prompt, draft: str, critique: str, config: RefineConfig) -> Prompt:
    """What a revision goes on from: ``config.template`` filled; or the conversation with the draft and what the user
    says to it, ``config.chat_template`` filled."""
    if isinstance(prompt, str):
        return fill(config.template, prompt=prompt, draft=draft, critique=critique)
    said = fill(config.chat_template, draft=draft, critique=critique)
    rest: list[Message] = [{"role": "assistant", "content": draft}, {"role": "user", "content": said}]
    return (*prompt, *rest)


def _final(steps: Sequence[Scored], newest: Sequence[Answer]) -> Scored:
    drafts = steps[0]
    samples = tuple(
        replace(answer.sample, problem_id=draft.problem_id, group=draft.group, index=draft.index)
        for draft, answer in zip(drafts.samples, newest, strict=True)
    )
    return Scored(drafts.problems, samples, _feedback(steps, newest))


def _feedback(steps: Sequence[Scored], answers: Sequence[Answer]) -> Feedback:
    """The feedback on each of ``answers``, samples of ``steps``. Preferences and metrics are of whole rollouts, and are
    left out."""
    lots = [replace(scored.feedback, preferences=(), metrics={}) for scored in steps]
    starts = accumulate((len(scored.samples) for scored in steps), initial=0)
    first = {id(scored): start for scored, start in zip(steps, starts, strict=False)}
    return joined_feedback(lots).at([first[id(answer.scored)] + answer.place for answer in answers])


def _metrics(
    steps: Sequence[Scored], stages: Sequence[Sequence[Answer]], revisions: int, too_long: int
) -> dict[str, float]:
    drafts, newest = stages[0], stages[-1]
    count = max(1, len(drafts))
    metrics = {
        "accepted": sum(answer.accepted for answer in newest) / count,
        "unjudged": sum(not answer.judged for answer in newest) / count,
        "too_long": too_long / count,
        "revisions": sum(len(scored.samples) for scored in steps[1:]) / count,
    }
    for number in range(revisions + 1):
        # Once nothing is left to revise, further revisions would change nothing.
        totals = _feedback(steps, stages[min(number, len(stages) - 1)]).totals
        judged = totals[~np.isnan(totals)]
        if judged.size:
            metrics[f"reward/{number}"] = float(judged.mean())
    return metrics
