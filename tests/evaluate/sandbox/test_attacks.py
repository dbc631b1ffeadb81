"""Programs that take too much, or will not end. Each ends as it should and leaves no process (``marked`` looks)."""

from __future__ import annotations

import os
import time

import pytest
from tests.evaluate.sandbox.conftest import Judge
from tests.evaluate.sandbox.deeds import ACHIEVED

from loopwise.evaluate.sandbox.outcomes import ProgramOutcome

PASSED, FAILED, TIMEOUT, CRASHED = (
    ProgramOutcome.PASSED,
    ProgramOutcome.FAILED,
    ProgramOutcome.TIMEOUT,
    ProgramOutcome.CRASHED,
)
HARMLESS = "def f(x): return x + 1"


def test_a_fork_bomb(judge: Judge) -> None:
    bomb = """
        import os
        def f(x):
            while True:
                os.fork()
    """
    verdict = judge(bomb, "f", ([1], 2))
    assert (verdict.outcome, verdict.reason[:22]) == (CRASHED, "raised PermissionError")


def test_a_fork_bomb_that_does_not_give_up(judge: Judge) -> None:
    bomb = """
        import os
        def f(x):
            while True:
                try:
                    os.fork()
                except OSError:
                    pass
    """
    assert judge(bomb, "f", ([1], 2)).outcome is TIMEOUT
    assert judge(HARMLESS, "f", ([1], 2)).outcome is PASSED


def test_a_thread_bomb(judge: Judge) -> None:
    bomb = """
        import threading, time
        def f(x):
            while True:
                threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    """
    verdict = judge(bomb, "f", ([1], 2))
    assert (verdict.outcome, verdict.reason[:19]) == (CRASHED, "raised RuntimeError")


@pytest.mark.parametrize("grow", ["held.append(bytearray(1 << 20))", "held += held or [0]", "held = [held] * 999"])
def test_a_memory_bomb(judge: Judge, grow: str) -> None:
    bomb = f"""
        def f(x):
            held = []
            while True:
                {grow}
    """
    assert judge(bomb, "f", ([1], 2)).outcome in (CRASHED, TIMEOUT)
    assert judge(HARMLESS, "f", ([1], 2)).outcome is PASSED


def test_memory_beside_the_address_space(judge: Judge) -> None:
    source = f"""{ACHIEVED}
def f():
    return achieved({{
        "memfd": lambda: os.memfd_create("x"),
        "shared memory": lambda: call("shmget", 0, 1 << 20, 0o1600),
        "messages": lambda: call("msgget", 0, 0o1600),
        "a large file": lambda: open("/tmp/large", "wb").truncate(1 << 30),
    }})
"""
    assert judge(source, "f", ([], [])).reason == ""


def test_the_folder_for_files_has_a_limit(judge: Judge) -> None:
    source = """
        def f():
            written = 0
            try:
                for number in range(100):
                    with open(f"/tmp/{number}", "wb", buffering=0) as file:
                        for _ in range(8):
                            written += file.write(bytes(1 << 20))
            except OSError:
                return written <= 32 << 20
    """
    assert judge(source, "f", ([], True)).outcome is PASSED


@pytest.mark.parametrize("make", ["open(path, 'w').close()", "os.mkdir(path)", "os.symlink('x', path)"])
def test_empty_files_have_a_limit(judge: Judge, make: str) -> None:
    source = f"""
        import os, time
        def f(count):
            for number in range(count):
                path = f"/tmp/{{count}}-{{number}}"
                {make}
            time.sleep(0.1)
            return count
    """
    verdict = judge(source, "f", ([500], 500), ([10**9], 0))
    assert (verdict.outcome, verdict.passed) == (CRASHED, 1)
    assert "more than 1000 files in /tmp" in verdict.reason


def test_an_output_flood(judge: Judge) -> None:
    printed = """
        while True:
            print("x" * 100_000)
    """
    assert judge(printed, None, ("", "x")).outcome is CRASHED
    past_the_runner = """
        import os
        def f(x):
            while True:
                for descriptor in range(3, 10):
                    try:
                        os.write(descriptor, b"x" * 65536)
                    except OSError:
                        pass
    """
    verdict = judge(past_the_runner, "f", ([1], 2))
    assert (verdict.outcome, verdict.reason[:10]) == (FAILED, "wrote more")


