"""Small rollouts and reward files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest

from loopwise.types import Feedback, Problem, Sample, Scored

Rows = tuple[list[Problem], list[Sample]]


@pytest.fixture
def rows() -> Callable[..., Rows]:
    """Make one problem and one sample a completion; ``columns`` hold a value each."""

    def make(completions: Sequence[str], prompts: Sequence[Any] | None = None, **columns: Sequence[Any]) -> Rows:
        prompts = prompts or [f"prompt {n}" for n in range(len(completions))]
        problems = [
            Problem(f"p{n}", prompt, {name: values[n] for name, values in columns.items()})
            for n, prompt in enumerate(prompts)
        ]
        samples = [
            Sample(f"s{n}", f"p{n}", n, 0, "policy", text, "stop", token_ids=(n, n + 1))
            for n, text in enumerate(completions)
        ]
        return problems, samples

    return make


@pytest.fixture
def reward_file(tmp_path: Path) -> Callable[[str], str]:
    """Write a reward file and return its name."""

    def write(source: str, name: str = "my_rewards.py") -> str:
        path = tmp_path / name
        path.write_text(dedent(source), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def scored() -> Callable[..., Scored]:
    """Make a rollout from each group's rewards (None: could not be judged); ``samples`` override fields."""

    def make(groups: Sequence[Sequence[float | None]], samples: Sequence[dict[str, Any]] | None = None) -> Scored:
        flat = [(g, i, reward) for g, rewards in enumerate(groups) for i, reward in enumerate(rewards)]
        fields = samples or [{}] * len(flat)
        made = []
        for (group, index, _), own in zip(flat, fields, strict=True):
            default = {"text": f"{group}.{index}", "finish_reason": "stop"}
            made.append(
                Sample(
                    id=f"{group}/{index}",
                    problem_id=f"p{group}",
                    group=group,
                    index=index,
                    policy_id="policy",
                    **default | own,
                )
            )
        rewards = np.array([[np.nan if reward is None else reward] for _, _, reward in flat], dtype=np.float64).reshape(
            -1, 1
        )
        feedback = Feedback(("exact",), (1.0,), rewards, ~np.isnan(rewards))
        return Scored(tuple(Problem(f"p{g}", "prompt") for g in range(len(groups))), tuple(made), feedback)

    return make
