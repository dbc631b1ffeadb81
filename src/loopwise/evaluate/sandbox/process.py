"""One sandbox: started, asked line by line, and always killed. It serves one program."""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import subprocess
import time
from contextlib import suppress
from typing import Any

from loopwise.evaluate.sandbox.launching import INSTALL_HINT, Launcher, UnavailableError
from loopwise.evaluate.sandbox.limits import MOST_FILES, MOST_OUTPUT

START_LIMIT = 30.0
"""Seconds a sandbox may take to start, on a machine that is busy."""
_MOST_LINE = 2 * MOST_OUTPUT + 4096
"""Bytes an answer may have: more than an honest one needs, whose text JSON writes longer."""
_CHUNK = 1 << 16
_END_LIMIT = 2.0
_LOOK = 0.02
"""Seconds between two looks at how many files a program has made: bubblewrap can limit their bytes alone."""
_SHOWN_ERROR = 500


class ProgramError(Exception):
    """The program raised: its own words, which the sandbox passed on. It can be asked for the next test."""


class EndedError(Exception):
    """The program's process is gone. Its words say how, as of whom: "was ended by SIGSEGV"."""


class ForgedError(Exception):
    """What came out is no answer to what was asked: the program wrote it past our side of the sandbox."""


class LostError(Exception):
    """The sandbox itself is gone, by no deed of the program."""


