"""Agreement under symmetry: an answer is trusted where the policy gives it to an equivalent prompt as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from loopwise.errors import ConfigError, PromptTooLongError
from loopwise.evaluate.judging.answers import Extract, groups
from loopwise.evaluate.parts import Judged
from loopwise.runtime import seed_key
from loopwise.types import Generator, Problem, Prompt, Request, Sample, Sampling

Variants = Callable[[Problem], Sequence[Prompt]]


@dataclass(frozen=True)
class Agreement:
    """The share of equivalent prompts to which the policy's greedy answer is the sample's: 0 or 1 with one such prompt.

    ``variants`` gives a problem's equivalent prompts. They are answered once for all samples of a problem. What the
    policy gets wrong both ways passes: the errors of the two prompts must not be shared for this to teach anything.
    """

    answer: Extract
    variants: Variants
    generator: Generator
    sampling: Sampling
    seed: int
    policy: Any = None

    def asking(self, policy: Any) -> Agreement:
        """The same, asking this policy."""
        return replace(self, policy=policy)

    async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Judged:
        """Answer the equivalent prompts and compare. A problem without any cannot be judged."""
        judged = Judged.nothing(len(samples))
        requests: list[Request] = []
        asked: list[tuple[list[int], range]] = []
        for members in groups(samples):
            problem = problems[members[0]]
            try:
                prompts = self.variants(problem)
            except Exception as error:  # anybody's function may raise anything
                reason = f"no equivalent prompts ({type(error).__name__}: {error})"
                judged.errors |= dict.fromkeys(members, reason)
                continue
            new = [self._request(problem, prompt, len(requests) + n, n) for n, prompt in enumerate(prompts)]
            asked.append((members, range(len(requests), len(requests) + len(new))))
            requests += new
        found = await self._answers(requests)
        for members, places in asked:
            for place in members:
                answer = self.answer(samples[place].text)
                agreeing = [answer is not None and answer == found[n] for n in places]
                judged.rewards[place] = sum(agreeing) / len(agreeing)
        return judged

    def close(self) -> None:
        """Nothing to end."""

    async def _answers(self, requests: Sequence[Request]) -> list[str | None]:
        if self.policy is None:
            raise ConfigError(
                'source "agreement": it asks the policy, and was told of none. Call asking(policy) first.'
            )
        if not requests:
            return []
        try:
            drawn = await self.generator.generate(self.policy, requests, self.sampling)
        except PromptTooLongError as error:
            raise PromptTooLongError(
                f'source "agreement", option "max_tokens" {self.sampling.max_tokens}: {error}'
            ) from None
        return [self.answer(sample.text) for sample in drawn]

    def _request(self, problem: Problem, prompt: Prompt, group: int, index: int) -> Request:
        variant = replace(problem, prompt=prompt, shown=None, parent=None)
        key = seed_key(self.seed, "agreement", problem.id, index)
        return Request(f"agreement/{problem.id}/{index}", variant, group, 0, key)


def in_column(column: str) -> Variants:
    """Equivalent prompts from a problem's column: one, or a list of them."""

    def variants(problem: Problem) -> Sequence[Prompt]:
        value = problem.columns.get(column)
        if not value:
            raise LookupError(f'the problem has no column "{column}"')
        return _prompts(value)

    return variants


def from_function(function: Callable[[Prompt], Any]) -> Variants:
    """Equivalent prompts by a function of the prompt, which returns one or a list of them."""

    def variants(problem: Problem) -> Sequence[Prompt]:
        found = _prompts(function(problem.prompt))
        if not found:
            raise LookupError("the function returned none")
        return found

    return variants


def _prompts(value: Any) -> Sequence[Prompt]:
    """One prompt or several, where a conversation is a list of messages."""
    if isinstance(value, str):
        return [value]
    several = list(value)
    if several and all(isinstance(one, Mapping) for one in several):
        return [tuple(several)]
    return [one if isinstance(one, str) else tuple(one) for one in several]
