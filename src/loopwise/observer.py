"""Whoever watches a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Observer:
    """What a person watching is told. This one says nothing; the command line and the notebook have their own."""

    def run_started(self, run_id: str, rounds: int, done: int) -> None:
        """A run begins (or goes on after ``done`` rounds)."""

    def progress(self, what: str, done: int, total: int) -> None:
        """``done`` of ``total`` samples (of a phase) or optimizer steps (``train``)."""

    def round_finished(self, run_id: str, summary: Mapping[str, Any]) -> None:
        """A round is committed."""

    def note(self, level: str, message: str) -> None:
        """Something a person should know: ``info`` or ``warning``."""
