"""Models that know a little addition, to go on from: one for each repeat, by the shipped recipe and the repeat's seed.

The seed is that of the runs that go on from it, so that no held-out sum of theirs was ever learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import loopwise.recipes
from benchmarks.harness import Rival, Settings, run_alternating

RECIPE = Path(str(loopwise.recipes.__file__)).with_name("addition-base.yaml")
HELD_OUT = 1000
QUICK = ("update.steps=4", "update.optimizer.warmup_steps=2")


def warm_starts(out: Path, settings: Settings, count: int, overrides: Sequence[str] = ()) -> list[str]:
    """Train ``count`` models by ``addition-base.yaml`` with overrides, in folders below ``out``; where they lie."""
    options = {"out": str(out), "overrides": [*overrides, *(QUICK if settings.quick else ())]}
    run_alternating([Rival(f"warm start {out.name}", "benchmarks.warm_starts:train", options)], count, settings.threads)
    return [str(out / str(repeat) / "model") for repeat in range(count)]


def train(options: Mapping[str, Any]) -> dict[str, float | None]:
    """Run the recipe with the repeat's seed."""
    from loopwise.config.reading import load_recipe
    from loopwise.config.recipes import TuneRecipe
    from loopwise.stages.finetune import tune

    out = Path(options["out"])
    out.mkdir(parents=True, exist_ok=True)
    overrides = [*options["overrides"], f"seed={options['repeat']}", f"data.dev={HELD_OUT}", f"data.test={HELD_OUT}"]
    result = tune(load_recipe(TuneRecipe, RECIPE, overrides), out / str(options["repeat"]))
    return {"accuracy": result.summary["stages"]["tuned"]["test"]["accuracy"]}
