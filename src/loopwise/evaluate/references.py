"""What rules share: the text of a completion, what a reference column holds, and rewards made of both.

Imported by the worker too, which must start fast: standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from loopwise.evaluate.contract import FIXED_ARGUMENTS, missing_column

Rewards = list[float | None]
RewardFunction = Callable[..., Rewards]
Figures = Mapping[str, Any]
"""Figures of a set of completions by name: numbers, and what JSON can hold besides (a signature, a table)."""


class Report(Protocol):
    """Figures of S completions; ``columns`` maps each column to its S values. None where none can be judged."""

    def __call__(self, completions: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> Figures | None: ...


@dataclass(frozen=True)
class MetricReward:
    """A reward in TRL's signature that also has ``report``: figures which are no mean of single rewards."""

    reward: RewardFunction
    report: Report

    @property
    def __name__(self) -> str:
        return str(getattr(self.reward, "__name__", "metric"))

    def __call__(self, completions: Sequence[Any], **columns: Sequence[Any]) -> Rewards:
        return self.reward(completions=completions, **columns)


def completion_text(completion: Any) -> str:
    """The text of a completion: itself, or the content of the last message."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def reference_texts(reference: Any) -> list[str]:
    """The texts that a reference column's value holds: one, or a list of equally good ones; None: no text."""
    return [str(one) for one in references(reference)]


def references(value: Any) -> list[Any]:
    """The references that a column's value holds: one, or a list of equally good ones; messages are their text."""
    if not isinstance(value, list | tuple):
        return [] if value is None else [value]
    if value and isinstance(value[0], Mapping):
        return [completion_text(value)]
    return [one for one in value if one is not None]


def against(name: str, column: str, judge: Callable[[str, Any], float | None]) -> RewardFunction:
    """The reward ``judge(completion, reference)`` of each completion and its value in ``column``.

    Of equally good references the best counts; None where nothing can be said of any.
    """

    def best(completion: str, value: Any) -> float | None:
        marks = (judge(completion, reference) for reference in references(value))
        return max((mark for mark in marks if mark is not None), default=None)

    return against_all(name, column, best)


def against_all(name: str, column: str, judge: Callable[[str, Any], float | None]) -> RewardFunction:
    """The same, where ``judge`` makes of the whole value what it can."""

    def reward(completions: Sequence[Any], **columns: Sequence[Any]) -> Rewards:
        found = column_values(column, columns)
        return [judge(completion_text(c), r) for c, r in zip(completions, found, strict=True)]

    return named(reward, name)


def truth_for(answer: str | None, value: Any, read: Callable[[Any], str | None]) -> str | None:
    """Of equally good labels, as they are ``read``, the one that an answer gives, else the first; None without any."""
    truths = [truth for reference in references(value) if (truth := read(reference)) is not None]
    return answer if answer in truths else next(iter(truths), None)


def alone(name: str, judge: Callable[[str], float | None]) -> RewardFunction:
    """The reward ``judge(completion)`` of each completion."""

    def reward(completions: Sequence[Any], **_: Sequence[Any]) -> Rewards:
        return [judge(completion_text(completion)) for completion in completions]

    return named(reward, name)


def column_values(column: str, columns: Mapping[str, Sequence[Any]]) -> Sequence[Any]:
    """The values of a column. Raises CallError naming those there are where it is none of them."""
    if column not in columns:
        raise missing_column(column, {key: values for key, values in columns.items() if key not in FIXED_ARGUMENTS})
    return columns[column]


def named(reward: RewardFunction, name: str) -> RewardFunction:
    """The same function under a name of its own."""
    reward.__name__ = name
    return reward
