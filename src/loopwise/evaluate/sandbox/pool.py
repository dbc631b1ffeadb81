"""Sandboxes started ahead of the programs that they will judge, one program each."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from loopwise.evaluate.sandbox.launching import Launcher, UnavailableError
from loopwise.evaluate.sandbox.outcomes import Program, ProgramOutcome, Verdict
from loopwise.evaluate.sandbox.process import Sandbox
from loopwise.evaluate.sandbox.trial import judge_program

_ATTEMPTS = 3
"""Sandboxes that are tried for a program, where the one before was lost."""


class SandboxPool:
    """Judges programs on ``workers`` threads, and keeps as many sandboxes ready.

    The threads live until ``close``, and no sandbox outlives its thread: whatever ends this process ends them all.
    """

    def __init__(self, launcher: Launcher, workers: int) -> None:
        self._launcher = launcher
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="sandbox")
        self._ready: queue.SimpleQueue[Sandbox] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._living: set[Sandbox] = set()
        self._closed = False
        self._starts = [self._threads.submit(self._prepare) for _ in range(workers)]

    def check(self) -> None:
        """Wait until the first sandboxes are ready. Raises UnavailableError where they cannot be started."""
        for start in self._starts:
            start.result()
        sandbox = self._take()
        self._ready.put(sandbox)

    def submit(self, program: Program, *, tolerance: float = 0.0, every_test: bool = False) -> Future[Verdict]:
        """Judge a program on one of the threads; see ``judge_program``. Want of a sandbox raises nothing: it is the
        outcome ``infrastructure``."""
        return self._threads.submit(self._judge, program, tolerance, every_test)

    def close(self) -> None:
        """Kill every sandbox and end the threads; what has not been judged is cancelled. Harmless when done twice."""
        with self._lock:
            self._closed = True
            living = list(self._living)
        # A thread that waits for a program's answer sees the end of its sandbox, and clears up itself.
        for sandbox in living:
            sandbox.stop()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for sandbox in list(self._living):
            self._end(sandbox)

    def _judge(self, program: Program, tolerance: float, every_test: bool) -> Verdict:
        verdict = Verdict(ProgramOutcome.INFRASTRUCTURE)
        seconds = self._launcher.limits.seconds
        for _ in range(_ATTEMPTS):
            try:
                sandbox = self._take()
            except UnavailableError as error:
                verdict = Verdict(ProgramOutcome.INFRASTRUCTURE, reason=str(error))
                continue
            # The next one starts while this one judges.
            with suppress(UnavailableError):
                self._prepare()
            try:
                verdict = judge_program(sandbox, program, seconds, tolerance=tolerance, every_test=every_test)
            finally:
                self._end(sandbox)
            if verdict.outcome is not ProgramOutcome.INFRASTRUCTURE:
                break
        return verdict

    def _take(self) -> Sandbox:
        """A sandbox that waits for its program. Raises UnavailableError."""
        while True:
            try:
                sandbox = self._ready.get_nowait()
            except queue.Empty:
                sandbox = self._start()
            try:
                sandbox.wait_ready()
            except UnavailableError:
                self._end(sandbox)
                raise
            if sandbox.alive:
                return sandbox
            self._end(sandbox)

    def _prepare(self) -> None:
        self._ready.put(self._start())

    def _start(self) -> Sandbox:
        # Under the lock, so that none can start behind the back of close.
        with self._lock:
            if self._closed:
                raise UnavailableError("its pool is closed")
            sandbox = Sandbox(self._launcher)
            self._living.add(sandbox)
        return sandbox

    def _end(self, sandbox: Sandbox) -> None:
        sandbox.kill()
        with self._lock:
            self._living.discard(sandbox)
