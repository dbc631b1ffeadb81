"""Programs that mean no harm: how they fare, and what is said of it."""

from __future__ import annotations

import pytest
from tests.evaluate.sandbox.conftest import Judge

from loopwise.evaluate.sandbox.outcomes import ProgramOutcome, Verdict


def test_a_right_program_passes(judge: Judge) -> None:
    source = "def add(a, b):\n    return a + b"
    assert judge(source, "add", ([1, 2], 3), (["a", "b"], "ab"), ([[1], [2]], [1, 2])) == Verdict(
        ProgramOutcome.PASSED, 3
    )


def test_the_first_wrong_output_is_told(judge: Judge) -> None:
    source = "def double(x):\n    return x * 2 if x < 3 else x"
    tests = ([1], 2), ([3], 6), ([4], 8), ([2], 4)
    assert judge(source, "double", *tests) == Verdict(ProgramOutcome.FAILED, 1, 1, "gave 3")
    assert judge(source, "double", *tests, every_test=True) == Verdict(ProgramOutcome.FAILED, 2, 1, "gave 3")


@pytest.mark.parametrize(
    ("source", "test", "reason"),
    [
        ("def f(x): return 1 / x", 0, "raised ZeroDivisionError: division by zero (line 1)"),
        ("def f(x:", None, "raised SyntaxError: '(' was never closed (program.py, line 1)"),
        ("def g(x): return x", None, "raised NameError: there is no function f"),
        ("import no_such_module", None, "raised ModuleNotFoundError: No module named 'no_such_module' (line 1)"),
        ("def f(x): return {1}", 0, "raised TypeError: Object of type set is not JSON serializable"),
        ("def f(x):\n    import ctypes\n    ctypes.string_at(0)", 0, "was ended by SIGSEGV"),
        ("def f(x): return 'x' * 2**21", 0, "raised ValueError: its output has more than 1048576 characters"),
    ],
)
def test_what_crashes(judge: Judge, source: str, test: int | None, reason: str) -> None:
    assert judge(source, "f", ([0], 0), ([1], 0)) == Verdict(ProgramOutcome.CRASHED, 0, test, reason)


def test_halves_of_surrogate_pairs_are_told_as_text(judge: Judge) -> None:
    assert judge("def f(): return chr(0xD83D)", "f", ([], "x")).reason == 'gave "?"'
    assert judge("def f(): raise ValueError(chr(0xD83D))", "f", ([], "x")).reason == "raised ValueError: ? (line 1)"


def test_after_a_test_that_raised_the_others_still_count(judge: Judge) -> None:
    verdict = judge("def f(x): return 1 // x", "f", ([1], 1), ([0], 0), ([2], 0), every_test=True)
    assert (verdict.outcome, verdict.passed, verdict.test) == (ProgramOutcome.CRASHED, 2, 1)


def test_the_deadline_is_for_all_tests_together(judge: Judge) -> None:
    source = "import time\ndef f(x):\n    time.sleep(x)\n    return x"
    verdict = judge(source, "f", ([0.01], 0.01), ([60], 60), ([0], 0), every_test=True)
    assert verdict == Verdict(ProgramOutcome.TIMEOUT, 1, 1, "was not done after 1 s")


@pytest.mark.parametrize(
    "source",
    [
        "print(int(input()) + int(input()))",
        "import sys\nprint(sum(map(int, sys.stdin)))\nsys.exit()",
        "lines = open(0)\nprint(sum(int(line) for line in lines))\nexit(0)",
        "import os\nos.write(1, b'%d\\n' % sum(map(int, os.read(0, 100).split())))",
        "import sys, threading\ndef main():\n    print(sum(map(int, sys.stdin.buffer.read().split())))\n"
        "thread = threading.Thread(target=main)\nthread.start()",
        "import atexit, io, os, sys\nsys.stdout = io.StringIO()\n"
        "atexit.register(lambda: os.write(1, sys.stdout.getvalue().encode()))\nprint(sum(map(int, sys.stdin)))",
        "if __name__ == '__main__':\n    print(sum(map(int, open('/dev/stdin') if False else open(0))))",
    ],
)
def test_whole_programs_read_and_print_in_every_usual_way(judge: Judge, source: str) -> None:
    assert judge(source, None, ("1\n2\n", "3\n"), ("40\n2", "42")) == Verdict(ProgramOutcome.PASSED, 2)


def test_a_whole_program_starts_afresh_for_each_test(judge: Judge) -> None:
    source = "try:\n    seen += 1\nexcept NameError:\n    seen = 1\nprint(seen, input())"
    assert judge(source, None, ("a", "1 a"), ("b", "1 b")).outcome is ProgramOutcome.PASSED


def test_a_whole_program_with_an_exit_status_crashed(judge: Judge) -> None:
    verdict = judge("print(1)\nexit(3)", None, ("", "1"))
    assert verdict == Verdict(ProgramOutcome.CRASHED, 0, 0, "raised SystemExit: 3 (line 2)")


def test_text_of_every_script_goes_through(judge: Judge) -> None:
    assert judge("def f(s): return s[::-1]", "f", (["学习🙂\u0000"], "\u0000🙂习学")).outcome is ProgramOutcome.PASSED
    assert judge("print(input()[::-1])", None, ("学习🙂", "🙂习学")).outcome is ProgramOutcome.PASSED


def test_sets_of_texts_have_the_same_order_in_every_sandbox(judge: Judge) -> None:
    source = "def f(): return list({'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'})"
    first = judge(source, "f", ([], None)).reason
    assert first.startswith("gave [")
    assert judge(source, "f", ([], None)).reason == first
