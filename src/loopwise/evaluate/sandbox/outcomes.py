"""A generated program, its tests, and how it fared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class ProgramOutcome(StrEnum):
    """How a program fared.

    ``failed``: a test's output was wrong. ``crashed``: it raised, ended itself, or was ended for taking too much.
    ``timeout``: it was not done in time. ``infrastructure``: the sandbox failed, which says nothing about the program.
    """

    PASSED = "passed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    INFRASTRUCTURE = "infrastructure"


@dataclass(frozen=True)
class ProgramTest:
    """``given``: a list of arguments, or standard input; ``expected``: what JSON can hold, or standard output.

    Only ``given`` ever enters a sandbox.
    """

    given: Any
    expected: Any


@dataclass(frozen=True)
class Program:
    """Python ``source`` with its tests: of ``function``, or (None) of the whole program by what it prints."""

    source: str
    function: str | None
    tests: Sequence[ProgramTest]


@dataclass(frozen=True)
class Verdict:
    """``test`` is the place of the first test that did not pass (None: it failed before any, or passed them all);
    ``reason`` what happened there, as of the program: "gave 3", "was ended by SIGSEGV". ``passed`` counts tests."""

    outcome: ProgramOutcome
    passed: int = 0
    test: int | None = None
    reason: str = ""
