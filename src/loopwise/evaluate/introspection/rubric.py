"""The model as judge: how good it finds an answer, by the probabilities of the marks it would give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from loopwise.evaluate.groups import group_members
from loopwise.evaluate.introspection.asked import Asked, expected
from loopwise.evaluate.parts import Judged
from loopwise.models.templates import fill, transcript
from loopwise.types import Problem, Sample


@dataclass(frozen=True)
class Rubric:
    """The expected mark, scaled to 0-1 (G-Eval, Liu et al. 2023): one forward pass over ``rubric``, nothing generated.

    ``marks`` are the words it may answer with, from the worst to the best, evenly spaced.
    """

    asked: Asked
    rubric: str
    marks: Sequence[str]

    def asking(self, policy: Any) -> Rubric:
        """The same, asking this policy where it asks the policy at all."""
        return replace(self, asked=self.asked.told(policy))

    async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Judged:
        """Mark each sample. The metric ``judge/answered`` is the probability that the next token is a mark at all."""
        judged = Judged.nothing(len(samples))
        texts = [
            fill(self.rubric, prompt=transcript(problem.prompt), completion=sample.text)
            for problem, sample in zip(problems, samples, strict=True)
        ]
        questions = self.asked.questions(texts)
        asked: list[list[int]] = []
        for members in group_members(samples):
            for place in members:
                if reason := self.asked.too_long(questions[place]):
                    judged.errors[place] = reason
            asked.append([place for place in members if place not in judged.errors])
        logps = await self.asked.log_probabilities([[questions[n] for n in members] for members in asked], self.marks)
        scores, answered = expected(logps, np.linspace(0.0, 1.0, len(self.marks)).tolist())
        for place, score in zip((place for members in asked for place in members), scores.tolist(), strict=True):
            judged.rewards[place] = score
        if len(answered):
            judged.metrics["judge/answered"] = answered.tolist()
        return judged

    def close(self) -> None:
        """Nothing to end."""
