"""Our recipes run for their steps: what a benchmark adds to a recipe, watches, and reads from the run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gauges import StepMeter
from loopwise.observer import Observer

METRICS = "metrics.jsonl"


class StepObserver(Observer):
    """Tells the meter of each step."""

    def __init__(self, meter: StepMeter) -> None:
        self._meter = meter

    def progress(self, what: str, done: int, total: int) -> None:
        if what == "steps":
            self._meter.mark()


def recipe(options: Mapping[str, Any], train: Path, **own: Any) -> dict[str, Any]:
    """A recipe on the rows of ``train``, with nothing held out and one round of ``own`` update.

    Of ``options``: ``model``, ``dtype``, ``threads``, ``repeat`` (the seed).
    """
    return {
        "model": options["model"],
        "data": {"train": str(train), "dev": 0, "test": 0},
        "rounds": 1,
        "seed": options["repeat"],
        "runtime": {"threads": options["threads"], "dtype": options["dtype"]},
        **own,
    }


def first_step(out: Path) -> dict[str, float | None]:
    """The first step's loss and gradient norm (not clipped) of the run in ``out``."""
    with (out / METRICS).open(encoding="utf-8") as lines:
        first = next(line for line in map(json.loads, lines) if line["kind"] == "step")
    return {"first_loss": first["loss"], "first_grad_norm": first["grad_norm"]}
