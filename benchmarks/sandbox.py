"""What a sandbox costs: short programs, each in one of its own, beside the same programs in a bare Python each."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.harness import (
    Benchmark,
    BenchmarkError,
    Figure,
    Rival,
    Section,
    Settings,
    as_content,
    run_alternating,
    table,
)

OURS, RIVAL = "loopwise's sandbox", "a bare Python, no sandbox"
STARTS, PROGRAMS = 50, 1000
QUICK_STARTS, QUICK_PROGRAMS = 2, 4
SOURCE = "def add(a, b):\n    return a + b"
TESTS = 5

FIGURES = (
    Figure("start_ms", "start, ms", ".1f"),
    Figure("programs_per_second", "programs/s", ".1f"),
    Figure("seconds_a_thousand", "seconds for 1,000 programs", ".1f"),
)
NOTES = (
    "A program is a function of two lines with five tests. Start: from nothing until it waits for a program, one after "
    "the other (the bare Python: until it has ended). Programs: as many at a time as the run has threads, each in a "
    "fresh process. The bare Python compares inside, where a program can cheat, and has no limit of any kind."
)


def run(settings: Settings) -> Section:
    """Both sides. Raises BenchmarkError where this machine has no sandbox."""
    from loopwise.evaluate.sandbox.launching import Launcher, UnavailableError
    from loopwise.evaluate.sandbox.limits import Limits

    try:
        Launcher.of(Limits())
    except UnavailableError as error:
        raise BenchmarkError(str(error)) from None
    starts, programs = (QUICK_STARTS, QUICK_PROGRAMS) if settings.quick else (STARTS, PROGRAMS)
    options = {"starts": starts, "programs": programs}
    measured = run_alternating(
        [Rival(OURS, "benchmarks.sandbox:ours", options), Rival(RIVAL, "benchmarks.sandbox:bare", options)],
        settings.repeats,
        settings.threads,
    )
    return Section(
        "\n\n".join(["## Generated programs in sandboxes", table(measured, FIGURES, {}), NOTES]),
        {**as_content(measured, FIGURES), "notes": NOTES},
    )


BENCHMARK = Benchmark((), run)


def ours(options: Mapping[str, Any]) -> dict[str, float | None]:
    """Sandboxes started one by one, then programs through the pool."""
    from loopwise.evaluate.sandbox.launching import Launcher
    from loopwise.evaluate.sandbox.limits import Limits
    from loopwise.evaluate.sandbox.outcomes import Program, ProgramOutcome, ProgramTest
    from loopwise.evaluate.sandbox.pool import SandboxPool
    from loopwise.evaluate.sandbox.process import Sandbox

    launcher = Launcher.of(Limits(seconds=60))

    def start() -> float:
        began = time.perf_counter()
        sandbox = Sandbox(launcher)
        sandbox.wait_ready()
        seconds = time.perf_counter() - began
        sandbox.kill()
        return seconds

    seconds = [start() for _ in range(options["starts"])]
    program = Program(SOURCE, "add", [ProgramTest([n, n], 2 * n) for n in range(TESTS)])
    pool = SandboxPool(launcher, options["threads"])
    try:
        pool.check()
        began = time.perf_counter()
        waiting = [pool.submit(program) for _ in range(options["programs"])]
        outcomes = {future.result().outcome for future in waiting}
        spent = time.perf_counter() - began
    finally:
        pool.close()
    assert outcomes == {ProgramOutcome.PASSED}
    return _figures(seconds, options["programs"], spent)


def bare(options: Mapping[str, Any]) -> dict[str, float | None]:
    """The same programs, each with its tests in a Python process of its own."""
    from loopwise.evaluate.sandbox.launching import interpreter

    tests = "".join(f"\nassert add({n}, {n}) == {2 * n}" for n in range(TESTS))
    seconds = [_timed(lambda: _python(interpreter(), "")) for _ in range(options["starts"])]

    def program(_: int) -> None:
        _python(interpreter(), SOURCE + tests)

    def programs() -> None:
        with ThreadPoolExecutor(options["threads"]) as threads:
            list(threads.map(program, range(options["programs"])))

    return _figures(seconds, options["programs"], _timed(programs))


def _python(path: str, source: str) -> None:
    subprocess.run([path, "-I", "-S", "-B", "-c", source], check=True, stdin=subprocess.DEVNULL, env={})


def _timed(function: Callable[[], None]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def _figures(starts: list[float], programs: int, spent: float) -> dict[str, float | None]:
    return {
        "start_ms": 1000 * statistics.median(starts),
        "programs_per_second": programs / spent,
        "seconds_a_thousand": 1000 * spent / programs,
    }
