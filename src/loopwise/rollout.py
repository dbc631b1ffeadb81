"""Rollouts: generate and evaluate, journaled before use and re-read on resume, so that nothing is paid for twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from loopwise.errors import ConfigError
from loopwise.feedback import joined_feedback
from loopwise.models.prompts import render
from loopwise.ranks import ALONE, Ranks
from loopwise.runs.journal import Journal, Place
from loopwise.runtime import run_async, seed_key
from loopwise.types import (
    Budget,
    Feedback,
    FeedbackSource,
    Generator,
    Problem,
    PromptState,
    Request,
    Sample,
    Sampling,
    Scored,
    asking,
)


@dataclass(frozen=True)
class Roller:
    """Makes the rollouts of a run. ``unit`` is the number of samples decoded together (whole groups).

    ``report`` judges are asked too, on held-out phases only, and written down apart: reported, never decisive.
    ``book(round, key, budget)`` is told what each unit costs, also when it is re-read: it must book a key only once.
    ``store`` wraps each journal transaction (it waits for room on a full disk, and has rank 0 do it for all).
    """

    run_id: str
    seed: int
    generator: Generator
    feedback: FeedbackSource
    journal: Journal
    unit: int
    book: Callable[[int, str, Budget], None]
    store: Callable[[Callable[[], None]], None]
    on_progress: Callable[[str, int, int], None]
    report: FeedbackSource | None = None
    ranks: Ranks = ALONE

    def at(self, round: int, phase: str, sampling: Sampling) -> Rollout:
        """The rollout function of a phase of a round."""
        return Rollout(self, round, phase, sampling)


@dataclass(frozen=True)
class Rollout:
    """``rollout(policy, problems, k) -> Scored``; a sample's key is (seed, round, step, problem, index).

    Ranks deal the work units out, each generates and judges its own, and all end with all of them. Raises ConfigError
    where one step is asked of two policies.
    """

    roller: Roller
    round: int
    phase: str
    sampling: Sampling
    _policies: dict[int, str] = field(default_factory=dict)

    def __call__(
        self, policy: Any, problems: Sequence[Problem], k: int, *, step: int = 0, judged: bool = True
    ) -> Scored:
        if self._policies.setdefault(step, policy.id) != policy.id:
            raise ConfigError(
                f"rollout: step {step} of round {self.round} was asked of two policies, and the second would be handed "
                "the first one's samples. Give each policy of an update a step of its own: rollout(..., step=1)."
            )
        return run_async(self._roll(policy, problems, k, step, judged))

    async def _roll(self, policy: Any, problems: Sequence[Problem], k: int, step: int, judged: bool) -> Scored:
        roller = self.roller
        place = Place(roller.run_id, self.round, step, self.phase)
        known = roller.ranks.lead(lambda: roller.journal.samples_at(place))
        requests = [
            self._request(place, problem, group, index) for group, problem in enumerate(problems) for index in range(k)
        ]
        roller.store(lambda: roller.journal.add_problems(roller.run_id, problems))
        samples: list[Sample] = []
        feedbacks: list[Feedback] = []
        for wave in roller.ranks.waves(self._units(policy, requests, k)):
            drawn = await self._generate(policy, place, wave, known)
            if judged:
                feedbacks += await self._judge(policy, place, wave, drawn)
            samples += [sample for unit in drawn for sample in unit]
            roller.on_progress(self.phase, len(samples), len(requests))
        order = sorted(range(len(samples)), key=lambda n: (samples[n].group, samples[n].index))
        feedback = joined_feedback(feedbacks).at(order) if judged else Feedback.empty(len(samples))
        return Scored(tuple(problems), tuple(samples[n] for n in order), feedback)

    def _request(self, place: Place, problem: Problem, group: int, index: int) -> Request:
        # A policy's held-out completions depend on the split alone, so that paired comparisons share their noise.
        where = (place.round, place.step) if self.phase == "train" else ()
        key = seed_key(self.roller.seed, self.phase, *where, problem.id, index)
        name = f"{self.phase}/{place.round}/{place.step}/{problem.id}/{index}"
        return Request(name, problem, group, index, key)

    def _units(self, policy: Any, requests: list[Request], k: int) -> list[list[Request]]:
        """Whole groups of similar prompt length together, in an order that depends on the prompts alone."""
        state = getattr(policy, "prompt_state", PromptState())
        problems = {request.group: request.problem for request in requests}
        # Rendering is for what a state adds; without any, the prompts are what they are.
        lengths = {
            group: len(str(render(problem, state) if problem.shown or state != PromptState() else problem.prompt))
            for group, problem in problems.items()
        }
        ordered = sorted(requests, key=lambda request: (lengths[request.group], request.group, request.index))
        size = max(1, self.roller.unit // k) * k
        return [ordered[start : start + size] for start in range(0, len(ordered), size)]

    async def _generate(
        self, policy: Any, place: Place, wave: Sequence[list[Request]], known: dict[str, Sample]
    ) -> list[list[Sample]]:
        """The samples of a wave of units, one for each rank."""
        roller = self.roller
        own = wave[roller.ranks.rank] if roller.ranks.rank < len(wave) else []
        missing = [request for request in own if request.sample_id not in known]
        new = await roller.generator.generate(policy, missing, self.sampling) if missing else []
        # A revision is linked with the draft it goes on from.
        new = [replace(sample, parent=one.problem.parent) for sample, one in zip(new, missing, strict=True)]
        fresh = [sample for part in roller.ranks.gather(new) for sample in part]
        if fresh:
            roller.store(lambda: roller.journal.add_samples(place, fresh))
        drawn = {sample.id: sample for sample in fresh}
        # The group is the place in this call's list of problems, whatever it was when the sample was journaled.
        units = [
            [drawn.get(request.sample_id) or replace(known[request.sample_id], group=request.group) for request in unit]
            for unit in wave
        ]
        for samples in units:
            roller.book(place.round, f"drawn {samples[0].id}", _cost(policy, samples))
        return units

    async def _judge(
        self, policy: Any, place: Place, wave: Sequence[list[Request]], drawn: Sequence[list[Sample]]
    ) -> list[Feedback]:
        roller = self.roller
        problems = [[request.problem for request in unit] for unit in wave]
        feedbacks = await self._ask(asking(roller.feedback, policy), "reward", place, problems, drawn)
        if roller.report is not None and self.phase != "train":
            await self._ask(asking(roller.report, policy), "report", place, problems, drawn)
        return feedbacks

    async def _ask(
        self,
        source: FeedbackSource,
        kind: str,
        place: Place,
        problems: Sequence[list[Problem]],
        drawn: Sequence[list[Sample]],
    ) -> list[Feedback]:
        """Feedback on a wave of units, one for each rank."""
        roller, rank = self.roller, self.roller.ranks.rank
        journal = roller.journal
        known = roller.ranks.lead(lambda: [journal.feedback_at(place, samples, kind) for samples in drawn])
        own = await source.judge(problems[rank], drawn[rank]) if rank < len(drawn) and known[rank] is None else None
        judged = roller.ranks.gather(own)
        feedbacks = []
        for samples, before, new in zip(drawn, known, judged, strict=False):  # ranks beyond the wave judged nothing
            if new is not None:
                roller.store(partial(self._add_feedback, place, samples, new, kind))
            feedback = before if new is None else new
            assert feedback is not None
            calls = len(samples) if feedback.parts else 0
            roller.book(place.round, f"{kind} {samples[0].id}", Budget(judge_calls=calls))
            feedbacks.append(feedback)
        return feedbacks

    def _add_feedback(self, place: Place, samples: Sequence[Sample], feedback: Feedback, kind: str) -> None:
        self.roller.journal.add_feedback(place, samples, feedback, kind)


def _cost(policy: Any, samples: Sequence[Sample]) -> Budget:
    generated = sum(len(sample.token_ids) for sample in samples)
    read = sum(len(sample.prompt_ids) for sample in samples if sample.index == 0)
    weights = getattr(policy, "weights", None)
    size = weights.parameter_count if weights is not None else 0
    return Budget(tokens_generated=generated, flops=2.0 * size * (generated + read))
