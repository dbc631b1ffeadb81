"""Starts ranks as ``torchrun`` does, by forks of a process that has loaded everything heavy: ``launcher.py FOLDER``.

Reads lines of JSON, ``{"scenario": ..., "world": ..., "options": {...}}``, from standard input, runs each scenario of
scenarios.py on so many ranks, and answers with the exit codes, or 0 - signal, and what was written on standard error.
This process never computes, so that its forks are safe.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.fsdp
import torch.distributed.tensor  # noqa: F401
import transformers.models.gpt2.modeling_gpt2
import transformers.models.llama.modeling_llama  # noqa: F401  # what a child would load
from tests.ranks.scenarios import SCENARIOS


def child(rank: int, world: int, port: int, errors: Path, scenario: str, options: dict[str, Any]) -> None:
    """Be a rank until the scenario ends."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0")
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        SCENARIOS[scenario](**options)
    except SystemExit as error:
        os._exit(int(error.code or 0))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def launch(world: int, errors: Path, scenario: str, options: dict[str, Any]) -> list[int]:
    """Run a scenario on ``world`` ranks; like ``torchrun``, end the others when one fails."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True)
    running: dict[int, int] = {}
    for rank in range(world):
        process = os.fork()
        if process == 0:
            child(rank, world, store.port, errors, scenario, options)
        running[process] = rank
    codes = [0] * world
    ended_since: float | None = None
    while running:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process:
            code = os.waitstatus_to_exitcode(status)
            codes[running.pop(process)] = code
            if code and ended_since is None:
                ended_since = time.monotonic()
        # A moment for the others to end by themselves: what they say then is part of what is tested.
        elif ended_since is not None and time.monotonic() > ended_since + 5:
            for process in running:
                os.kill(process, signal.SIGTERM)
        else:
            time.sleep(0.005)
    return codes


def main() -> None:
    """Answer until standard input ends."""
    folder = Path(sys.argv[1])
    print("ready", flush=True)
    for number, line in enumerate(sys.stdin):
        asked = json.loads(line)
        errors = folder / f"errors-{number}"
        began = time.monotonic()
        codes = launch(asked["world"], errors, asked["scenario"], asked["options"])
        text = errors.read_text() if errors.exists() else ""
        print(json.dumps({"codes": codes, "errors": text, "seconds": time.monotonic() - began}), flush=True)


if __name__ == "__main__":
    main()
