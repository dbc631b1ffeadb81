"""Supervised fine-tuning on rows of 16 to 512 tokens: ``loopwise tune`` beside TRL's SFTTrainer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import shape, steps, trl_side
from benchmarks.gauges import StepMeter
from benchmarks.harness import Benchmark, Rival

SHORTEST, LONGEST, BATCH = 16, 512, 32
LEAST_PROMPT = 6


def make_rows(count: int) -> list[steps.Row]:
    """Rows whose lengths are uniform on a logarithmic scale; a quarter of each is its prompt."""
    ratios = shape.generator("lengths").uniform(size=count)
    lengths = [round(SHORTEST * (LONGEST / SHORTEST) ** ratio) for ratio in ratios.tolist()]
    sizes = [max(LEAST_PROMPT, length // 4) for length in lengths]
    return [
        {"prompt": shape.prompt(place, size), "completion": shape.text(length - size, "completion", place)}
        for place, (length, size) in enumerate(zip(lengths, sizes, strict=True))
    ]


def tokens(row: steps.Row) -> int:
    """A row's tokens: a character each."""
    return len(row["prompt"]) + len(row["completion"])


BENCHMARK = Benchmark(
    (),
    steps.Contest(
        title=f"## Fine-tuning on ragged rows: {BATCH} rows of {SHORTEST} to {LONGEST} tokens a step",
        ours=Rival("loopwise tune", "benchmarks.sft:ours", {}),
        trl=Rival("TRL's SFTTrainer", "benchmarks.sft:trl", {}),
        make=make_rows,
        tokens=tokens,
        batch=BATCH,
        notes="Learned are the completions, three quarters of a row. TRL pads a batch to its longest row; rows come to "
        "it as token ids. Its packing would need another attention kernel to keep rows apart.",
    ).run,
)


def ours(options: Mapping[str, Any]) -> dict[str, float | None]:
    """Some steps of ``loopwise tune``."""
    return steps.tuned(options, {"method": "sft", "end_of_text": False})


def trl(options: Mapping[str, Any]) -> dict[str, float | None]:
    """Some steps of TRL's trainer on the same rows."""
    library = trl_side.load_trl(options["threads"])
    meter = StepMeter()
    model, tokenizer = trl_side.load_model(options["model"])
    lines = Path(options["rows"]).read_text(encoding="utf-8").splitlines()
    rows = steps.in_our_order(list(map(json.loads, lines)), options)
    trainer = library.SFTTrainer(
        model=model,
        args=library.SFTConfig(
            **trl_side.arguments(
                options,
                options["batch"],
                train_sampling_strategy="sequential",
                completion_only_loss=True,
                max_length=LONGEST,
            )
        ),
        train_dataset=trl_side.dataset(_encoded(row, tokenizer) for row in rows),
        processing_class=tokenizer,
    )
    first = trl_side.measure(trainer, meter)
    return {**steps.figures(meter), **meter.memory, **first}


def _encoded(row: steps.Row, tokenizer: Any) -> dict[str, list[int]]:
    prompt, completion = tokenizer([row["prompt"], row["completion"]])["input_ids"]
    return {"input_ids": prompt + completion, "completion_mask": [0] * len(prompt) + [1] * len(completion)}
