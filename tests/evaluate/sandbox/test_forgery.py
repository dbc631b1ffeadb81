"""Programs that want to pass without knowing what is right."""

from __future__ import annotations

import secrets

import pytest
from tests.evaluate.sandbox.conftest import Judge

from loopwise.evaluate.sandbox.outcomes import ProgramOutcome

FAILED, CRASHED = ProgramOutcome.FAILED, ProgramOutcome.CRASHED
EQUAL = "{'__eq__': lambda self, other: True, '__hash__': None}"


@pytest.mark.parametrize(
    "answer",
    [
        f"type('Always', (), {EQUAL})()",
        f"type('Always', (int,), {EQUAL})()",
        f"type('Always', (list,), {EQUAL})()",
        "True",
        "'2'",
        "[2]",
        "float('nan')",
    ],
)
def test_an_answer_that_claims_to_equal_everything(judge: Judge, answer: str) -> None:
    assert judge(f"def f(x): return {answer}", "f", ([1], 2)).outcome in (FAILED, CRASHED)


@pytest.mark.parametrize(
    "patch",
    [
        "json.dumps = lambda *_, **__: 'true'",
        "json.loads = lambda *_: {'call': '', 'given': [], 'expected': 2}",
        "main.Program.output = lambda *_: 'true'",
        "main._described = lambda *_: 'passed'",
        "builtins.isinstance = lambda *_: True",
        "builtins.AssertionError = Exception",
    ],
)
def test_a_patched_comparison(judge: Judge, patch: str) -> None:
    source = f"""
        import builtins, json, sys
        main = sys.modules["__main__"]
        {patch}
        def f(x): return x
    """
    assert judge(source, "f", ([1], 2)).outcome in (FAILED, CRASHED)


def test_an_answer_laid_up_before_the_question(judge: Judge) -> None:
    source = """
        import os
        for descriptor in range(3, 10):
            try:
                os.write(descriptor, b'{"call": "0", "output": null}\\n{"call": "0", "output": 2}\\n')
            except OSError:
                pass
        def f(x): return x
    """
    verdict = judge(source, "f", ([1], 2))
    assert (verdict.outcome, verdict.reason) == (FAILED, "answered out of turn")


@pytest.mark.parametrize("line", ["[" * 100_000, "1" * 100_000, "{}", "[]", "null", '{"passed": true}', "\xff", ""])
def test_what_is_no_answer(judge: Judge, line: str) -> None:
    source = f"""
        import os
        def f(x):
            for descriptor in range(3, 10):
                try:
                    os.write(descriptor, {line.encode("latin-1")!r} + bytes([10]))
                except OSError:
                    pass
            return 2
    """
    verdict = judge(source, "f", ([1], 2))
    assert (verdict.outcome, verdict.reason) == (FAILED, "wrote something else in place of an answer")


def test_the_expected_outputs_are_nowhere_inside(judge: Judge) -> None:
    token = secrets.token_hex(8)
    source = f"""
        import gc, sys
        def f(word):
            told = [repr(sys.argv), repr(sys.orig_argv), repr(sys.modules["__main__"].__dict__)]
            frame = sys._getframe().f_back
            while frame:
                told.append(repr(frame.f_locals))
                frame = frame.f_back
            told += [held for held in gc.get_objects() if isinstance(held, str)]
            return [wanted in "".join(told) for wanted in (word, "{token[:8]}" + "{token[8:]}")]
    """
    seen = judge(source, "f", (["this-is-given"], [True, False]), (["this-too"], token))
    assert (seen.passed, seen.reason) == (1, "gave [true, false]")
