"""The parent's side of a reward worker: start it, ask it, kill it when its time is up, start it again."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from loopwise.evaluate.contract import FIXED_ARGUMENTS, Batch, CallError, Outcome, missing_column
from loopwise.evaluate.worker import HEADER, frame

START_LIMIT = 60.0
"""Seconds a worker may take to start and to import the user's code."""
_GRACE = 0.5
_CHUNK = 1 << 20


@dataclass(frozen=True)
class _Process:
    """A running worker with our ends of its two pipes."""

    popen: subprocess.Popen[bytes]
    requests: int
    answers: int


class WorkerReward:
    """A reward run in a killable process of its own, kept alive between calls.

    ``target`` holds ``kind`` (file, module or rule), ``source``, ``function`` and a rule's ``options``;
    ``time_limit`` is seconds a call. All talk with the process happens on one thread of this object, which lives
    until ``close``: Linux kills the process when the thread that started it ends, and calls queue up, never mix.
    """

    def __init__(self, target: Mapping[str, Any], time_limit: float) -> None:
        self._target = dict(target)
        self._time_limit = time_limit
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reward-worker")
        self._lock = threading.Lock()
        self._process: _Process | None = None
        self._accepts: frozenset[str] | None = None
        self._requires: frozenset[str] = frozenset()
        self._closed = False

    async def __call__(self, batch: Batch) -> Outcome:
        """Call the reward. Raises CallError; where the worker was lost by it, the next call starts a new one."""
        call = asyncio.wrap_future(self._thread.submit(self._call, batch))
        try:
            return await call
        except asyncio.CancelledError:
            self._kill()
            raise

    def close(self) -> None:
        """End process and thread; a call under way is cut off. Harmless when done twice."""
        if self._closed:
            return
        self._closed = True
        stopped = self._thread.submit(self._stop, _GRACE)
        try:
            stopped.result(timeout=2 * _GRACE)
        except TimeoutError:
            self._kill()
        self._thread.shutdown(wait=True)

    def _call(self, batch: Batch) -> Outcome:
        process = self._process
        if process is None or _readable(process.answers):
            process = self._start()
        missing = sorted(self._requires - batch.columns.keys() - FIXED_ARGUMENTS)
        if missing:
            raise missing_column(missing[0], batch.columns)
        columns = {k: v for k, v in batch.columns.items() if self._accepts is None or k in self._accepts}
        return Outcome(**self._ask(process, {"call": {**vars(batch), "columns": columns}}, self._time_limit))

    def _start(self) -> _Process:
        self._stop()
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        try:
            command = [sys.executable, "-m", "loopwise.evaluate.worker", str(theirs_in), str(theirs_out)]
            # A session of its own: Ctrl-C reaches only us, and a kill reaches whatever the reward started.
            popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=(theirs_in, theirs_out), start_new_session=True
            )
        except OSError:
            os.close(ours_out)
            os.close(ours_in)
            raise
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        os.set_blocking(ours_out, False)
        process = _Process(popen, ours_out, ours_in)
        with self._lock:
            self._process = process
        try:
            signature = self._ask(process, {"load": {**self._target, "path": list(map(str, sys.path))}}, START_LIMIT)
        except CallError as failure:
            self._stop()
            raise CallError(f"it cannot be loaded: {failure.reason}", failure.mend, lost_worker=True) from None
        self._accepts = None if signature["accepts"] is None else frozenset(signature["accepts"])
        self._requires = frozenset(signature["requires"])
        return process

    def _ask(self, process: _Process, request: dict[str, Any], limit: float) -> dict[str, Any]:
        """Send a request and await its answer. Raises CallError, and stops the worker if it hangs or dies."""
        deadline = time.monotonic() + limit
        try:
            message = frame(request)
        except (TypeError, ValueError) as error:
            raise _unsendable(request, error) from None
        try:
            _write(process.requests, message, deadline)
            (length,) = HEADER.unpack(_read(process.answers, HEADER.size, deadline))
            answer: dict[str, Any] = json.loads(_read(process.answers, length, deadline))
        except TimeoutError:
            self._stop()
            mend = "Make it faster, give it fewer samples a call, or raise time_limit."
            raise CallError(f"it did not return within {limit:g} s", mend, lost_worker=True) from None
        except (OSError, EOFError, ValueError):
            status = self._stop(_GRACE)
            mend = "Keep the reward from ending its process (os._exit, a crash, too little memory)."
            raise CallError(f"its process ended ({status})", mend, lost_worker=True) from None
        if "failure" in answer:
            raise CallError(**answer["failure"])
        return answer

    def _stop(self, grace: float = 0.0) -> str:
        """Kill the process group, reap the worker, close the pipes; says how the worker ended."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return "not running"
        os.close(process.requests)
        if grace:
            # End of input lets it leave in peace; it is reaped only after the kill, so its id is not yet reused.
            with suppress(TimeoutError):
                _wait(process.answers, select.POLLIN, time.monotonic() + grace)
        _kill_group(process.popen.pid)
        code = process.popen.wait()
        os.close(process.answers)
        return f"exit status {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"

    def _kill(self) -> None:
        with self._lock:
            if self._process is not None:
                _kill_group(self._process.popen.pid)


def _unsendable(request: dict[str, Any], error: Exception) -> CallError:
    for column, values in request.get("call", {}).get("columns", {}).items():
        try:
            frame({"values": values})
        except (TypeError, ValueError) as cause:
            return CallError(
                f'column "{column}" holds {cause}, which cannot be handed to its process',
                "Store it as text or a number, or leave the column out.",
            )
    return CallError(f"its arguments hold {error}, which cannot be handed to its process", "Use text and numbers.")


def _kill_group(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _readable(descriptor: int) -> bool:
    """Whether something waits to be read; between calls that is only the end of the stream."""
    try:
        _wait(descriptor, select.POLLIN, time.monotonic())
    except TimeoutError:
        return False
    return True


def _wait(descriptor: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError


def _write(descriptor: int, message: bytes, deadline: float) -> None:
    rest = memoryview(message)
    while rest:
        _wait(descriptor, select.POLLOUT, deadline)
        rest = rest[os.write(descriptor, rest[:_CHUNK]) :]


def _read(descriptor: int, count: int, deadline: float) -> bytes:
    parts: list[bytes] = []
    while count:
        _wait(descriptor, select.POLLIN, deadline)
        part = os.read(descriptor, min(count, _CHUNK))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
