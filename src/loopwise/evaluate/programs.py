"""Generated Python against unit tests, in a sandbox: a reward for what passes, and words for what does not.

What a sandbox is, and what it withstands: docs/sandbox.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loopwise.errors import ConfigError
from loopwise.evaluate.options import require, require_number
from loopwise.evaluate.parts import Judged
from loopwise.evaluate.sandbox.launching import Launcher, UnavailableError
from loopwise.evaluate.sandbox.limits import MOST_INPUT, MOST_OUTPUT, Limits
from loopwise.evaluate.sandbox.outcomes import Program, ProgramOutcome, ProgramTest, Verdict
from loopwise.evaluate.sandbox.pool import SandboxPool
from loopwise.evaluate.sandbox.trial import shown
from loopwise.evaluate.sources import Source, Surroundings
from loopwise.types import Problem, Sample

LEAST_MEMORY = 64
_LINE = re.compile(r"[^\n]+\n?|\n")
_FENCE = re.compile(r"[ \t]*```[ \t]*(\w*)")
_PYTHON = ("python", "python3", "py")


@dataclass(frozen=True)
class _Wanted:
    """How the rows name things, and how a program is made of a completion."""

    tests: str
    function: str
    prefix: bool


class PythonTests:
    """Judges completions as programs: 1.0 where every test passes, else 0.0, or with ``partial`` the share that does.

    A critique names the first test that does not pass, its input and what came of it: one test, and never what should
    have come. A program whose sandbox failed, or whose row has no tests, is masked.
    """

    def __init__(self, pool: SandboxPool, wanted: _Wanted, tolerance: float, partial: bool) -> None:
        self._pool = pool
        self._wanted = wanted
        self._tolerance = tolerance
        self._partial = partial

    async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Judged:
        """Judge ``samples`` [S] of ``problems`` [S], several at a time."""
        judged = Judged.nothing(len(samples))
        programs: dict[int, Program] = {}
        for position, (problem, sample) in enumerate(zip(problems, samples, strict=True)):
            try:
                programs[position] = _program(problem, sample.text, self._wanted)
            except ValueError as error:
                judged.errors[position] = str(error)
        verdicts = await asyncio.gather(*map(self._judge_one, programs.values()))
        for (position, program), verdict in zip(programs.items(), verdicts, strict=True):
            self._take(judged, position, program, verdict)
        return judged

    def close(self) -> None:
        """End the sandboxes."""
        self._pool.close()

    async def _judge_one(self, program: Program) -> Verdict:
        future = self._pool.submit(program, tolerance=self._tolerance, every_test=self._partial)
        return await asyncio.wrap_future(future)

    def _take(self, judged: Judged, position: int, program: Program, verdict: Verdict) -> None:
        for outcome in ProgramOutcome:
            judged.metrics.setdefault(f"programs/{outcome}", []).append(float(verdict.outcome is outcome))
        judged.extra[position] |= {"outcome": str(verdict.outcome), "tests_passed": verdict.passed}
        if verdict.outcome is ProgramOutcome.INFRASTRUCTURE:
            judged.errors[position] = f"its sandbox failed: {verdict.reason}"
            return
        right = verdict.outcome is ProgramOutcome.PASSED
        judged.rewards[position] = verdict.passed / len(program.tests) if self._partial else float(right)
        judged.critiques[position] = None if right else critique(program, verdict)


def python_tests(
    surroundings: Surroundings,
    *,
    tests: str = "tests",
    function: str = "function",
    prefix: bool = False,
    seconds: float = 5.0,
    memory: int = 256,
    tolerance: float = 1e-6,
    partial: bool = False,
    packages: bool = False,
    workers: int = 0,
) -> PythonTests:
    """Programs against the tests in a column of their rows.

    ``tests`` and ``function`` name columns; ``prefix`` puts the prompt before the completion. ``seconds`` of wall time
    are for all tests of a program, ``memory`` is MiB of address space. Floats within ``tolerance`` are equal.
    ``partial``: the reward is the share of tests that pass. ``packages``: programs may import what is installed here.
    ``workers`` sandboxes are ready at a time (0: one a core). Raises ConfigError where an option is wrong, or where
    this machine cannot start a sandbox: a program never runs outside one.
    """
    whose = 'source "python_tests"'
    require(whose, str, tests=tests, function=function)
    require(whose, bool, prefix=prefix, partial=partial, packages=packages)
    require_number(whose, 0.01, seconds=seconds)
    require_number(whose, 0, tolerance=tolerance)
    require_number(whose, LEAST_MEMORY, whole=True, memory=memory)
    require_number(whose, 0, whole=True, workers=workers)
    limits = Limits(float(seconds), int(memory))
    try:
        launcher = Launcher.of(limits, packages=packages)
        pool = SandboxPool(launcher, int(workers) or len(os.sched_getaffinity(0)))
        try:
            pool.check()
        except BaseException:
            pool.close()
            raise
    except UnavailableError as error:
        raise ConfigError(
            f'source "python_tests" needs a sandbox, for it runs what a model wrote: {error} '
            "Without one, use another reward. See docs/sandbox.md."
        ) from None
    return PythonTests(pool, _Wanted(tests, function, prefix), float(tolerance), partial)


SOURCES: tuple[Source, ...] = (
    Source("python_tests", python_tests, uses_reference=True, says=frozenset({"rewards", "critiques"})),
)


def python_code(completion: str) -> str:
    """The last fenced block of a completion that is marked as Python (of several, else the last unmarked one), or all
    of it where there is none. A block that was cut off before its end counts."""
    blocks = _fenced(completion)
    for marks in (_PYTHON, ("",)):
        if found := [code for mark, code in blocks if mark.lower() in marks]:
            return str(found[-1])
    return completion


def _fenced(text: str) -> list[tuple[str, str]]:
    """Mark and content of each fenced block. A fence that nothing follows opens none."""
    blocks: list[tuple[str, list[str]]] = []
    inside = False
    for line in _LINE.findall(text):
        fence = _FENCE.match(line)
        if fence and inside:
            inside = False
        elif fence and line.endswith("\n"):
            inside = True
            blocks.append((fence[1], []))
        elif inside:
            blocks[-1][1].append(line)
    return [(mark, "".join(lines)) for mark, lines in blocks]


def critique(program: Program, verdict: Verdict) -> str:
    """What the first test that did not pass did, in a sentence."""
    if verdict.test is None:
        return f"The program {verdict.reason}."
    given = program.tests[verdict.test].given
    if program.function is None:
        who = f"with {shown(given)} on standard input, the program"
    else:
        who = f"{program.function}({', '.join(map(shown, given))})"
    return f"Test {verdict.test + 1} of {len(program.tests)}: {who} {verdict.reason}."


def _program(problem: Problem, completion: str, wanted: _Wanted) -> Program:
    """Raises ValueError, with the mend, where the row is none that can be tested."""
    source = python_code(completion)
    if wanted.prefix:
        if not isinstance(problem.prompt, str):
            raise ValueError("prefix: true puts the prompt before the program, and it is a conversation. Leave it out")
        source = problem.prompt + source
    rows = problem.columns.get(wanted.tests)
    if isinstance(rows, str):
        try:
            rows = json.loads(rows)
        except ValueError as error:
            raise ValueError(f'column "{wanted.tests}" is text, but no JSON ({error}). Mend it') from None
    if not isinstance(rows, Sequence) or not rows:
        raise ValueError(f'column "{wanted.tests}": expected a list of tests, found {_kind(rows)}. Add them')
    function = problem.columns.get(wanted.function) or None
    tests = tuple(_test(row, place, wanted, function) for place, row in enumerate(rows, 1))
    return Program(source, None if function is None else str(function), tests)


def _test(row: Any, place: int, wanted: _Wanted, function: Any) -> ProgramTest:
    keys = ("stdin", "stdout") if function is None else ("input", "output")
    where = f'column "{wanted.tests}", test {place}'
    if not isinstance(row, Mapping) or not all(key in row for key in keys):
        why = f'there is no "{wanted.function}"' if function is None else f'of "{wanted.function}"'
        raise ValueError(f'{where}: expected {{"{keys[0]}": …, "{keys[1]}": …}} ({why}), found {_kind(row)}')
    given, expected = (row[key] for key in keys)
    if function is None and not (isinstance(given, str) and isinstance(expected, str)):
        raise ValueError(f"{where}: stdin and stdout must be text")
    if function is not None and not isinstance(given, list):
        raise ValueError(f"{where}: input must be the list of arguments, found {_kind(given)}")
    try:
        sizes = len(json.dumps(given)), len(json.dumps(expected, ensure_ascii=False))
    except TypeError as error:
        raise ValueError(f"{where}: {error}. Write what JSON can hold") from None
    if sizes[0] > MOST_INPUT or sizes[1] > MOST_OUTPUT:
        most = f"{MOST_INPUT} characters of input and {MOST_OUTPUT} of output"
        raise ValueError(f"{where}: longer than {most}. Leave it out")
    return ProgramTest(given, expected)


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:80]}"
