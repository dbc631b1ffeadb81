"""Direct preference optimisation on given pairs: ``loopwise tune`` beside TRL's DPOTrainer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import shape, steps, trl_side
from benchmarks.gauges import StepMeter
from benchmarks.harness import Benchmark, Rival

PROMPT, SHORTEST, LONGEST, BATCH, BETA = 100, 32, 64, 16, 0.1


def make_rows(count: int) -> list[steps.Row]:
    """Pairs with prompts of about 100 tokens."""
    low, high = (PROMPT - 10, SHORTEST, SHORTEST), (PROMPT + 10, LONGEST, LONGEST)
    sizes = shape.generator("sizes").integers(low, high, (count, 3), endpoint=True)
    return [
        {
            "prompt": shape.prompt(place, prompt),
            "chosen": shape.text(chosen, "chosen", place),
            "rejected": shape.text(rejected, "rejected", place),
        }
        for place, (prompt, chosen, rejected) in enumerate(sizes.tolist())
    ]


def tokens(row: steps.Row) -> int:
    """A pair's tokens, a character each, and end-of-text twice; the prompt counts once."""
    return len(row["prompt"]) + len(row["chosen"]) + len(row["rejected"]) + 2


BENCHMARK = Benchmark(
    (),
    steps.Contest(
        title=f"## DPO: {BATCH} pairs a step, prompts of about {PROMPT} tokens, completions of {SHORTEST} to {LONGEST}",
        ours=Rival("loopwise tune", "benchmarks.dpo:ours", {}),
        trl=Rival("TRL's DPOTrainer", "benchmarks.dpo:trl", {}),
        make=make_rows,
        tokens=tokens,
        batch=BATCH,
        notes="Both sides let the reference model (the base) read every batch; the first loss is log 2, because the "
        "model is its own reference then.",
    ).run,
)


def ours(options: Mapping[str, Any]) -> dict[str, float | None]:
    """Some steps of ``loopwise tune``."""
    return steps.tuned(options, {"method": "dpo", "beta": BETA})


def trl(options: Mapping[str, Any]) -> dict[str, float | None]:
    """Some steps of TRL's trainer on the same pairs."""
    library = trl_side.load_trl(options["threads"])
    meter = StepMeter()
    model, tokenizer = trl_side.load_model(options["model"])
    lines = Path(options["rows"]).read_text(encoding="utf-8").splitlines()
    trainer = library.DPOTrainer(
        model=model,
        args=library.DPOConfig(
            **trl_side.arguments(
                options, options["batch"], train_sampling_strategy="sequential", beta=BETA, max_length=None
            )
        ),
        train_dataset=trl_side.dataset(steps.in_our_order(list(map(json.loads, lines)), options)),
        processing_class=tokenizer,
    )
    first = trl_side.measure(trainer, meter)
    return {**steps.figures(meter), **meter.memory, **first}
