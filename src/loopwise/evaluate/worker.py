"""The child process that runs one reward from a user's file or module: ``python -m loopwise.evaluate.worker IN OUT``.

It reads requests from file descriptor IN and writes answers to OUT, each a length (8 bytes, big-endian) and JSON, so
that what the user's code prints never meets the protocol. It dies with its parent. Imports are kept few: it starts
anew after every time-out.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import signal
import struct
import sys
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path
from typing import Any

from loopwise.evaluate.contract import Batch, BoundReward, CallError, Outcome, classified, plain
from loopwise.user_code import import_file

HEADER = struct.Struct(">Q")
RULE_MEMORY = 4 << 30
"""Bytes of address space that a built-in rule's process may take. Rewards of the user, who may load models, have no
limit."""
_PR_SET_PDEATHSIG = 1


def frame(message: dict[str, Any]) -> bytes:
    """Encode a message. Arrays become lists; raises TypeError on anything else that JSON cannot hold."""
    body = json.dumps(message, default=plain).encode()
    return HEADER.pack(len(body)) + body


class Worker:
    """Answers requests: ``load`` once, then ``call`` any number of times."""

    def __init__(self) -> None:
        self._reward: BoundReward | None = None
        self._runner: Any = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request; a failure of the user's code is an answer too."""
        try:
            if "load" in request:
                self._reward = _load(**request["load"])
                accepts, requires = self._reward.accepts, self._reward.requires
                return {"accepts": None if accepts is None else sorted(accepts), "requires": sorted(requires)}
            return vars(self._call(Batch(**request["call"])))
        except CallError as failure:
            return {"failure": {"reason": failure.reason, "mend": failure.mend, "index": failure.index}}

    def _call(self, batch: Batch) -> Outcome:
        assert self._reward is not None
        outcome = Outcome()
        with classified(self._reward.file):
            returned = self._reward.start(batch, outcome)
            if inspect.isawaitable(returned):
                returned = self._wait(returned)
            self._reward.take(returned, len(batch), outcome)
        return outcome

    def _wait(self, awaitable: Awaitable[Any]) -> Any:
        """Run async code on one event loop for the worker's life: clients kept between calls stay bound to it."""
        import asyncio

        async def wait() -> Any:
            return await awaitable

        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(wait())


def main() -> None:
    """Serve requests until the parent closes its end."""
    requests, answers = int(sys.argv[1]), int(sys.argv[2])
    _die_with_parent()
    os.dup2(2, 1)
    for descriptor in (requests, answers):
        os.set_inheritable(descriptor, False)
    worker = Worker()
    with os.fdopen(requests, "rb") as source, os.fdopen(answers, "wb") as sink:
        while header := source.read(HEADER.size):
            answer = worker.answer(json.loads(source.read(HEADER.unpack(header)[0])))
            sys.stdout.flush()
            sink.write(frame(answer))
            sink.flush()


def _load(
    kind: str,
    source: str,
    function: str,
    path: list[str],
    options: dict[str, Any] | None = None,
    words: bool = False,
) -> BoundReward:
    """Import the function: ``kind`` is file, module or rule; ``path`` is the parent's import path; ``words`` says that
    it is a critic."""
    sys.path.extend(entry for entry in path if entry not in sys.path)
    with classified(source):
        if kind == "rule":
            _limit_memory()
            from loopwise.evaluate.rules import RULES

            return BoundReward.of(RULES[source].make(options or {}))
        module = _import_file(source) if kind == "file" else _import_module(source)
        found = getattr(module, function, None)
        if not callable(found):
            names = [n for n, v in vars(module).items() if inspect.isfunction(v) and not n.startswith("_")]
            raise CallError(f'{source} has no function "{function}"', f"Its functions: {', '.join(names) or 'none'}.")
        return BoundReward.of(found, getattr(module, "__file__", None), words=words)


def _limit_memory() -> None:
    """Hold this process to RULE_MEMORY where the system can: what a model wrote may ask a scorer for more."""
    import resource  # no module of it on Windows

    # Each thread of a numerical library takes address space, and no rule needs a second one.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    known = [limit for limit in (soft, hard, RULE_MEMORY) if limit != resource.RLIM_INFINITY]
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (min(known), hard))


def _import_file(file: str) -> Any:
    path = Path(file).resolve()
    if path.suffix != ".py":
        raise CallError(f"{file} is no Python file", "Name a file that ends in .py.")
    sys.path.insert(0, str(path.parent))
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_reward"
    return import_file(path, name)


def _import_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        mend = "Start from the folder that holds it, install it, or write path/to/file.py:function."
        raise CallError(f'there is no module "{error.name}"', mend) from None


def _die_with_parent() -> None:
    """Ask Linux to kill this process when the thread that started it ends; elsewhere end of input must do."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    main()
