"""The rehearsal of an update: which rollouts it gets, what is timed, what is held."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

from loopwise.errors import ConfigError
from loopwise.models.policy import Policy
from loopwise.runtime import Runtime
from loopwise.stages import probe
from loopwise.stages.rehearsal import Rehearsal, made_up, rehearse, stretched
from loopwise.types import Budget, Problem, Scored, Updated

PROBLEMS = [Problem("short", "1="), Problem("long", "12+34="), Problem("middle", "12=")]


class Watched:
    """An update that takes down what it is given, and says that a step read so many tokens as its rollout has."""

    needs = frozenset({"weights"})

    def __init__(self) -> None:
        self.rounds: list[tuple[int, Any, int]] = []
        self.rollouts: list[int] = []
        self.steps = 0

    def of(self, steps: int) -> Watched:
        self.steps = steps
        return self

    def __call__(self, policy: Any, state: Any, problems: Any, rollout: Any, context: Any) -> Updated:
        assert context.reference is not None
        self.rounds.append((context.round, state, self.steps))
        module = policy.trainable_module()
        for step in range(self.steps):
            time.sleep(0.02)
            scored = rollout(policy, problems, 2, step=step)
            self.rollouts.append(len(scored.samples))
            context.spend(Budget(tokens_trained=len(scored.samples)))
            context.record(step + 1, {"loss": 1.0})
        moments = {"weight": {"exp_avg": torch.zeros(10)}}
        return Updated(policy.with_module(module), {"learner": {"moments": moments}, "round": context.round}, {})


def rehearsal(policy: Policy, runtime: Runtime, update: Watched, rounds: int = 3) -> Rehearsal:
    longest = stretched(policy, PROBLEMS, 2, 2, 4)
    ordinary = stretched(policy, PROBLEMS, 2, 3, 1)
    return Rehearsal(policy, runtime, 0, rounds, update.of, longest, lambda: ordinary)


def test_rounds_of_the_longest_then_ordinary_ones(
    policy: Policy, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "STEP_SECONDS", 0.0)
    update = Watched()
    steps, held = rehearse(rehearsal(policy, runtime, update))
    assert [(number, count) for number, _, count in update.rounds] == [(1, 1), (2, 1), (3, probe.MOST_STEPS)]
    assert [state and state["round"] for _, state, _ in update.rounds] == [None, 1, 2]
    assert update.rollouts == [4, 4, 6], "timed until enough, and no longer"
    assert steps.tokens == 6
    assert steps.moments == 40
    assert len(held) == 5
    # What drawing samples takes is timed apart.
    assert max(steps.first, steps.second, steps.seconds) < 0.02


def test_one_round_has_both_of_its_first_steps(policy: Policy, runtime: Runtime) -> None:
    update = Watched()
    rehearse(rehearsal(policy, runtime, update, rounds=1))
    assert update.rounds[0] == (1, None, 2)


def test_ordinary_samples_that_teach_nothing_leave_the_longest(policy: Policy, runtime: Runtime) -> None:
    class Idle(Watched):
        def __call__(self, policy: Any, state: Any, problems: Any, rollout: Any, context: Any) -> Updated:
            if context.round == 3:
                return Updated(policy, state, {})
            return super().__call__(policy, state, problems, rollout, context)

    steps, _ = rehearse(rehearsal(policy, runtime, Idle()))
    assert steps.seconds == steps.second
    assert steps.tokens == 4


def test_no_room_names_the_key(policy: Policy, runtime: Runtime) -> None:
    class Large(Watched):
        def __call__(self, *arguments: Any) -> Updated:
            raise torch.OutOfMemoryError("2 GiB")

    with pytest.raises(ConfigError, match=r"update\.tokens_per_pass"):
        rehearse(rehearsal(policy, runtime, Large()))


def test_samples_are_stretched_on_the_longest_prompts_and_differ(policy: Policy) -> None:
    scored = stretched(policy, PROBLEMS, 3, 2, 7)
    assert [problem.id for problem in scored.problems] == ["long", "middle"]
    assert {len(sample.token_ids) for sample in scored.samples} == {7}
    for _, members in scored.groups():
        assert len({scored.samples[place].token_ids for place in members}) == 3
        assert len(np.unique(scored.feedback.totals[members])) == 2


def test_made_up_rewards_tie_for_no_problem(policy: Policy) -> None:
    scored: Scored = stretched(policy, PROBLEMS, 2, 3, 1)
    assert made_up(scored.problems, scored.samples).feedback.totals.reshape(3, 2).sum(1).tolist() == [1.0, 1.0, 1.0]
