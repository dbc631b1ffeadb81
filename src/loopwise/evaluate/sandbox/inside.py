"""What runs inside a sandbox: gives up its rights, then runs one program and answers what it is asked.

A script of the standard library alone. Requests and answers are lines of JSON. The program runs in this process and can
change any of it, so nothing that is said here is trusted: it learns inputs and never what should come out, and whether
that is right is decided outside.
"""

from __future__ import annotations

import atexit
import builtins
import gc
import json
import os
import resource
import sys
from types import CodeType, ModuleType

TYPE_CHECKING = False  # typing takes longer to load than the rest
if TYPE_CHECKING:
    from typing import Any

PROGRAM = "program.py"
MOST_WORDS = 300
"""Characters of an error that are passed on."""


def main() -> None:
    """Serve one program until the other end closes."""
    settings = json.loads(sys.argv[1])
    with os.fdopen(os.dup(0), "rb") as requests, os.fdopen(os.dup(1), "wb", buffering=0) as answers:
        _silence()
        _give_up_rights(settings["user"])
        _limit(settings["limits"])
        sys.argv[:] = [PROGRAM]
        sys.path += settings["path"]
        # Left out with the module "site", and used by many programs.
        builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
        answers.write(b'{"ready": true}\n')
        program: Program | None = None
        for line in requests:
            request = json.loads(line)
            try:
                if program is None:
                    program, output = Program(request["source"], request["function"], settings["output"]), "null"
                else:
                    output = program.output(request["given"])
                answer = f'{{"call": "{request["call"]}", "output": {output}}}\n'
            except BaseException as error:  # whatever a program raises, SystemExit too, is an answer
                answer = f'{{"call": "{request["call"]}", "error": {json.dumps(_described(error))}}}\n'
            answers.write(answer.encode("utf-8", "surrogatepass"))


class Program:
    """One program: a ``function`` of it to be called, or (None) the whole of it to be run on standard input."""

    def __init__(self, source: str, function: str | None, most: int) -> None:
        self._code: CodeType = compile(source, PROGRAM, "exec", dont_inherit=True)
        self._most = most
        self._function: Any = None
        if function is not None:
            module = _module("solution")
            exec(self._code, module.__dict__)
            if not callable(module.__dict__.get(function)):
                raise NameError(f"there is no function {function}")
            self._function = module.__dict__[function]

    def output(self, given: Any) -> str:
        """What the program makes of ``given`` (the arguments, or standard input), as JSON."""
        if self._function is None:
            output = json.dumps(self._printed(given), ensure_ascii=False)
        else:
            output = json.dumps(self._function(*given), ensure_ascii=False)
        if len(output) > self._most:
            raise ValueError(f"its output has more than {self._most} characters")
        return output

    def _printed(self, text: str) -> str:
        standard_input, standard_output = _scratch_file(), _scratch_file()
        try:
            os.write(standard_input, text.encode("utf-8", "surrogatepass"))
            os.lseek(standard_input, 0, os.SEEK_SET)
            # Real files under the real numbers: programs read open(0) and write to descriptor 1 as well.
            os.dup2(standard_input, 0)
            os.dup2(standard_output, 1)
            sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
            sys.stdout = ours = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            self._run_whole()
            for stream in {ours, sys.stdout}:
                if not stream.closed:
                    stream.flush()
            size = os.fstat(standard_output).st_size
            if size > self._most:
                raise ValueError(f"it printed more than {self._most} bytes")
            return os.pread(standard_output, size, 0).decode("utf-8", "replace")
        finally:
            # A file that the program opened on 0 or 1 must not close that of the next test when it is cleared away.
            sys.stdin, sys.stdout = sys.__stdin__, sys.__stdout__
            sys.modules.pop("__main__", None)
            gc.collect()
            _silence()
            os.close(standard_input)
            os.close(standard_output)

    def _run_whole(self) -> None:
        try:
            exec(self._code, _module("__main__").__dict__)
        except SystemExit as end:
            if end.code not in (None, 0):
                raise
        if threading := sys.modules.get("threading"):
            for thread in threading.enumerate():
                if thread is not threading.current_thread() and not thread.daemon:
                    thread.join()
        # Programs that buffer their output themselves write it here.
        atexit._run_exitfuncs()


def _module(name: str) -> ModuleType:
    module = sys.modules[name] = ModuleType(name)
    return module


def _scratch_file() -> int:
    return os.open("/tmp", os.O_TMPFILE | os.O_RDWR)


def _silence() -> None:
    """Point standard input, output and error at nothing."""
    nothing = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    # A program may have closed one of the three, and then that is where nothing was opened.
    if nothing > 2:
        os.close(nothing)


def _give_up_rights(user: int | None) -> None:
    """Become ``user`` (None: we are nobody already), and with that lose every capability.

    Before that, leave the process group of bwrap: a program must not be able to signal it.
    """
    os.setsid()
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)


def _limit(limits: dict[str, int]) -> None:
    for name, most in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        # Nobody may raise a limit that the machine has set lower.
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def _described(error: BaseException) -> str:
    """The error's name, words and line of the program; its words are made by the program, and may fail."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == PROGRAM:
            line = trace.tb_lineno
        trace = trace.tb_next
    try:
        words = str(error)[:MOST_WORDS]
    except BaseException:
        words = ""
    return f"{type(error).__name__}: {words}" + (f" (line {line})" if line else "")


if __name__ == "__main__":
    main()
