"""What of held-out problems is drawn, which the run and its dry run ask the same functions."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from loopwise.config.reading import parse_recipe
from loopwise.config.recipes import ImproveRecipe, TuneRecipe
from loopwise.measuring import Parts, held_out_drawing
from loopwise.monitors import monitored
from loopwise.tasks.base import Streams
from loopwise.types import Feedback, Problem, Sample, Sampling, asking, compares

DATA = {"task": "addition", "labelled": 2, "dev": 4, "test": 4}


def recipe(**changes: Any) -> ImproveRecipe:
    sampling = {"max_tokens": 5, "temperature": 0.7, "top_p": 0.9, "top_k": 3}
    return parse_recipe(ImproveRecipe, {"model": "m", "data": DATA, "samples": 6, "sampling": sampling, **changes})


class Plain:
    """Feedback as others may bring it: the protocol, and nothing besides."""

    name = "plain"
    uses_reference = False

    async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Feedback:
        return Feedback("plain", (), np.zeros((0, 0)), np.zeros((0, 0), dtype=bool))  # type: ignore[arg-type]


class Comparing(Plain):
    """The same, for samples beside each other, which asks the policy."""

    compares = True

    def __init__(self, policy: Any = None) -> None:
        self.policy = policy

    def asking(self, policy: Any) -> Comparing:
        return Comparing(policy)


def drawing(given: Any, feedback: Any) -> tuple[int, Sampling]:
    return held_out_drawing(cast(Parts, SimpleNamespace(recipe=given, feedback=feedback)))


def test_held_out_answers_are_greedy_unless_they_are_compared() -> None:
    assert drawing(recipe(), Plain()) == (1, Sampling(max_tokens=5, temperature=0.0))
    assert drawing(recipe(), Comparing()) == (6, Sampling(max_tokens=5, temperature=0.7, top_p=0.9, top_k=3))
    tuned = parse_recipe(TuneRecipe, {"model": "m", "data": DATA, "sampling": {"max_tokens": 5, "temperature": 0.7}})
    assert drawing(tuned, Comparing()) == (1, Sampling(max_tokens=5, temperature=0.0))


def test_a_source_says_what_it_compares_and_whom_it_asks() -> None:
    plain = Plain()
    assert not compares(plain)
    assert compares(Comparing())
    assert asking(plain, "the policy") is plain
    told = asking(Comparing(), "the policy")
    assert isinstance(told, Comparing)
    assert told.policy == "the policy"


@pytest.mark.parametrize(
    ("changes", "ids"),
    [
        ({}, ["0", "1", "2", "3"]),
        ({"monitors": {"problems": 3}}, ["0", "1", "2"]),
        ({"monitors": {"problems": 0}}, []),
        ({"gate": {"metric": "likelihood"}}, []),
    ],
)
def test_the_problems_that_monitors_watch(changes: dict[str, Any], ids: list[str]) -> None:
    problems = [Problem(str(number), "1+1=") for number in range(4)]
    streams = Streams.without_problems(("test",), {"rows": "abc"})
    assert monitored(recipe(**changes), streams) == ()
    assert streams.fingerprint == {"rows": "abc"}
    streams.held_out["dev"] = problems  # type: ignore[index]
    assert [problem.id for problem in monitored(recipe(**changes), streams)] == ids


@pytest.mark.parametrize(
    ("refine", "most"), [(None, 0), ({"revisions": 2}, 2), ({"revisions": 2, "held_out": False}, 0)]
)
def test_how_often_held_out_answers_are_revised(refine: Any, most: int) -> None:
    assert recipe(refine=refine, critics=["a.b"]).held_out_revisions == most
