"""Rollouts for tests of updates: texts and rewards that are given, of a policy with its token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tests.encoded import encode_completions

from loopwise.models.policy import Policy
from loopwise.models.tokens import encode_prompts
from loopwise.types import Feedback, Preference, Problem, Sample, Scored

PROBLEMS = tuple(Problem(f"p{place}", f"{place}+1=", {"answer": str(place + 1)}) for place in range(3))
GROUPS = [[("1", 1.0), ("77", 0.0), ("7", 0.2)], [("2", 1.0), ("23", 0.0)], [("3", 1.0), ("3", 1.0)]]


def scored(
    policy: Policy | None, groups: Sequence[Sequence[tuple[str, float | None]]], *preferences: Preference
) -> Scored:
    """A rollout from each group's texts and rewards; the samples of a policy carry token ids."""
    samples, rewards = [], []
    for group, members in enumerate(groups):
        for index, (text, reward) in enumerate(members):
            ids: dict[str, Any] = {}
            if policy is not None:
                [prompt], [tokens] = encode_prompts(policy, [PROBLEMS[group]]), encode_completions(policy, [text])
                ids = {"prompt_ids": tuple(prompt), "token_ids": tuple(tokens), "loss_mask": (1,) * len(tokens)}
            samples.append(Sample(f"{group}/{index}", f"p{group}", group, index, "policy", text, "stop", **ids))
            rewards.append([np.nan if reward is None else reward])
    table = np.array(rewards, dtype=np.float64).reshape(-1, 1)
    feedback = Feedback(("exact",), (1.0,), table, ~np.isnan(table), preferences)
    return Scored(PROBLEMS[: len(groups)], tuple(samples), feedback)


class Rollouts:
    """A rollout that hands out what it was given, and counts its calls."""

    def __init__(self, *results: Scored) -> None:
        self.results = list(results)
        self.calls: list[tuple[Policy, int, int]] = []

    def __call__(self, policy: Policy, problems: Sequence[Problem], k: int, *, step: int = 0) -> Scored:
        self.calls.append((policy, len(problems), k))
        return self.results.pop(0)
