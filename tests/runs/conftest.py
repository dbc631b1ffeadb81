"""A journal with one run, and builders of what goes into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loopwise.runs.journal import Journal, Place
from loopwise.types import Problem, Sample, Segment


@pytest.fixture
def place() -> Place:
    return Place("run", 0, 0, "train")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal.db", create=True) as journal:
        journal.create_run("run", "improve", {"seed": 1}, "cafe", {"train": "f00d"}, {"torch": "2.13.0"}, 2)
        journal.add_problems("run", [Problem(f"p{number}", f"{number}+1=") for number in range(300)])
        yield journal


@pytest.fixture(scope="session")
def make_sample() -> Callable[..., Sample]:
    def make(number: int = 0, **changes: Any) -> Sample:
        logps = np.linspace(-3, 0, 32, dtype=np.float32).tolist()
        fields = {
            "id": f"s{number}",
            "problem_id": f"p{number // 8}",
            "group": number // 8,
            "index": number % 8,
            "policy_id": "policy",
            "text": "the answer is 2",
            "finish_reason": "stop",
            "prompt_ids": tuple(range(16)),
            "token_ids": tuple(range(1000, 1032)),
            "loss_mask": (1,) * 31 + (0,),
            "logps": tuple(logps),
            "segments": (Segment("model", 0, 31), Segment("tool", 31, 32)),
            "stats": {"entropy": 0.1},
        }
        return Sample(**fields | changes)

    return make