class Sandbox:
    """A started sandbox. Start it on a thread that outlives it: Linux kills it when that thread ends.

    Raises UnavailableError where it cannot be started.
    """

    def __init__(self, launcher: Launcher) -> None:
        not_ours: list[int] = []
        try:
            not_ours += [*os.pipe(), *os.pipe()]
            filter_out, filter_in, told_out, told_in = not_ours
            os.write(filter_in, launcher.filter)
            # Closed before the start: the filter is read to the end of its pipe.
            not_ours.remove(filter_in)
            os.close(filter_in)
            self._process = subprocess.Popen(
                launcher.arguments(filter_out, told_in),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(filter_out, told_in),
                env={},
                cwd="/",
                bufsize=0,
                start_new_session=True,
            )
            not_ours.remove(told_out)
        except OSError as error:
            raise UnavailableError(f"bwrap cannot be run: {error}. {INSTALL_HINT}.") from None
        finally:
            for descriptor in not_ours:
                os.close(descriptor)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._requests, False)
        self._told: int | None = told_out
        self._first_inside: int | None = None
        self._folder: int | None = None
        self._unread = bytearray()
        self._ready = False

    @property
    def pid(self) -> int:
        """The process id of bwrap, outside."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it waits for its program. Between start and program it says nothing more, so whatever can be read
        is its end."""
        return not _within(self._answers, select.POLLIN, time.monotonic())

    def wait_ready(self, limit: float = START_LIMIT) -> None:
        """Return when it has given up its rights and waits for a program. Raises UnavailableError if it never does."""
        if self._ready:
            return
        try:
            self._ready = json.loads(self._line(time.monotonic() + limit)) == {"ready": True}
        except TimeoutError:
            raise UnavailableError(f"a sandbox did not start within {limit:g} s. Is the machine overloaded?") from None
        except (EndedError, LostError, ForgedError, ValueError):
            self._ready = False
        if self._ready:
            self._find_first_inside()
        else:
            raise UnavailableError(f"bwrap cannot start a sandbox here: {self._complaint()}")

    def ask(self, request: dict[str, Any], deadline: float) -> Any:
        """What the program makes of a request.

        ``deadline`` is a time of ``time.monotonic``. Raises ProgramError, EndedError, ForgedError, LostError, and
        TimeoutError when the deadline has passed.
        """
        # The program can read this word, but not before the question is asked: no answer can be laid up.
        call = secrets.token_hex(8)
        self._send(json.dumps({**request, "call": call}).encode() + b"\n", deadline)
        line = self._line(deadline)
        try:
            answer = json.loads(line.decode("utf-8", "surrogatepass"))
            found, content = answer["call"], {key: answer[key] for key in answer if key != "call"}
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ForgedError("wrote something else in place of an answer") from None
        if found != call:
            raise ForgedError("answered out of turn")
        match content:
            case {"output": output}:
                return output
            case {"error": str(error)}:
                raise ProgramError(error.encode("utf-8", "replace").decode())
        raise ForgedError("wrote something else in place of an answer")

    def stop(self) -> None:
        """End it, from whatever thread; the one that asks it something is told so, and has to ``kill`` it still."""
        # The group: killed alone while it starts, bwrap can leave behind a child that waits for it for ever.
        if self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def kill(self) -> None:
        """End it with everything in it, and wait until it is gone. Harmless when done twice."""
        if self._first_inside is not None:
            # All others inside die with it, and bwrap, left alive, collects it: where nobody else does (in a container
            # whose first process is ours) it would stay as a zombie, one for each program.
            with suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(self._first_inside, signal.SIGKILL)
            _within(self._first_inside, select.POLLIN, time.monotonic() + _END_LIMIT)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_LIMIT)
        self.stop()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_LIMIT)
        for descriptor in (self._told, self._first_inside, self._folder):
            if descriptor is not None:
                os.close(descriptor)
        self._told = self._first_inside = self._folder = None
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def _find_first_inside(self) -> None:
        """Hold on to the first process inside, by a descriptor that can never come to mean another, and to its /tmp."""
        assert self._told is not None
        try:
            first = json.loads(os.read(self._told, _CHUNK))["child-pid"]
            with suppress(OSError):
                self._first_inside = os.pidfd_open(first)
            self._folder = os.open(f"/proc/{first}/root/tmp", os.O_PATH | os.O_DIRECTORY)
        except (ValueError, KeyError, ProcessLookupError, FileNotFoundError):
            return  # it has ended since, and whoever asks it something is told so
        except OSError as error:
            raise UnavailableError(
                f"the files in a sandbox cannot be counted: {error}. Let this user read its own processes in /proc."
            ) from None

    def _within(self, descriptor: int, event: int, deadline: float) -> bool:
        """As the function. Raises EndedError where the program has more files than it may."""
        while True:
            if self._folder is not None:
                count = os.fstatvfs(self._folder)
                # The folder itself is one.
                if count.f_files - count.f_ffree - 1 > MOST_FILES:
                    raise EndedError(f"was ended for more than {MOST_FILES} files in /tmp")
            if _within(descriptor, event, min(deadline, time.monotonic() + _LOOK)):
                return True
            if time.monotonic() >= deadline:
                return False

    def _send(self, message: bytes, deadline: float) -> None:
        rest = memoryview(message)
        try:
            while rest:
                if not self._within(self._requests, select.POLLOUT, deadline):
                    raise TimeoutError
                rest = rest[os.write(self._requests, rest[:_CHUNK]) :]
        except BrokenPipeError:
            raise self._ended() from None

    def _line(self, deadline: float) -> bytes:
        start = 0
        while (end := self._unread.find(b"\n", start)) < 0:
            start = len(self._unread)
            if start > _MOST_LINE:
                raise ForgedError(f"wrote more than {_MOST_LINE} bytes in place of an answer")
            if not self._within(self._answers, select.POLLIN, deadline):
                raise TimeoutError
            part = os.read(self._answers, _CHUNK)
            if not part:
                raise self._ended()
            self._unread += part
        line = bytes(self._unread[:end])
        del self._unread[: end + 1]
        return line

    def _ended(self) -> EndedError | LostError:
        """How it ended. Only somebody outside can end bwrap itself by a signal; a program ends at most its own process,
        of which bwrap then reports the end."""
        try:
            status = self._process.wait(_END_LIMIT)
        except subprocess.TimeoutExpired:
            return EndedError("closed the pipe of its answers")
        if status < 0:
            return LostError(f"bwrap was ended by {signal.Signals(-status).name}")
        if status > 128 and status - 128 in set(signal.Signals):
            return EndedError(f"was ended by {signal.Signals(status - 128).name}")
        return EndedError(f"ended itself with exit status {status}")

    def _complaint(self) -> str:
        """What bwrap said before it ended. Nothing of a program's: none has run."""
        self.stop()
        self._process.wait()
        assert self._process.stderr is not None
        words = self._process.stderr.read().decode("utf-8", "replace").strip()
        return words[-_SHOWN_ERROR:] or f"it ended with status {self._process.returncode}"


def _within(descriptor: int, event: int, deadline: float) -> bool:
    """Whether the descriptor is ready for ``event``, or its other end closed, before the deadline."""
    poll = select.poll()
    poll.register(descriptor, event)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
