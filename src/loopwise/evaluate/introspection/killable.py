"""A user's pattern or function on a batch of texts, in a process that is killed when its time is up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loopwise.evaluate.contract import Batch
from loopwise.evaluate.parts import Caller, RewardPart, judge_part
from loopwise.evaluate.supervisor import WorkerReward

Said = tuple[list[str | None], dict[int, str]]
"""The words for each of S texts, and by position why there are none where it failed."""
SECONDS = 5.0
"""Of one call, with all texts of a batch. A call that takes longer is repeated text by text."""


@dataclass(frozen=True)
class Killable:
    """A function of ``introspection.users`` and the one value it is given besides the texts, under ``name``."""

    call: Caller
    name: str
    value: str

    @staticmethod
    def of(function: str, name: str, value: str) -> Killable:
        """The process starts with the first call."""
        target = {
            "kind": "module",
            "source": "loopwise.evaluate.introspection.users",
            "function": function,
            "words": True,
        }
        return Killable(WorkerReward(target, SECONDS), name, value)

    async def __call__(self, prompts: Sequence[object], texts: Sequence[str]) -> Said:
        """What it says of each of S prompts and texts."""
        batch = Batch(list(prompts), list(texts), [[] for _ in texts], {self.name: [self.value] * len(texts)})
        said = await judge_part(RewardPart(self.name, 1.0, False, self.call), batch)
        return said.critiques, said.errors

    def close(self) -> None:
        """End the process. Harmless when done twice."""
        self.call.close()
