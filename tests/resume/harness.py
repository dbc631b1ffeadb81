"""Runs a recipe again and again in forked processes, each killed with SIGKILL somewhere, until one reaches its end.

A process of its own: ``python harness.py KIND OUT KILLS SEED``. Heavy imports happen once, before the forks, and the
parent never computes, so that a fork is safe. Half of the kills come at a random time, half at a random write: before
or after some fsync, rename or SQL commit of the run.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import loopwise.stages.control_run  # noqa: F401  # loads everything a child needs
from loopwise.config.reading import parse_recipe
from loopwise.config.recipes import COMMANDS, Recipe
from loopwise.runs.journal import Journal
from loopwise.stages.finetune import tune
from loopwise.stages.improve import improve
from loopwise.stages.pretrain import pretrain

REWARD = """
def digits_right(completions, answer, **columns):
    return [sum(a == b for a, b in zip(c, t)) / 4 for c, t in zip(completions, answer)]
"""
TINY_STEPS = {"batch_size": 8, "optimizer": {"name": "muon", "lr": 3e-3}}
RUNTIME = {"threads": 1, "checkpoint_steps": 3, "generate_batch": 24}
DATA = {"task": "addition", "labelled": 20, "dev": 30, "test": 20}


STAGES = {"pretrain": pretrain, "tune": tune, "improve": improve}


def recipe(kind: str, folder: Path) -> Recipe:
    """A run of a second or two with several rounds, units, mid-round checkpoints, a gate and a file reward."""
    return parse_recipe(COMMANDS[kind], content(kind, folder))  # type: ignore[type-var]


def content(kind: str, folder: Path) -> dict[str, object]:
    """The keys of that recipe; pretraining has two sources, dropout and a tokenizer trained on them."""
    if kind == "pretrain":
        for name in ("sums", "names"):
            lines = [f"{name} {number} and {number * 7 % 10}\n" * (1 + number % 4) for number in range(80)]
            (folder / f"{name}.txt").write_text("\n".join(lines))
        sources = [{"path": str(folder / f"{name}.txt"), "split_on": "\n\n"} for name in ("sums", "names")]
        return {
            "model": {"create": "gpt2", "depth": 1, "width": 32, "context": 32, "dropout": 0.2, "tokenizer": "char"},
            "data": {"train": [{**sources[0], "weight": 3}, sources[1]], "dev": 0.2, "test": 0.1},
            "rounds": 3,
            "update": {"steps": 8, **TINY_STEPS},
            "prompts": ["sums 7", ""],
            "sampling": {"max_tokens": 5},
            "runtime": RUNTIME,
        }
    if kind == "tune":
        return {
            "model": {"create": "demo"},
            "data": DATA,
            "rounds": 3,
            "update": {"method": "sft", "steps": 8, **TINY_STEPS},
            "runtime": RUNTIME,
        }
    reward = folder / "reward.py"
    reward.write_text(REWARD)
    return {
        "model": {"create": "demo"},
        "data": DATA,
        "rewards": [{"use": f"{reward}:digits_right"}, {"use": "exact_match", "weight": 0.5}],
        "rounds": 3,
        "problems": 12,
        "samples": 4,
        "sampling": {"max_tokens": 5},
        "controls": ["labelled"],
        "update": {"method": "rft", "steps": 7, "threshold": 0.2, **TINY_STEPS},
        "runtime": RUNTIME,
    }


def attempt(kind: str, out: Path, kill: tuple[str, float] | None) -> bool:
    """Fork, run or resume, kill as told. True when the run reached its end."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            if kill and kill[0] == "write":
                _kill_at_write(int(kill[1]))
            STAGES[kind](recipe(kind, out.parent), out, resume=started(out))  # type: ignore[operator]
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    if kill and kill[0] == "time":
        time.sleep(kill[1])
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status) != 0:
        sys.exit(f"run failed with {os.WEXITSTATUS(status)}, not killed")
    return True


def started(out: Path) -> bool:
    """Whether there is a journal that names the run: before that, a killed run left nothing to resume."""
    if not (out / "journal.db").exists():
        _clear(out)
        return False
    with Journal.open(out / "journal.db", create=True) as journal:
        known = bool(journal.runs())
    if not known:
        _clear(out)
    return known


def _clear(out: Path) -> None:
    import shutil

    shutil.rmtree(out, ignore_errors=True)


def _kill_at_write(number: int) -> None:
    """Arrange for this process to be killed around its ``number``-th write to disk."""
    import sqlalchemy
    from sqlalchemy.engine import Engine

    count = 0

    def tick() -> None:
        nonlocal count
        count += 1
        if count >= number:
            os.kill(os.getpid(), signal.SIGKILL)

    for name in ("fsync", "rename", "replace"):
        original = getattr(os, name)

        def patched(*args: object, _original: object = original, **kwargs: object) -> object:
            tick()
            result = _original(*args, **kwargs)  # type: ignore[operator]
            tick()
            return result

        setattr(os, name, patched)
    sqlalchemy.event.listen(Engine, "commit", lambda connection: tick())


def main() -> None:
    """Kill and resume; print as JSON how many kills landed, and where."""
    kind, out, kills, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    began = time.monotonic()
    assert attempt(kind, out / "whole", None)
    whole = time.monotonic() - began
    chance = random.Random(seed)
    landed = {"time": 0, "write": 0}
    resumed = 0
    run = 0
    while sum(landed.values()) < kills:
        target = out / f"killed-{run}"
        for number in range(1000):
            way = ("time", "write")[(run + number) % 2]
            after = chance.uniform(0.02, 0.7 * whole) if way == "time" else chance.randint(1, 120)
            done = attempt(kind, target, (way, after) if sum(landed.values()) < kills else None)
            if done:
                break
            landed[way] += 1
            resumed += number > 0
        run += 1
    print(json.dumps({"runs": run, "kills": landed, "killed_again": resumed, "whole_seconds": whole}))


if __name__ == "__main__":
    main()
