"""Majority vote: the answer that most samples of a problem give counts as right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from loopwise.evaluate.judging.answers import Extract, groups
from loopwise.evaluate.parts import Judged
from loopwise.types import Problem, Sample


@dataclass(frozen=True)
class Vote:
    """1 for a sample that gives the answer most samples of its problem give, 0 for the others (TTRL, Zuo et al. 2025).

    A problem says nothing, and its samples are masked, where two answers come first alike, where the majority has less
    than ``least_share`` of the samples, where none gives an answer, and where there is a single sample.
    """

    answer: Extract
    least_share: float = 0.0

    async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Judged:
        """Count the votes of each problem; ``extra`` says each sample's ``vote_share``: the majority's, of them all."""
        judged = Judged.nothing(len(samples))
        shares = []
        for members in groups(samples):
            if len(members) == 1:
                continue
            answers = [self.answer(samples[place].text) for place in members]
            winner, share = majority(answers)
            shares.append(share)
            for place, answer in zip(members, answers, strict=True):
                judged.extra[place]["vote_share"] = share
                if winner is not None and share >= self.least_share:
                    judged.rewards[place] = float(answer == winner)
        if shares:
            judged.metrics["vote_share"] = shares
        return judged

    def close(self) -> None:
        """Nothing to end."""


def majority(answers: Sequence[str | None]) -> tuple[str | None, float]:
    """The most frequent answer, None where there is no one such, and its share of all, those without one included."""
    ranked = Counter(answer for answer in answers if answer is not None).most_common(2)
    if not ranked:
        return None, 0.0
    tied = len(ranked) == 2 and ranked[0][1] == ranked[1][1]
    return None if tied else ranked[0][0], ranked[0][1] / len(answers)
