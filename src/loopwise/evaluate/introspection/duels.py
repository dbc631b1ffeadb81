"""The model as judge of pairs: which of two answers it finds better, asked in both orders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice
from typing import Any, NamedTuple

import numpy as np

from loopwise.evaluate.groups import group_members
from loopwise.evaluate.introspection.asked import Asked, expected
from loopwise.evaluate.parts import Judged
from loopwise.models.templates import fill, transcript
from loopwise.runtime import seed_key, uniforms
from loopwise.types import Preference, Problem, Sample


class Duel(NamedTuple):
    """Two samples of a problem, by position, and the questions that set them side by side in both orders.

    None: their texts are one, and there is nothing to ask.
    """

    first: int
    second: int
    questions: tuple[list[int], list[int]] | None


@dataclass(frozen=True)
class Duels:
    """The share of its comparisons that a sample won, each pair asked about in both orders.

    ``letters`` stand for the answer shown first and the one shown second: the likelier of them as the next token wins.

    A pair is won where both orders agree on the better one: what a model prefers for standing first says nothing
    (Zheng et al. 2023). Otherwise, and between two samples with one text, it counts half for either. ``pairs``: at most
    so many of a problem, spread evenly over its samples; 0 for all.
    """

    asked: Asked
    template: str
    letters: Sequence[str]
    pairs: int
    seed: int

    def asking(self, policy: Any) -> Duels:
        """The same, asking this policy where it asks the policy at all."""
        return replace(self, asked=self.asked.told(policy))

    async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Judged:
        """Compare each problem's samples. One that was compared with none, as one by itself, is abstained from.

        Preferences weigh 2p - 1, p the mean probability of the better one over both orders. Metrics:
        ``order_agreement``, the share of pairs on which the orders agree, and ``compare/answered``, the probability of
        either letter.
        """
        judged = Judged.nothing(len(samples))
        points: list[list[float]] = [[] for _ in samples]
        grouped: list[list[Duel]] = []
        for members in group_members(samples):
            asked = []
            for duel in self._duels(problems[members[0]], samples, members):
                if duel.questions is None:
                    points[duel.first].append(0.5)
                    points[duel.second].append(0.5)
                elif reason := self.asked.too_long(max(duel.questions, key=len)):
                    judged.errors |= {duel.first: reason, duel.second: reason}
                else:
                    asked.append(duel)
            grouped.append(asked)
        await self._settle(grouped, judged, points)
        judged.rewards = [sum(each) / len(each) if each else None for each in points]
        # What could be compared with some is judged by those.
        judged.errors = {place: reason for place, reason in judged.errors.items() if not points[place]}
        judged.abstained = {place for place, each in enumerate(points) if not each and place not in judged.errors}
        return judged

    def close(self) -> None:
        """Nothing to end."""

    async def _settle(self, grouped: Sequence[Sequence[Duel]], judged: Judged, points: list[list[float]]) -> None:
        """Ask about each pair, and deal out its points."""
        questions = [[ids for duel in duels for ids in duel.questions or ()] for duels in grouped]
        logps = await self.asked.log_probabilities(questions, self.letters)
        firsts, answered = expected(logps, (1.0, 0.0))
        agreements = []
        for duel, (forth, back) in zip((d for duels in grouped for d in duels), firsts.reshape(-1, 2), strict=True):
            won, lost = forth > 0.5 > back, forth < 0.5 < back
            agreements.append(float(won or lost))
            points[duel.first].append(1.0 if won else 0.0 if lost else 0.5)
            points[duel.second].append(0.0 if won else 1.0 if lost else 0.5)
            if won or lost:
                better, worse = (duel.first, duel.second) if won else (duel.second, duel.first)
                judged.preferences.append(Preference(better, worse, abs(float(forth - back))))
        if agreements:
            judged.metrics |= {"order_agreement": agreements, "compare/answered": answered.tolist()}

    def _duels(self, problem: Problem, samples: Sequence[Sample], members: Sequence[int]) -> list[Duel]:
        prompt = transcript(problem.prompt)
        pairs = [(members[a], members[b]) for a, b in self._chosen([samples[place].id for place in members])]
        orders = [(samples[a].text, samples[b].text) for a, b in pairs if samples[a].text != samples[b].text]
        texts = [
            fill(self.template, prompt=prompt, first=first, second=second)
            for order in orders
            for first, second in (order, order[::-1])
        ]
        asked = iter(self.asked.questions(texts))
        return [
            Duel(a, b, None if samples[a].text == samples[b].text else (next(asked), next(asked))) for a, b in pairs
        ]

    def _chosen(self, ids: Sequence[str]) -> Iterator[tuple[int, int]]:
        """Places of the samples to be paired: all, or ``pairs`` of them by neighbours in a seeded circle."""
        count = len(ids)
        if not self.pairs or self.pairs >= count * (count - 1) // 2:
            yield from combinations(range(count), 2)
            return
        keys = np.array([seed_key(self.seed, "compare", name) for name in ids], dtype=np.uint64)
        circle = np.argsort(uniforms(keys, 0)).tolist()
        # Every second one first: the first half of the pairs of a step has each sample once. Half the circle away, the
        # second half of the places would make the pairs of the first again.
        order = [*range(0, count, 2), *range(1, count, 2)]
        steps = (
            (place, step)
            for step in range(1, count // 2 + 1)
            for place in (order if 2 * step < count else range(count // 2))
        )
        for place, step in islice(steps, self.pairs):
            yield circle[place], circle[(place + step) % count]
