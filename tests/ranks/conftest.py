"""A launcher of ranks that lives as long as the tests do, so that torch is loaded once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Launched:
    """Exit codes by rank (a signal is negative), what was written on standard error, and seconds."""

    codes: list[int]
    errors: str
    seconds: float


class Launch(Protocol):
    """Runs a scenario on so many ranks; unless ``fails``, all must end well."""

    def __call__(self, scenario: str, world: int, fails: bool = False, **options: Any) -> Launched: ...


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    folder = tmp_path_factory.mktemp("launcher")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": path}
    command = [sys.executable, "-m", "tests.ranks.launcher", str(folder)]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

        def run(scenario: str, world: int, fails: bool = False, **options: Any) -> Launched:
            request = {"scenario": scenario, "world": world, "options": options}
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            launched = Launched(**json.loads(process.stdout.readline()))
            assert fails == any(launched.codes), launched.errors[-3000:]
            return launched

        yield run
        process.stdin.close()
        process.wait()
