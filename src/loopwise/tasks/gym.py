"""Every generator of reasoning-gym (Stojanovski et al. 2025) as a task: ``reasoning_gym:NAME`` and its parameters.

Its own scorers judge (rule ``reasoning_gym``). Streams are kept disjoint by the text of the question.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import count
from typing import Any

from loopwise.config.blocks import RewardConfig
from loopwise.errors import ConfigError
from loopwise.runtime import seed_key
from loopwise.tasks.base import ProblemSource, Task
from loopwise.tasks.options import level_options
from loopwise.types import Problem

PREFIX = "reasoning_gym:"
BLOCK = 250
"""Problems drawn from a dataset before the next one is made, with another seed."""
MOST_SECONDS = 120
"""Time that one problem may take, the first of a process (which loads reasoning-gym) included."""
_GRACE = 0.2
MOST_FAILURES = 2 * BLOCK
"""Failures in a row after which a generator counts as unable to make a problem with its parameters."""


def gym_task(name: str, options: Mapping[str, Any]) -> Task:
    """The generator ``name`` with its parameters.

    Raises ConfigError: unknown names and parameters, and what reasoning-gym itself refuses.
    """
    return Task(
        levels={level: _source(name, own) for level, own in level_options(options).items()},
        reference_columns=("answer", "entry"),
        rewards=(RewardConfig(use="reasoning_gym"),),
    )


def _source(name: str, parameters: Mapping[str, Any]) -> ProblemSource:
    # As the process will see them: what YAML has and JSON has not (dates) becomes text.
    sent = json.loads(json.dumps(dict(parameters), default=str))
    _generators().ask(name, sent, seed=0, index=None)

    def problems(key: int) -> Iterator[Problem]:
        failures = 0
        for block in count():
            seed = seed_key("reasoning_gym", key, block) % 2**31
            for index in range(BLOCK):
                answer = _generators().ask(name, sent, seed, index)
                failures = failures + 1 if "failed" in answer else 0
                if failures > MOST_FAILURES:
                    raise ConfigError(
                        f'key "data.task_options": reasoning_gym:{name} made no problem in {MOST_FAILURES} attempts '
                        f"with {sent} ({answer['failed']}). Choose other parameters."
                    )
                if not failures:
                    columns = {"answer": answer["answer"], "entry": answer["entry"]}
                    yield Problem(f"{name}-{seed}-{index}", answer["question"], columns)

    return problems


class GymProcess:
    """A process that draws problems: started when first asked, and again when it was lost."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None

    def ask(self, name: str, parameters: Mapping[str, Any], seed: int, index: int | None) -> dict[str, Any]:
        """The problem ``index`` of the generator ``name`` (see gym_worker). Raises ConfigError."""
        request = {"name": name, "parameters": parameters, "seed": seed, "size": BLOCK, "index": index}
        line = ""
        try:
            line = self._exchange(json.dumps({**request, "seconds": MOST_SECONDS}))
        finally:
            if not line:  # cut off: an answer that comes late must not meet the next question
                code = self.close()
        if not line:
            slow = f"one problem took longer than {MOST_SECONDS} s"
            reason = slow if code == -signal.SIGALRM else f"its process ended (exit code {code})"
            raise ConfigError(
                f'key "data.task_options": {PREFIX}{name} with {dict(parameters)}: {reason}. Choose other parameters.'
            )
        answer: dict[str, Any] = json.loads(line)
        if "refused" in answer:
            raise ConfigError(answer["refused"])
        return answer

    def close(self) -> int | None:
        """End the process where there is one, and return its exit code."""
        child, self._child = self._child, None
        if child is None:
            return None
        # Closing its input flushes what it has not read: a process that is gone breaks the pipe.
        with contextlib.suppress(BrokenPipeError), child:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_GRACE)
            child.kill()
        return child.returncode

    def _exchange(self, request: str) -> str:
        child = self._child = self._child or _start()
        assert child.stdin is not None
        assert child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(request + "\n")
            child.stdin.flush()
        return child.stdout.readline()


@lru_cache(maxsize=1)
def _generators() -> GymProcess:
    """One process serves all tasks: loading reasoning-gym takes seconds."""
    process = GymProcess()
    atexit.register(process.close)
    return process


def _start() -> subprocess.Popen[str]:
    # A session of its own: Ctrl-C reaches only us, who end it.
    path = os.pathsep.join(map(os.path.abspath, sys.path))
    return subprocess.Popen(
        [sys.executable, "-m", "loopwise.tasks.gym_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0"},
        start_new_session=True,
    )
