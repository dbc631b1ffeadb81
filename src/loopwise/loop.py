"""The loop: generate, evaluate, update, accept or roll back, repeat. It is handed its steps and imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from loopwise.errors import IncompatibleError
from loopwise.types import Budget, Context, Decision, Partial, Problem, Rollout, Update, Updated

CAPABILITIES = frozenset({"weights", "logprobs", "token_ids", "text", "reference"})


@dataclass(frozen=True)
class Position:
    """Where a run stands after ``round`` rounds: all that a checkpoint restores.

    The next round starts from ``policy`` and ``state``; ``incumbent`` is the best accepted policy so far, what a
    rollback returns to and what the run results in. ``partial`` is a round that was interrupted; ``booked`` names the
    costs of that round that ``budget`` holds already.
    """

    policy: Any
    state: Any
    incumbent: Any
    incumbent_state: Any = None
    incumbent_round: int = 0
    round: int = 0
    budget: Budget = Budget()
    partial: Partial | None = None
    booked: tuple[str, ...] = ()

    @staticmethod
    def start(policy: Any) -> Position:
        """Before the first round: the base is the incumbent."""
        return Position(policy=policy, state=None, incumbent=policy)


@dataclass(frozen=True)
class Steps:
    """The loop's steps. Each is a pure function of its arguments and the run's seed, save for the budget."""

    draw: Callable[[int], Sequence[Problem]]
    update: Update
    rollout: Callable[[int], Rollout]
    context: Callable[[int, Position], Context]
    gate: Callable[[int, Any, Position], Decision]
    spent: Callable[[], Budget]
    commit: Callable[[Position, Updated, Decision], None]
    exhausted: Callable[[Budget], str | None]


def check_needs(update: Update, offers: frozenset[str], *, reference: bool = False) -> None:
    """Refuse an update whose needs the generator does not meet. Raises IncompatibleError before anything runs."""
    unknown = update.needs - CAPABILITIES
    if unknown:
        raise IncompatibleError(
            f"update {_name(update)} declares unknown needs {sorted(unknown)}; known: {sorted(CAPABILITIES)}."
        )
    missing = update.needs - offers - ({"reference"} if reference else set())
    if missing:
        raise IncompatibleError(
            f"update {_name(update)} needs {', '.join(sorted(missing))}, but the generator offers only "
            f"{', '.join(sorted(offers))}. Take a local model, or an update that learns from text alone."
        )


def run(position: Position, steps: Steps, rounds: int) -> Position:
    """Run the rounds that are left and return where the run stands. The result is ``position.incumbent``."""
    while position.round < rounds and steps.exhausted(position.budget) is None:
        number = position.round + 1
        problems = steps.draw(number)
        updated = steps.update(
            position.policy, position.state, problems, steps.rollout(number), steps.context(number, position)
        )
        decision = steps.gate(number, updated.candidate, position)
        position = advance(position, updated, decision, steps.spent())
        steps.commit(position, updated, decision)
    return position


def advance(position: Position, updated: Updated, decision: Decision, budget: Budget) -> Position:
    """The position after a decided round. A rollback takes back policy and state, never round number or budget."""
    number = position.round + 1
    after = replace(position, round=number, budget=budget, partial=None, booked=())
    if not decision.accepted:
        return replace(after, policy=position.incumbent, state=position.incumbent_state)
    after = replace(after, policy=updated.candidate, state=updated.state)
    if decision.best:
        after = replace(after, incumbent=updated.candidate, incumbent_state=updated.state, incumbent_round=number)
    return after


def _name(update: Any) -> str:
    return getattr(update, "__name__", type(update).__name__)
