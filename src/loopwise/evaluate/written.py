"""Critiques that a model writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from loopwise.evaluate.parts import Judged
from loopwise.models.templates import fill
from loopwise.models.tokens import fits
from loopwise.runtime import seed_key
from loopwise.types import LOST, Generator, Message, Problem, Prompt, Request, Sample, Sampling


@dataclass(frozen=True)
class WritingCritic:
    """A critic whose words are a model's greedy continuation of a template with the sample in it.

    ``policy`` writes; where it is None, the policy that drew the samples does (``asking``).
    """

    generator: Generator
    policy: Any
    template: str
    chat_template: str
    accept: str
    max_tokens: int
    seed: int

    def asking(self, policy: Any) -> WritingCritic:
        """The same critic, written by ``policy`` where it has none of its own."""
        return self if self.policy is not None else replace(self, policy=policy)

    async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Judged:
        """Critiques of ``samples`` [S]; one that leaves no room for a critique cannot be judged."""
        judged = Judged.nothing(len(samples))
        requests: dict[int, Request] = {}
        for position, (problem, sample) in enumerate(zip(problems, samples, strict=True)):
            asked = replace(problem, shown=self._shown(problem.prompt, sample.text))
            if fits(self.policy, asked, self.max_tokens):
                key = seed_key(self.seed, "critique", sample.id)
                # A group each: what is shown differs from sample to sample.
                requests[position] = Request(f"{sample.id}/critique", asked, position, 0, key)
            else:
                judged.errors[position] = (
                    f"its critique would exceed the model's context with max_tokens {self.max_tokens}"
                )
        sampling = Sampling(max_tokens=self.max_tokens, temperature=0.0)
        written = await self.generator.generate(self.policy, list(requests.values()), sampling) if requests else []
        for position, critique in zip(requests, written, strict=True):
            if critique.finish_reason == LOST:
                judged.errors[position] = "its critique could not be written"
            else:
                judged.critiques[position] = self._words(critique.text)
        return judged

    def close(self) -> None:
        """Nothing to end."""

    def _shown(self, prompt: Prompt, draft: str) -> Prompt:
        if isinstance(prompt, str):
            return fill(self.template, prompt=prompt, draft=draft)
        rest: list[Message] = [
            {"role": "assistant", "content": draft},
            {"role": "user", "content": fill(self.chat_template, draft=draft)},
        ]
        return (*prompt, *rest)

    def _words(self, text: str) -> str | None:
        words = text.strip()
        # "Correct." accepts where the word is Correct; "Correctness is missing" does not.
        accepts = re.match(rf"{re.escape(self.accept)}(?!\w)", words, re.IGNORECASE)
        return None if accepts else words or None