def test_an_answer_drop_by_drop_meets_the_deadline(judge: Judge) -> None:
    source = """
        import os, time
        def f(x):
            while True:
                time.sleep(0.01)
                for descriptor in range(3, 10):
                    try:
                        os.write(descriptor, b" ")
                    except OSError:
                        pass
    """
    began = time.monotonic()
    assert judge(source, "f", ([1], 2)).outcome is TIMEOUT
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    "end",
    [
        "sys.exit(0)",
        "exit()",
        "os._exit(0)",
        "os.abort()",
        "os.kill(0, 9)",
        "os.kill(os.getpid(), 9)",
        "os.closerange(0, 64)",
    ],
)
def test_an_early_end_is_no_pass(judge: Judge, end: str) -> None:
    assert judge(f"import os, sys\n{end}", "f", ([1], 2)).outcome is CRASHED
    assert judge(f"import os, sys\ndef f(x): {end}", "f", ([1], 2)).outcome is CRASHED
    assert judge(f"import os, sys\n{end}", None, ("1", "2")).outcome in (CRASHED, FAILED)


@pytest.mark.parametrize("number", ["SIGKILL", "SIGTERM", "SIGSTOP"])
def test_kill_minus_one(judge: Judge, number: str) -> None:
    source = f"""
        import os, signal
        def f(x, others):
            for process in (-1, 1, *others):
                try:
                    os.kill(process, signal.{number})
                except OSError:
                    pass
            return x + 1
    """
    assert judge(source, "f", ([1, [os.getpid(), os.getppid()]], 2)).outcome in (PASSED, CRASHED)
    assert judge(HARMLESS, "f", ([1], 2)).outcome is PASSED


def test_an_ignored_sigterm(judge: Judge) -> None:
    source = """
        import signal
        for number in range(1, 64):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        def f(x):
            while True:
                pass
    """
    began = time.monotonic()
    assert judge(source, "f", ([1], 2)).outcome is TIMEOUT
    assert time.monotonic() - began < 20


def test_a_program_that_stops_itself(judge: Judge) -> None:
    assert judge("import os\ndef f(x): os.kill(os.getpid(), 19)", "f", ([1], 2)).outcome is TIMEOUT


@pytest.mark.parametrize(
    "source",
    [
        "def f(x): return f(x)",
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
        "import sys\nsys.setrecursionlimit(10**9)\nclass R: __getattr__ = lambda s, n: getattr(s, n)\ndef f(x): R().x",
        "def f(x):\n    for _ in range(10**5):\n        x = [x]\n    return x",
        "(" * 5000 + ")" * 5000,
        "def f(x): return eval('-' * 10**6 + '1')",
    ],
    ids=["limited", "unlimited", "in C", "output", "source", "eval"],
)
def test_deep_recursion(judge: Judge, source: str) -> None:
    assert judge(source, "f", ([1], 2)).outcome in (CRASHED, TIMEOUT)


def test_a_child_that_outlives(judge: Judge) -> None:
    source = f"""{ACHIEVED}
def f():
    clone = 56 if os.uname().machine == "x86_64" else 220
    return achieved({{
        "fork": os.fork,
        "forkpty": os.forkpty,
        "vfork": lambda: call("vfork"),
        "clone": lambda: call("syscall", clone, 17, 0, 0, 0, 0),
        "clone3": lambda: call("syscall", 435, bytes(88), 88),
        "spawn": lambda: os.posix_spawn(sys.executable, [sys.executable, "-c", ""], {{}}),
        "subprocess": lambda: subprocess.Popen([sys.executable, "-c", ""], start_new_session=True),
    }})
"""
    assert judge(source, "f", ([], [])).reason == ""


def test_a_thread_that_outlives(judge: Judge) -> None:
    source = """
        import threading
        def spin():
            while True:
                pass
        def f(x):
            threading.Thread(target=spin).start()
            return x + 1
    """
    assert judge(source, "f", ([1], 2)).outcome is PASSED


def test_a_program_in_place_of_the_runner(judge: Judge) -> None:
    source = "import os, sys\ndef f(x): os.execv(sys.executable, [sys.executable, '-c', 'while True: pass'])"
    assert judge(source, "f", ([1], 2)).outcome is TIMEOUT
