"""One program through one sandbox, test by test: inputs go in, outputs come out, and are compared here."""

from __future__ import annotations

import json
import time
from typing import Any

from loopwise.evaluate.sandbox.comparison import same_output, same_text
from loopwise.evaluate.sandbox.outcomes import Program, ProgramOutcome, ProgramTest, Verdict
from loopwise.evaluate.sandbox.process import EndedError, ForgedError, LostError, ProgramError, Sandbox

_SHOWN = 200


def judge_program(
    sandbox: Sandbox, program: Program, seconds: float, *, tolerance: float = 0.0, every_test: bool = False
) -> Verdict:
    """Run the tests of a program within ``seconds`` in a sandbox that is ready, and kill that.

    Without ``every_test`` the first test that does not pass ends it. What happens to the sandbox itself is the outcome
    ``infrastructure``; nothing is raised.
    """
    deadline = time.monotonic() + seconds
    passed = 0
    test: int | None = None
    first: Verdict | None = None
    try:
        sandbox.ask({"source": program.source, "function": program.function}, deadline)
        for test, wanted in enumerate(program.tests):
            found = _judge_test(sandbox, program, wanted, deadline, tolerance)
            passed += found is None
            if found is not None and first is None:
                first = Verdict(found[0], test=test, reason=found[1])
                if not every_test:
                    break
    except TimeoutError:
        first = first or Verdict(ProgramOutcome.TIMEOUT, test=test, reason=f"was not done after {seconds:g} s")
    except ProgramError as error:
        first = first or Verdict(ProgramOutcome.CRASHED, test=test, reason=f"raised {error}")
    except EndedError as error:
        first = first or Verdict(ProgramOutcome.CRASHED, test=test, reason=str(error))
    except ForgedError as error:
        first = first or Verdict(ProgramOutcome.FAILED, test=test, reason=str(error))
    except LostError as error:
        first = Verdict(ProgramOutcome.INFRASTRUCTURE, reason=str(error))
    finally:
        sandbox.kill()
    if first is None:
        return Verdict(ProgramOutcome.PASSED, passed)
    return Verdict(first.outcome, passed, first.test, first.reason)


def _judge_test(
    sandbox: Sandbox, program: Program, test: ProgramTest, deadline: float, tolerance: float
) -> tuple[ProgramOutcome, str] | None:
    """None where the output is right, else what is wrong with it. Raises as ``Sandbox.ask`` where that is the end."""
    try:
        output = sandbox.ask({"given": test.given}, deadline)
    except ProgramError as error:
        return ProgramOutcome.CRASHED, f"raised {error}"
    if program.function is not None:
        right, verb = same_output(output, test.expected, tolerance), "gave"
    else:
        right, verb = isinstance(output, str) and same_text(output, test.expected), "printed"
    return None if right else (ProgramOutcome.FAILED, f"{verb} {shown(output)}")


def shown(value: Any, limit: int = _SHOWN) -> str:
    """A value for a reader: as JSON, cut at ``limit`` characters."""
    try:
        # A program's text may hold halves of surrogate pairs, which no reader and no tokenizer takes.
        text = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()
    except RecursionError:
        return "what is nested too deep to be shown"
    return text if len(text) <= limit else f"{text[:limit]}…"
