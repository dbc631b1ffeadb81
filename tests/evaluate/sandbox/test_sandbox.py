"""Sandboxes themselves: what ends them, what they leave, and what is said where they cannot be had."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from tests.evaluate.sandbox.conftest import processes, wait_gone

from loopwise.evaluate.sandbox.launching import Launcher, UnavailableError
from loopwise.evaluate.sandbox.limits import Limits
from loopwise.evaluate.sandbox.outcomes import Program, ProgramOutcome, ProgramTest, Verdict
from loopwise.evaluate.sandbox.pool import SandboxPool
from loopwise.evaluate.sandbox.process import Sandbox
from loopwise.evaluate.sandbox.trial import judge_program

RIGHT = Program("def f(x): return x + 1", "f", [ProgramTest([1], 2)])
ENDLESS = Program("def f(x):\n    while True:\n        pass", "f", [ProgramTest([1], 2)])


def test_a_sandbox_killed_from_outside_says_nothing_of_its_program(marked: Launcher) -> None:
    sandbox = Sandbox(marked)
    sandbox.wait_ready()
    threading.Timer(0.3, os.kill, (sandbox.pid, signal.SIGKILL)).start()
    verdict = judge_program(sandbox, ENDLESS, 20.0)
    assert verdict == Verdict(ProgramOutcome.INFRASTRUCTURE, reason="bwrap was ended by SIGKILL")


def test_a_sandbox_lost_while_it_waited_is_replaced(marked: Launcher) -> None:
    pool = SandboxPool(marked, 1)
    try:
        pool.check()
        for process in processes(marked.path[0]):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        assert pool.submit(RIGHT).result(timeout=60).outcome is ProgramOutcome.PASSED
    finally:
        pool.close()


def test_a_program_that_is_always_lost_is_masked(marked: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = SandboxPool(marked, 1)
    try:
        pool.check()
        monkeypatch.setattr(Launcher, "arguments", lambda self, *_: ["/no-such-program"])
        first, second = pool.submit(RIGHT).result(timeout=60), pool.submit(RIGHT).result(timeout=60)
        assert first.outcome is ProgramOutcome.PASSED
        assert second.outcome is ProgramOutcome.INFRASTRUCTURE
        assert "bwrap cannot be run" in second.reason
    finally:
        pool.close()


def test_one_killed_at_any_moment_of_its_start_leaves_nothing(marked: Launcher) -> None:
    for delay in range(24):
        sandbox = Sandbox(marked)
        time.sleep(delay * 0.001)
        sandbox.kill()


def test_each_program_has_a_sandbox_of_its_own(marked: Launcher) -> None:
    pool = SandboxPool(marked, 2)
    source = (
        "import os, builtins\ndef f():\n    seen = [os.path.exists('/tmp/x'), hasattr(builtins, 'x')]\n"
        "    builtins.x = open('/tmp/x', 'w')\n    return seen"
    )
    try:
        programs = [Program(source, "f", [ProgramTest([], [False, False])])] * 8
        verdicts = [waiting.result(timeout=60) for waiting in [pool.submit(program) for program in programs]]
    finally:
        pool.close()
    assert {verdict.outcome for verdict in verdicts} == {ProgramOutcome.PASSED}


def test_closing_ends_the_program_under_way(marked: Launcher) -> None:
    pool = SandboxPool(replace(marked, limits=Limits(seconds=60)), 1)
    running, waiting = pool.submit(ENDLESS), pool.submit(RIGHT)
    while not running.running():
        time.sleep(0.01)
    time.sleep(0.2)
    began = time.monotonic()
    pool.close()
    pool.close()
    assert time.monotonic() - began < 20
    assert waiting.cancelled()


def test_nothing_outlives_a_parent_that_is_killed(marked: Launcher) -> None:
    script = f"""
        import threading
        from dataclasses import replace
        from tests.evaluate.sandbox.test_sandbox import ENDLESS, Launcher, Limits, Sandbox, judge_program
        launcher = replace(Launcher.of(Limits()), path=({marked.path[0]!r},))
        busy, idle = Sandbox(launcher), Sandbox(launcher)
        busy.wait_ready()
        idle.wait_ready()
        threading.Timer(1, print, ("ready",), {{"flush": True}}).start()
        judge_program(busy, ENDLESS, 60.0)
    """
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        assert len(processes(marked.path[0])) == 1 + 2 * 3  # the parent itself, and three of each sandbox
        parent.kill()
    assert not wait_gone(marked.path[0])


def test_without_bubblewrap_there_is_a_hint_and_no_sandbox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"apt install bubblewrap"):
        Launcher.of(Limits())


def test_another_machine_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(UnavailableError, match="found linux on riscv64"):
        Launcher.of(Limits())


def test_a_bubblewrap_that_does_not_start_is_told_in_its_own_words(sandboxes: None) -> None:
    launcher = Launcher.of(Limits())
    broken = replace(launcher, command=(*launcher.command, "--ro-bind", "/no/such/folder", "/x"))
    pool = SandboxPool(broken, 1)
    try:
        with pytest.raises(UnavailableError, match="/no/such/folder"):
            pool.check()
        assert pool.submit(RIGHT).result(timeout=60).outcome is ProgramOutcome.INFRASTRUCTURE
    finally:
        pool.close()
