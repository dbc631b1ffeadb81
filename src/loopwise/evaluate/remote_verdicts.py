"""What remote judges and critics say of samples: scores, comparisons in both orders, words."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from loopwise.errors import RemoteError
from loopwise.evaluate.groups import group_members
from loopwise.evaluate.parts import Judged
from loopwise.models.templates import transcript
from loopwise.remote.answers import CUT
from loopwise.remote.client import Endpoint, Reply, ask_all
from loopwise.remote.verdicts import accepts, conversation, read_score, read_verdict
from loopwise.types import Message, Preference, Problem, Sample

MOST_KEPT = 2000
"""Characters of a judge's words that are kept with a sample."""


@dataclass(frozen=True)
class Asker:
    """An endpoint as one source asks it."""

    source: str
    endpoint: Endpoint
    max_tokens: int
    temperature: float

    def __call__(self, messages: Sequence[Message], place: str) -> Awaitable[Reply]:
        """The reply to ``messages`` about what stands at ``place`` in the run."""
        return self.endpoint.chat(
            messages,
            place=f"{self.source}/{place}",
            max_tokens=self.max_tokens,
            temperature=self.temperature,
        )


@dataclass(frozen=True)
class RubricJudge:
    """Scores each sample by itself. ``column`` is the reference it is shown, None: it is shown none."""

    asker: Asker
    rubric: str
    least: float
    most: float
    column: str | None

    async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Judged:
        """A reward from 0 to 1 for each; a reply without a score on the scale is none, and stands in ``errors``."""
        judged = Judged.nothing(len(samples))
        missing = self._without_reference(problems)

        def ask(position: int) -> Awaitable[Reply]:
            return self.asker(self._question(problems[position], samples[position]), _at(samples[position]))

        def hear(position: int, reply: Reply) -> None:
            judged.extra[position][f"said/{self.asker.endpoint.name}"] = reply.text[:MOST_KEPT]
            score = None if _cut(reply) else read_score(reply.text, self.least, self.most)
            if score is None:
                judged.errors[position] = f"no score from {self.least:g} to {self.most:g} at the end of {_end(reply)}"
            judged.rewards[position] = score

        await _each(judged, missing, ask, hear)
        return judged

    def close(self) -> None:
        """Nothing to end: endpoints are the run's."""

    def _without_reference(self, problems: Sequence[Problem]) -> dict[int, str]:
        if self.column is None:
            return {}
        return {
            position: f'there is no reference in column "{self.column}". Name another with "column"'
            for position, problem in enumerate(problems)
            if problem.columns.get(self.column) is None
        }

    def _question(self, problem: Problem, sample: Sample) -> list[Message]:
        reference = {} if self.column is None else {"reference": str(problem.columns[self.column])}
        return conversation(
            f"{self.rubric}\n\nGive the answer a score from {self.least:g} (worst) to {self.most:g} (best). Say why in "
            "a sentence or two. Then end with a line of its own:\nscore: N",
            question=transcript(problem.prompt),
            **reference,
            answer=sample.text,
        )


@dataclass(frozen=True)
class Comparisons:
    """Sets samples of a group side by side, in both orders: a judge who favours the first or the second place says
    nothing."""

    asker: Asker
    rubric: str
    opponents: int

    async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Judged:
        """The share of comparisons won (a tie, or two orders that disagree, is half), and a preference for each that
        both orders agree on. ``agreement`` is the share of comparisons on which they do, ties included.
        """
        judged = Judged.nothing(len(samples))
        pairs = [pair for group in group_members(samples) for pair in _pairings(group, self.opponents)]
        # Equal texts are a tie whatever a judge would say.
        asked = [(a, b) for a, b in pairs if samples[a].text != samples[b].text]
        ordered = [order for a, b in asked for order in ((a, b), (b, a))]
        replies = await ask_all([self._ask(problems[a], samples[a], samples[b]) for a, b in ordered])
        points: dict[int, list[float]] = {}
        for a, b in pairs:
            if samples[a].text == samples[b].text:
                points.setdefault(a, []).append(0.5)
                points.setdefault(b, []).append(0.5)
        for place, (a, b) in enumerate(asked):
            self._hear(judged, points, a, b, replies[2 * place : 2 * place + 2])
        _settle(judged, points)
        return judged

    def close(self) -> None:
        """Nothing to end: endpoints are the run's."""

    def _ask(self, problem: Problem, first: Sample, second: Sample) -> Awaitable[Reply]:
        messages = conversation(
            f"{self.rubric}\n\nSay in a sentence or two which of the two answers is better by this. Their order means "
            "nothing, nor does their length. Then end with a line of its own, one of:\nverdict: A\nverdict: B\n"
            "verdict: tie",
            question=transcript(problem.prompt),
            A=first.text,
            B=second.text,
        )
        return self.asker(messages, f"{_at(first)}/{_at(second)}")

    def _hear(
        self, judged: Judged, points: dict[int, list[float]], a: int, b: int, replies: Sequence[Reply | RemoteError]
    ) -> None:
        """Take in what was said of ``a`` and ``b`` in this order, and in the other."""
        verdicts = [
            None if isinstance(reply, RemoteError) or _cut(reply) else read_verdict(reply.text) for reply in replies
        ]
        if None in verdicts:
            failed = replies[verdicts.index(None)]
            reason = str(failed) if isinstance(failed, RemoteError) else f"no verdict at the end of {_end(failed)}"
            for position in (a, b):
                judged.errors.setdefault(position, reason)
            return
        said = {"a": a, "b": b, "tie": None}[str(verdicts[0])]
        again = {"a": b, "b": a, "tie": None}[str(verdicts[1])]
        judged.metrics.setdefault("remote_compare/agreement", []).append(float(said == again))
        for verdict in verdicts:
            if verdict != "tie":
                judged.metrics.setdefault("remote_compare/first_place", []).append(float(verdict == "a"))
        winner = said if said == again else None
        for position in (a, b):
            points.setdefault(position, []).append(0.5 if winner is None else float(position == winner))
        if winner is not None:
            judged.preferences.append(Preference(winner, b if winner == a else a))


