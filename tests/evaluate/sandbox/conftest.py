"""Sandboxes for the tests, which are skipped with the reason where this machine has none, and a look for leftovers."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from loopwise.evaluate.sandbox.launching import Launcher, UnavailableError
from loopwise.evaluate.sandbox.limits import Limits
from loopwise.evaluate.sandbox.outcomes import Program, ProgramTest, Verdict
from loopwise.evaluate.sandbox.pool import SandboxPool

SECONDS = 1.0
Judge = Callable[..., Verdict]


@pytest.fixture(scope="session")
def sandboxes() -> None:
    """Skips where this machine cannot start a sandbox."""
    pool = None
    try:
        pool = SandboxPool(Launcher.of(Limits()), 1)
        pool.check()
    except UnavailableError as reason:
        pytest.skip(f"no sandbox on this machine: {reason}")
    finally:
        if pool is not None:
            pool.close()


@pytest.fixture
def marked(sandboxes: None) -> Iterator[Launcher]:
    """A launcher whose processes can be told from all others; afterwards none of them may be there."""
    mark = f"/no-such-folder-{secrets.token_hex(8)}"
    yield replace(Launcher.of(Limits(seconds=SECONDS, memory=128)), path=(mark,))
    assert not wait_gone(mark)


@pytest.fixture
def pool(marked: Launcher) -> Iterator[SandboxPool]:
    pool = SandboxPool(marked, 1)
    yield pool
    pool.close()


@pytest.fixture
def judge(pool: SandboxPool) -> Judge:
    """Judge a program by pairs (given, expected): ``judge(source, function, *tests)``."""

    def judge(source: str, function: str | None, *tests: tuple[Any, Any], **options: Any) -> Verdict:
        program = Program(dedent(source), function, [ProgramTest(*test) for test in tests])
        return pool.submit(program, **options).result(timeout=60)

    return judge


def wait_gone(mark: str, limit: float = 10.0) -> list[int]:
    """Wait until no process has the mark in its command; those that still have it when the time is up."""
    deadline = time.monotonic() + limit
    while (left := processes(mark)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def processes(mark: str) -> list[int]:
    """The processes of this machine that have the mark in their command."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if mark.encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
    return found
