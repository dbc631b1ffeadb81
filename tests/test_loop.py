"""The loop with steps of plain Python: who is accepted, what a rollback takes back, when it stops."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from loopwise import loop
from loopwise.errors import ConfigError, IncompatibleError
from loopwise.loop import Position, Steps
from loopwise.types import Budget, Context, Decision, Problem, Updated

TEXT_ONLY = frozenset({"text"})
LOCAL = frozenset({"weights", "logprobs", "token_ids", "text"})


def decision(accepted: bool, best: bool) -> Decision:
    return Decision(accepted, "because", 0.0, 0.0, 0.0, 0.0, 1, best)


@dataclass
class World:
    """Policies and states are numbers; every round adds its number to both, and the gate says what it was told."""

    verdicts: Mapping[int, tuple[bool, bool]] = field(default_factory=dict)
    limit: int = 10**9
    calls: list[Any] = field(default_factory=list)
    spent: int = 0

    needs = frozenset({"text"})

    def __call__(self, policy: Any, state: Any, problems: Any, rollout: Any, context: Context) -> Updated:
        self.calls.append(("update", policy, state, problems, rollout, context))
        return Updated(f"{policy}+{len(problems)}", (state or 0) + len(problems), {"loss": 0.5})

    def steps(self) -> Steps:
        def gate(number: int, candidate: Any, position: Position) -> Decision:
            self.calls.append(("gate", number, candidate, position.incumbent))
            return decision(*self.verdicts.get(number, (True, True)))

        def spend() -> Budget:
            self.spent += 10
            return Budget(tokens_generated=self.spent)

        return Steps(
            draw=lambda number: [Problem(str(place), "?") for place in range(number)],
            update=self,
            rollout=lambda number: f"rollout {number}",
            context=lambda number, position: f"context {number} after {position.round}",
            gate=gate,
            spent=spend,
            commit=lambda position, updated, decision: self.calls.append(("commit", position, updated, decision)),
            exhausted=lambda budget: "tokens_generated" if budget.tokens_generated >= self.limit else None,
        )


def commits(world: World) -> list[Position]:
    return [call[1] for call in world.calls if call[0] == "commit"]


def test_accepted_rounds_build_on_one_another() -> None:
    world = World()
    end = loop.run(Position.start("base"), world.steps(), 3)
    assert (end.policy, end.state, end.round) == ("base+1+2+3", 6, 3)
    assert (end.incumbent, end.incumbent_state, end.incumbent_round) == ("base+1+2+3", 6, 3)
    assert end.budget == Budget(tokens_generated=30)
    assert [call[0] for call in world.calls] == ["update", "gate", "commit"] * 3
    _, policy, state, problems, rollout, context = world.calls[3]
    assert (policy, state, len(problems), rollout, context) == ("base+1", 1, 2, "rollout 2", "context 2 after 1")


def test_a_rollback_takes_back_policy_and_state_but_not_round_or_budget() -> None:
    world = World({2: (False, False)})
    end = loop.run(Position.start("base"), world.steps(), 3)
    after_rollback = commits(world)[1]
    assert (after_rollback.policy, after_rollback.state) == ("base+1", 1)
    assert (after_rollback.round, after_rollback.budget) == (2, Budget(tokens_generated=20))
    assert (end.policy, end.state, end.round) == ("base+1+3", 4, 3)
    _, position, updated, verdict = world.calls[5]
    assert (updated.candidate, verdict.accepted) == ("base+1+2", False), "what was tried is told to the journal"
    assert position is after_rollback


def test_a_rollback_in_the_first_round_returns_to_the_base() -> None:
    end = loop.run(Position.start("base"), World({1: (False, False)}).steps(), 1)
    assert (end.policy, end.state, end.incumbent, end.incumbent_round) == ("base", None, "base", 0)


def test_the_best_incumbent_stays_when_a_later_round_is_no_better() -> None:
    world = World({2: (True, False), 3: (False, False), 4: (True, True)})
    loop.run(Position.start("base"), world.steps(), 4)
    places = [(p.policy, p.incumbent, p.incumbent_state, p.incumbent_round) for p in commits(world)]
    assert places == [
        ("base+1", "base+1", 1, 1),
        ("base+1+2", "base+1", 1, 1),
        ("base+1", "base+1", 1, 1),
        ("base+1+4", "base+1+4", 5, 4),
    ]
    compared = [call[2:] for call in world.calls if call[0] == "gate"]
    assert compared == [
        ("base+1", "base"),
        ("base+1+2", "base+1"),
        ("base+1+2+3", "base+1"),
        ("base+1+4", "base+1"),
    ]


@pytest.mark.parametrize(("limit", "rounds"), [(10**9, 5), (21, 3), (20, 2), (1, 1)])
def test_a_spent_budget_ends_the_run_after_its_round(limit: int, rounds: int) -> None:
    world = World(limit=limit)
    assert loop.run(Position.start("base"), world.steps(), 5).round == rounds
    assert len(commits(world)) == rounds


def test_a_run_that_has_spent_its_budget_does_nothing_more() -> None:
    world = World(limit=20)
    end = loop.run(Position.start("base"), world.steps(), 5)
    world.calls.clear()
    assert loop.run(end, world.steps(), 5) is end
    assert world.calls == []


def test_a_restored_position_goes_on_to_the_same_end() -> None:
    verdicts = {2: (True, False), 4: (False, False)}
    whole = loop.run(Position.start("base"), World(verdicts).steps(), 5)
    world = World(verdicts)
    half = loop.run(Position.start("base"), world.steps(), 3)
    assert loop.run(half, world.steps(), 5) == whole


def update(*needs: str) -> Callable[..., Updated]:
    def my_update(*_: Any) -> Updated:
        raise AssertionError("a refused update must not be called")

    my_update.needs = frozenset(needs)
    return my_update


@pytest.mark.parametrize("need", ["weights", "logprobs", "token_ids", "reference"])
def test_each_missing_need_is_refused_by_name(need: str) -> None:
    with pytest.raises(IncompatibleError) as caught:
        loop.check_needs(update("text", need), TEXT_ONLY)
    assert f"update my_update needs {need}, but the generator offers only text." in str(caught.value)
    assert "Take a local model, or an update that learns from text alone." in str(caught.value)
    assert isinstance(caught.value, ConfigError)
    assert caught.value.exit_code == 2


def test_all_missing_needs_are_named_at_once() -> None:
    with pytest.raises(IncompatibleError, match="needs logprobs, token_ids, but"):
        loop.check_needs(update("token_ids", "logprobs", "weights"), frozenset({"weights", "text"}))


def test_met_needs_are_accepted() -> None:
    loop.check_needs(update("weights", "logprobs", "token_ids", "text"), LOCAL)
    loop.check_needs(update("text"), TEXT_ONLY)
    loop.check_needs(update(), frozenset())
    loop.check_needs(update("reference"), TEXT_ONLY, reference=True)


def test_an_unknown_need_is_refused_even_where_it_is_offered() -> None:
    with pytest.raises(IncompatibleError, match=r"unknown needs \['telepathy'\]"):
        loop.check_needs(update("telepathy"), frozenset({"telepathy"}))


def test_the_loop_loads_no_torch() -> None:
    program = (
        "import sys, loopwise, loopwise.loop, loopwise.types, loopwise.config.recipes, loopwise.errors\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
