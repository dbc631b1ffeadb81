"""Observers that end a run in the middle, for tests of resuming it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loopwise.observer import Observer


class CutShortError(Exception):
    """Ends a run in the middle."""


class StopAt(Observer):
    """Ends a run at its ``step``-th optimizer step, counted over all rounds."""

    def __init__(self, step: int) -> None:
        self.left = step

    def progress(self, what: str, done: int, total: int) -> None:
        self.left -= what == "steps"
        if not self.left:
            raise CutShortError


class StopAfter(Observer):
    """Ends a run once round ``number`` is committed."""

    def __init__(self, number: int) -> None:
        self.number = number

    def round_finished(self, run_id: str, summary: Mapping[str, Any]) -> None:
        if summary["round"] == self.number:
            raise CutShortError
