"""Agreement under symmetry: an answer is trusted where the policy gives it to an equivalent prompt as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from loopwise.errors import ConfigError
from loopwise.evaluate.groups import group_members
from loopwise.evaluate.introspection.answers import Answers
from loopwise.evaluate.introspection.variants import Variants
from loopwise.evaluate.parts import Judged
from loopwise.models.tokens import fits
from loopwise.runtime import seed_key
from loopwise.types import LOST, Generator, Problem, Prompt, Request, Sample, Sampling


@dataclass(frozen=True)
class Agreement:
    """The share of equivalent prompts to which the policy's greedy answer is the sample's: 0 or 1 with one such prompt.

    ``variants`` gives a problem's equivalent prompts. They are answered once for all samples of a problem. What the
    policy gets wrong both ways passes: the errors of the two prompts must not be shared for this to teach anything.
    """

    answers: Answers
    variants: Variants
    generator: Generator
    sampling: Sampling
    seed: int
    policy: Any = None

    def asking(self, policy: Any) -> Agreement:
        """The same, asking this policy."""
        return replace(self, policy=policy)

    async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Judged:
        """Answer the equivalent prompts and compare.

        A prompt that does not fit the context, or to which there is no answer because its generation failed, is left
        out of the share. A problem without any that was answered cannot be judged.
        """
        if self.policy is None:
            raise ConfigError(
                'source "agreement": it asks the policy, and was told of none. Call asking(policy) first.'
            )
        judged = Judged.nothing(len(samples))
        own, judged.errors = await self.answers([sample.text for sample in samples])
        grouped = group_members(samples)
        variants, without = await self.variants([problems[members[0]] for members in grouped])
        requests: list[Request] = []
        asked: list[list[int]] = []
        for members, prompts in zip(grouped, variants, strict=True):
            fitting = self._requests(problems[members[0]], prompts, len(requests))
            asked.append(list(range(len(requests), len(requests) + len(fitting))))
            requests += fitting
        found, failed = await self._answered(requests)
        for n, (members, places) in enumerate(zip(grouped, asked, strict=True)):
            answered = [found[place] for place in places if place not in failed]
            if not answered:
                reason = without.get(n) or (failed[places[0]] if places else self._too_long())
                judged.errors |= {place: reason for place in members if place not in judged.errors}
                continue
            for place in members:
                if place not in judged.errors:
                    agreeing = sum(own[place] is not None and own[place] == other for other in answered)
                    judged.rewards[place] = agreeing / len(answered)
        return judged

    def close(self) -> None:
        """End what reads the answers, and what makes the prompts."""
        self.answers.close()
        self.variants.close()

    async def _answered(self, requests: Sequence[Request]) -> tuple[list[str | None], dict[int, str]]:
        """The greedy answer to each request, and by position why there is none to be had."""
        if not requests:
            return [], {}
        drawn = await self.generator.generate(self.policy, requests, self.sampling)
        found, failed = await self.answers([sample.text for sample in drawn])
        lost = [place for place, sample in enumerate(drawn) if sample.finish_reason == LOST]
        return found, failed | dict.fromkeys(lost, "its equivalent prompts could not be answered")

    def _requests(self, problem: Problem, prompts: Sequence[Prompt], group: int) -> list[Request]:
        """Requests of the prompts that fit, a group each from ``group`` on."""
        requests: list[Request] = []
        for index, prompt in enumerate(prompts):
            variant = replace(problem, prompt=prompt, shown=None, parent=None)
            if fits(self.policy, variant, self.sampling.max_tokens):
                key = seed_key(self.seed, "agreement", problem.id, index)
                name = f"agreement/{problem.id}/{index}"
                requests.append(Request(name, variant, group + len(requests), 0, key))
        return requests

    def _too_long(self) -> str:
        return f"its equivalent prompts would exceed the model's context with max_tokens {self.sampling.max_tokens}"
