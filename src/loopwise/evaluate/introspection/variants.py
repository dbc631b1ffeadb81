"""Prompts that have the same answer as a problem's own: from a column, or by a user's function."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from loopwise.evaluate.introspection.killable import Killable
from loopwise.types import Problem, Prompt

Found = tuple[list[Sequence[Prompt]], dict[int, str]]
"""The equivalent prompts of each problem, and by position why there are none."""


class Variants(Protocol):
    """Gives problems their equivalent prompts. ``close`` ends what it holds; harmless when done twice."""

    async def __call__(self, problems: Sequence[Problem]) -> Found: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class InColumn:
    """What stands in a problem's column: one prompt, or a list of them."""

    column: str

    async def __call__(self, problems: Sequence[Problem]) -> Found:
        """Nothing is asked of anybody."""
        found = [problem.columns.get(self.column) for problem in problems]
        reason = f'no equivalent prompts: the problem has no column "{self.column}"'
        return _prompts(found, {place: reason for place, value in enumerate(found) if not value})

    def close(self) -> None:
        """Nothing to end."""


@dataclass(frozen=True)
class ByFunction:
    """What a function of the prompt returns: one prompt, or a list of them."""

    function: Killable

    @staticmethod
    def of(use: str) -> ByFunction:
        """``use`` is ``path/to/file.py:function``."""
        return ByFunction(Killable.of("rewordings", "use", use))

    async def __call__(self, problems: Sequence[Problem]) -> Found:
        """One call for all problems."""
        prompts = [p.prompt if isinstance(p.prompt, str) else [dict(m) for m in p.prompt] for p in problems]
        said, failed = await self.function(prompts, [""] * len(prompts))
        returned = [json.loads(words or "{}") for words in said]
        failed |= {place: one["failure"] for place, one in enumerate(returned) if "failure" in one}
        found = [one.get("prompts") for one in returned]
        failed |= {
            place: "the function returned none"
            for place, value in enumerate(found)
            if not value and place not in failed
        }
        return _prompts(found, {place: f"no equivalent prompts ({reason})" for place, reason in failed.items()})

    def close(self) -> None:
        """End the process it runs in."""
        self.function.close()


def _prompts(values: Sequence[Any], failed: dict[int, str]) -> Found:
    """Each value as prompts; what is none fails that problem alone."""
    found: list[Sequence[Prompt]] = []
    for place, value in enumerate(values):
        prompts = [] if place in failed else _several(value)
        if prompts is None:
            failed[place] = f"no equivalent prompts: {str(value)[:80]!r} is no prompt, and no list of them"
        found.append(prompts or [])
    return found, failed


def _several(value: Any) -> list[Prompt] | None:
    """One prompt or several, where a conversation is a list of messages; None where it is neither."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list | tuple):
        return None
    if _is_conversation(value):
        return [tuple(value)]
    if not all(isinstance(one, str) or _is_conversation(one) for one in value):
        return None
    return [one if isinstance(one, str) else tuple(one) for one in value]


def _is_conversation(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(one, Mapping) and {"role", "content"} <= one.keys() for one in value)
    )
