"""What a run has spent."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from loopwise.loop import Position
from loopwise.types import Budget


@dataclass
class Meter:
    """Adds up what a run spends, wall seconds included.

    Rollouts are booked by key, once, in the round they belong to: what is re-read after a resume, or of a round that is
    committed, costs nothing again.
    """

    total: Budget = Budget()
    booked: set[str] = field(default_factory=set)
    open_round: int = 0
    _since: float = field(default_factory=time.monotonic)

    def resume(self, position: Position) -> None:
        """Go on from where a run stands. The base's evaluation belongs to the first round."""
        self.total, self.booked = position.budget, set(position.booked)
        self.open_round = position.round + 1 if position.round else 0

    def book(self, number: int, key: str, budget: Budget) -> None:
        """Spend a rollout's cost unless it is booked."""
        if number >= self.open_round and key not in self.booked:
            self.booked.add(key)
            self.spend(budget)

    def spend(self, budget: Budget) -> None:
        """Spend at once."""
        self.total = self.total + budget

    def spent(self) -> Budget:
        """All that was spent up to now."""
        now = time.monotonic()
        self.spend(Budget(seconds=now - self._since))
        self._since = now
        return self.total
