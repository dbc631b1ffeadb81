"""Optimizer steps on given rows, ours beside TRL's: one table for each compute type, first-step losses in it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import our_side, shape, trl_side
from benchmarks.gauges import SAMPLED, STEP, TRAINED, StepMeter
from benchmarks.harness import Figure, Rival, Run, Section, Settings, as_content, run_alternating, table
from benchmarks.machine import dtypes, matmul_rival, peak
from loopwise.data.batches import batch_indices

STEPS, QUICK_STEPS = 6, 3
FIGURES = (
    Figure("step", "seconds a step", ".2f"),
    Figure("tokens_per_second", "tokens of rows/s", ".0f"),
    Figure("growth_mib", "peak memory over the loaded libraries, MiB", ".0f"),
    Figure("peak_mib", "in all, MiB", ".0f"),
    Figure("read", "tokens read a step", ".0f"),
    Figure("flop_use", "share of matmul peak", ".1%"),
    Figure("first_loss", "first step: loss", ".6f"),
    Figure("first_grad_norm", "its gradient norm", ".6f"),
)
NOTES = (
    "Seconds are the median over the steps of a process but the first. Both sides take the same rows in the same "
    "batches. Tokens of rows/s count prompts, but no padding; tokens read count padding, too, and what a reference "
    "model reads. Share of the matmul peak: 6 FLOPs for each weight of the blocks and token that is read with "
    "gradients, 2 without. TRL keeps activations (gradient_checkpointing off, which is quicker). AdamW is one."
)
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Contest:
    """What two rivals do. ``ours`` and ``trl`` are workers, ``tokens(row)`` counts a row's, ``batch`` rows make a step.

    ``make(rows)`` gives so many different rows.
    """

    title: str
    ours: Rival
    trl: Rival
    make: Callable[[int], list[Row]]
    tokens: Callable[[Row], int]
    batch: int
    notes: str

    def run(self, settings: Settings) -> Section:
        """Both sides for each compute type."""
        trl_side.check_trl()
        model = shape.QUICK if settings.quick else shape.FULL
        steps = QUICK_STEPS if settings.quick else STEPS
        rows = self.make(steps * self.batch)
        tokens = sum(map(self.tokens, rows)) / steps
        texts, content = [self.title], {}
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            path = str(shape.save_model(model, Path(folder) / "model", end_of_text=True))
            data = str(shape.write_rows(Path(folder) / "rows.jsonl", rows))
            for dtype in dtypes(settings):
                options = {"model": path, "rows": data, "dtype": dtype, "steps": steps, "batch": self.batch}
                sides = [Rival(side.name, side.worker, {**options, **side.options}) for side in (self.ours, self.trl)]
                *measured, machine = run_alternating(
                    [*sides, matmul_rival(quick=settings.quick, dtype=dtype)], settings.repeats, settings.threads
                )
                best = peak(machine)

                def shares(run: Run, best: float = best) -> Run:
                    step, trained, read = run["step"] or 1.0, run[TRAINED] or 0.0, run[SAMPLED] or 0.0
                    return {
                        **run,
                        "tokens_per_second": tokens / step,
                        "read": trained + read,
                        "flop_use": model.multiplied * (6 * trained + 2 * read) / step / best / 1e9,
                    }

                shown = [measurement.with_runs(shares) for measurement in measured]
                texts += [f"### {dtype}", table(shown, FIGURES, {}), f"Matmul peak in this run: {best:.0f} GFLOP/s."]
                content[dtype] = as_content(shown, FIGURES)
        notes = f"{self.notes} {NOTES}"
        return Section("\n\n".join([*texts, notes]), {**content, "notes": notes})


def tuned(options: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, float | None]:
    """Some steps of ``loopwise tune`` on the file ``rows`` with an ``update`` of ours."""
    from loopwise.config.reading import parse_recipe
    from loopwise.config.recipes import TuneRecipe
    from loopwise.stages.finetune import tune

    out = Path(options["folder"]) / "run"
    content = our_side.recipe(
        options,
        Path(options["rows"]),
        gate={"metric": "likelihood", "enabled": False},
        update={
            "steps": options["steps"],
            "batch_size": options["batch"],
            "optimizer": dict(trl_side.OPTIMIZER),
            **update,
        },
    )
    recipe = parse_recipe(TuneRecipe, content)
    meter = StepMeter()
    with meter.counting_tokens():
        tune(recipe, out, observer=our_side.StepObserver(meter))
    return {**figures(meter), **meter.memory, **our_side.first_step(out)}


def in_our_order(rows: Sequence[Row], options: Mapping[str, Any]) -> list[Row]:
    """The rows of each step as our recipe draws them by its seed, step after step."""
    places = [
        place
        for step in range(options["steps"])
        for place in batch_indices(len(rows), options["batch"], options["repeat"], step).tolist()
    ]
    return [rows[place] for place in places]


def figures(meter: StepMeter) -> dict[str, float | None]:
    """A step's medians: seconds, and tokens read with gradients and without."""
    return {key: meter.median(key) for key in (STEP, TRAINED, SAMPLED)}
