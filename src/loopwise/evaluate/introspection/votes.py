"""Majority vote: the answer that most samples of a problem give counts as right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from loopwise.evaluate.groups import group_members
from loopwise.evaluate.introspection.answers import Answers
from loopwise.evaluate.parts import Judged
from loopwise.types import Problem, Sample


@dataclass(frozen=True)
class Vote:
    """1 for a sample that gives the answer most samples of its problem give, 0 for the others (TTRL, Zuo et al. 2025).

    A problem is abstained from, so that no other part judges its samples either, where two answers come first alike,
    where the majority has less than ``least_share`` of the samples, where none gives an answer, and where there is a
    single sample.
    """

    answers: Answers
    least_share: float = 0.0

    async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Judged:
        """Count the votes of each problem; ``extra`` says each sample's ``vote_share``: the majority's, of them all.

        A sample whose answer could not be read votes as one that gives none, and is in ``errors``.
        """
        judged = Judged.nothing(len(samples))
        answers, judged.errors = await self.answers([sample.text for sample in samples])
        shares = []
        for members in group_members(samples):
            if len(members) == 1:
                judged.abstained.update(members)
                continue
            winner, share = majority([answers[place] for place in members])
            shares.append(share)
            decided = winner is not None and share >= self.least_share
            for place in members:
                judged.extra[place]["vote_share"] = share
                if decided and place not in judged.errors:
                    judged.rewards[place] = float(answers[place] == winner)
            if not decided:
                judged.abstained.update(members)
        if shares:
            judged.metrics["vote_share"] = shares
        return judged

    def close(self) -> None:
        """End what reads the answers."""
        self.answers.close()


def majority(answers: Sequence[str | None]) -> tuple[str | None, float]:
    """The most frequent answer, None where there is no one such, and its share of all, those without one included."""
    ranked = Counter(answer for answer in answers if answer is not None).most_common(2)
    if not ranked:
        return None, 0.0
    tied = len(ranked) == 2 and ranked[0][1] == ranked[1][1]
    return None if tied else ranked[0][0], ranked[0][1] / len(answers)
