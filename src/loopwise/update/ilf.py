"""Imitation learning from language feedback (Scheurer et al. 2023; Chen et al. 2023 for programs).

Drafts are criticised, several revisions of each are drawn, the best is chosen, and the model learns to write it at
once: after the prompt alone, without draft and critique. Left out of the papers: ranking revisions by how well they
follow the critique, and a second model that writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from loopwise.config.blocks import RefineConfig
from loopwise.config.methods import ILFConfig
from loopwise.models.logps import TokenRow
from loopwise.models.policy import Policy
from loopwise.models.tokens import encode_prompts, fits
from loopwise.types import REWARD_ROUNDING, Context, Problem, Rollout, Sample, Scored, Updated
from loopwise.update.imitation import add_samples, learn_pool, open_pool
from loopwise.update.refinement import Answer, revision_problem
from loopwise.update.rows import Pool


class Lesson(NamedTuple):
    """A sample worth learning, and the problem that it is to be the answer of."""

    sample: Sample
    problem: Problem


@dataclass(frozen=True)
class ILF:
    """Learn chosen revisions of one's own drafts, from a pool that every round adds to, beside the labelled rows.

    ``samples`` drafts are made of each problem, at step 0; at step 1 ``config.revisions`` revisions of each draft that
    is criticised, which is shown as ``refine`` says, with room for ``max_tokens``. ``rounds`` is the run's number of
    rounds: the schedule spans them all.
    """

    config: ILFConfig
    refine: RefineConfig
    labelled: tuple[TokenRow, ...]
    samples: int
    rounds: int
    max_tokens: int
    needs = frozenset({"weights", "text"})

    def __call__(
        self, policy: Policy, state: Any, problems: Sequence[Problem], rollout: Rollout, context: Context
    ) -> Updated:
        pool = open_pool(state)
        drafts = rollout(policy, problems, self.samples)
        lessons = self._accepted(drafts) if self.config.accepted_drafts else []
        revised, metrics = self._revised(policy, drafts, rollout)
        kept = _keep(policy, [*lessons, *revised], pool, context)
        metrics |= {"kept": float(kept)}
        return learn_pool(
            policy,
            state,
            context,
            config=self.config,
            labelled=self.labelled,
            pool=pool,
            rounds=self.rounds,
            metrics=metrics,
        )

    def _accepted(self, drafts: Scored) -> list[Lesson]:
        passing = self._passing(drafts)
        return [
            Lesson(sample, drafts.problems[sample.group])
            for sample, passes in zip(drafts.samples, passing, strict=True)
            if passes
        ]

    def _revised(self, policy: Policy, drafts: Scored, rollout: Rollout) -> tuple[list[Lesson], dict[str, float]]:
        """The chosen revision of each criticised draft that has one, and the figures of it all."""
        answers = [Answer(drafts, place) for place in range(len(drafts.samples))]
        criticised = [answer for answer in answers if answer.critique is not None]
        asked = {place: revision_problem(answer, self.refine) for place, answer in enumerate(criticised)}
        asked = {place: problem for place, problem in asked.items() if fits(policy, problem, self.max_tokens)}
        metrics = {
            "criticised": len(criticised) / max(1, len(answers)),
            "too_long": (len(criticised) - len(asked)) / max(1, len(answers)),
        }
        if not asked:
            return [], metrics
        revisions = rollout(policy, list(asked.values()), self.config.revisions, step=1)
        lessons = [
            Lesson(revisions.samples[best], criticised[place].problem)
            for place, best in zip(asked, self._choose(revisions), strict=True)
            if best is not None
        ]
        return lessons, {**metrics, "revisions": float(len(revisions.samples)), "revised": len(lessons) / len(asked)}

    def _choose(self, revisions: Scored) -> list[int | None]:
        """The position of each group's best revision, the first of equals; None where none passes."""
        totals, passing = revisions.feedback.totals, self._passing(revisions)
        if self.config.choose == "critic":
            totals = np.zeros(len(passing))
        groups = ([place for place in members if passing[place]] for _, members in revisions.groups())
        return [max(members, key=lambda place: float(totals[place]), default=None) for members in groups]

    def _passing(self, scored: Scored) -> list[bool]:
        """Whether each sample is good enough to be learned. One that could not be judged never is."""
        if self.config.choose == "critic":
            return [Answer(scored, place).accepted for place in range(len(scored.samples))]
        passing: list[bool] = (scored.feedback.totals >= self.config.threshold - REWARD_ROUNDING).tolist()
        return passing


def _keep(policy: Policy, lessons: Sequence[Lesson], pool: Pool, context: Context) -> int:
    """Pool samples as answers to their problems as these were asked first; report and count those in the pool now."""
    problems = [lesson.problem for lesson in lessons]
    prompts = encode_prompts(policy, problems)
    samples = [replace(one.sample, prompt_ids=tuple(ids)) for one, ids in zip(lessons, prompts, strict=True)]
    return add_samples(pool, policy, samples, problems, context)
