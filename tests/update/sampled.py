"""Rollouts for tests of online updates: real samples of a tiny policy, judged by a function of their text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from loopwise.generate.local import LocalGenerator
from loopwise.models.policy import Policy
from loopwise.runtime import Runtime, run_async, seed_key
from loopwise.types import Feedback, Problem, Request, Sampling, Scored

SAMPLING = Sampling(max_tokens=6)
PROBLEMS = tuple(Problem(f"p{place}", prompt) for place, prompt in enumerate(("1+1=", "12+3=", "7+", "4+44=")))


def share_of_sevens(text: str) -> float:
    """A reward that a policy can learn in a few steps."""
    return text.count("7") / SAMPLING.max_tokens


@dataclass
class Sampled:
    """``rollout(policy, problems, k, step=...)``: a sample's uniforms depend on problem, index and step alone."""

    runtime: Runtime
    reward: Callable[[str], float | None] = share_of_sevens
    sampling: Sampling = SAMPLING
    steps: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)

    def __call__(self, policy: Policy, problems: Sequence[Problem], k: int, *, step: int = 0) -> Scored:
        self.steps.append(step)
        requests = [
            Request(f"{step}/{problem.id}/{index}", problem, group, index, seed_key(step, problem.id, index))
            for group, problem in enumerate(problems)
            for index in range(k)
        ]
        samples = run_async(LocalGenerator(self.runtime).generate(policy, requests, self.sampling))
        judged = [self.reward(sample.text) for sample in samples]
        table = np.array([[np.nan if reward is None else reward] for reward in judged])
        self.rewards.append(float(np.nansum(table) / max(1, np.isfinite(table).sum())))
        return Scored(tuple(problems), tuple(samples), Feedback(("sevens",), (1.0,), table, ~np.isnan(table)))