@dataclass(frozen=True)
class Critic:
    """Says in words what is wrong with each sample."""

    asker: Asker
    instruction: str
    accept: str

    async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Judged:
        """A critique for each, None where the answer was accepted; where nothing was said, an error."""
        judged = Judged.nothing(len(samples))

        def ask(position: int) -> Awaitable[Reply]:
            return self.asker(self._question(problems[position], samples[position]), _at(samples[position]))

        def hear(position: int, reply: Reply) -> None:
            if _cut(reply):
                judged.errors[position] = f"no whole critique in {_end(reply)}"
            elif not reply.text.strip():
                judged.errors[position] = "it said nothing"
            elif not accepts(reply.text, self.accept):
                judged.critiques[position] = reply.text.strip()

        await _each(judged, {}, ask, hear)
        return judged

    def close(self) -> None:
        """Nothing to end: endpoints are the run's."""

    def _question(self, problem: Problem, sample: Sample) -> list[Message]:
        return conversation(
            f"{self.instruction}\n\nIf nothing is wrong with the answer, reply with the one word {self.accept}.",
            question=transcript(problem.prompt),
            answer=sample.text,
        )


async def _each(
    judged: Judged,
    unfit: dict[int, str],
    ask: Callable[[int], Awaitable[Reply]],
    hear: Callable[[int, Reply], None],
) -> None:
    """Ask about every sample that can be judged, all at once; what failed goes into ``judged.errors``."""
    judged.errors |= unfit
    positions = [position for position in range(len(judged.rewards)) if position not in unfit]
    for position, reply in zip(positions, await ask_all([ask(n) for n in positions]), strict=True):
        if isinstance(reply, RemoteError):
            judged.errors[position] = str(reply)
        else:
            hear(position, reply)


def _settle(judged: Judged, points: dict[int, list[float]]) -> None:
    """The mean of each sample's points. One comparison is enough; only a sample without any could not be judged,
    and one that met no other is abstained from."""
    for position in range(len(judged.rewards)):
        won = points.get(position)
        if won:
            judged.rewards[position] = sum(won) / len(won)
            judged.errors.pop(position, None)
        elif position not in judged.errors:
            judged.abstained.add(position)


def _pairings(group: Sequence[int], opponents: int) -> list[tuple[int, int]]:
    """The pairs to be compared: each member with the next ``opponents`` around the group, no pair twice."""
    count = len(group)
    reach = count // 2 if opponents == 0 else min(opponents, count // 2)
    pairs = {
        (min(group[n], other), max(group[n], other))
        for step in range(1, reach + 1)
        for n in range(count)
        if (other := group[(n + step) % count]) != group[n]
    }
    return sorted(pairs)


def _at(sample: Sample) -> str:
    """Where in the run a sample stands."""
    return f"{sample.problem_id}/{sample.id}"


def _cut(reply: Reply) -> bool:
    """Whether it ran out of tokens, or a filter cut it: what it ends with is then not what it was going to say
    ("score: 1" of 10)."""
    return reply.finish_reason in CUT


def _end(reply: Reply) -> str:
    why = "raise max_tokens" if reply.finish_reason == "length" else "the server's filter did it"
    cut = f", which was cut off: {why}" if _cut(reply) else ""
    return f'the reply "…{" ".join(reply.text.split())[-80:]}"{cut}'
