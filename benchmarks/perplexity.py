"""Chinese poems: tokenizers x model shapes x the n-gram floor, as a table of perplexities on the same poems.

Each cell is ``loopwise pretrain`` on ``poems.yaml`` with overrides. The best round is chosen by the dev poems, all
figures are of the test poems, which no choice has seen; the floor is modified Kneser-Ney on the same tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import loopwise.recipes
from benchmarks.harness import (
    NOTHING,
    Benchmark,
    Figure,
    Measurement,
    Rival,
    Section,
    Settings,
    as_content,
    markdown,
    run_alternating,
)
from loopwise.config.reading import load_recipe
from loopwise.config.recipes import PretrainRecipe
from loopwise.stages.pretrain import FLOOR, pretrain

POEMS = "tang300.json"
RECIPE = Path(str(loopwise.recipes.__file__)).with_name("poems.yaml")
QUICK = ("rounds=2", "update.steps=2")
TOKENIZERS: Mapping[str, tuple[str, ...]] = {
    "BPE, 2048": ("model.tokenizer={kind: bpe, vocabulary: 2048}",),
    "characters": ("model.tokenizer=char",),
}
SHAPES: Mapping[str, tuple[str, ...]] = {"LSTM": ("model.create=lstm",), "Llama": ("model.create=llama",)}

HELD_OUT = (
    Figure("bits_per_byte", "bits per byte", ".3f"),
    Figure("perplexity", "perplexity a token", ".1f"),
    Figure("nats_per_token", "nats a token", ".3f"),
)
FIGURES = (
    *HELD_OUT,
    Figure("parameters_millions", "million parameters", ".2f"),
    Figure("best_round", "best round", ".0f"),
    Figure("minutes", "minutes"),
)
NOTES = (
    "Figures of the same test poems in every row (repeat i holds out others, by seed i); bits per byte compare across "
    "tokenizers, the other two do not. The round was chosen by the dev poems. Minutes are those of the whole process."
)


def run(settings: Settings) -> Section:
    """Every cell, and the floor of each tokenizer."""
    cells = [
        Rival(
            f"{tokenizer} / {shape}",
            "benchmarks.perplexity:cell",
            {
                "text": str(settings.data / POEMS),
                "overrides": [*TOKENIZERS[tokenizer], *SHAPES[shape], *(QUICK if settings.quick else ())],
            },
        )
        for tokenizer in TOKENIZERS
        for shape in SHAPES
    ]
    measured = [
        measurement.with_figure("minutes", lambda run: (run["process_seconds"] or 0.0) / 60)
        for measurement in run_alternating(cells, settings.repeats, settings.threads)
    ]
    rows = _rows({measurement.rival: measurement for measurement in measured})
    head = ["tokenizer", "model", *(figure.heading for figure in FIGURES)]
    text = "\n\n".join(("## Perplexity: Tang poems", markdown(head, rows), NOTES))
    return Section(text, {**as_content(measured, FIGURES), "notes": NOTES})


BENCHMARK = Benchmark((POEMS,), run)


def cell(options: Mapping[str, Any]) -> dict[str, float]:
    """One run on the poems of the file ``text``, with ``overrides``, into ``folder``."""
    overrides = [
        f"data.train.path={json.dumps(options['text'])}",
        f"runtime.threads={options['threads']}",
        f"seed={options['repeat']}",
        "prompts=[]",
        *options["overrides"],
    ]
    result = pretrain(load_recipe(PretrainRecipe, RECIPE, overrides), Path(options["folder"]) / "run")
    stages, rounds = result.summary["stages"], result.summary["rounds"]
    assert result.policy.weights is not None
    parameters = sum(parameter.numel() for parameter in result.policy.weights.module.parameters())
    dev = stages["pretrained"]["dev"]
    # Round 0 is the untrained model: no round was better.
    best = next((summary["round"] for summary in rounds if summary["dev_accuracy"] == dev["accuracy"]), 0)
    return {
        **{figure.key: stages["pretrained"]["test"][figure.key] for figure in HELD_OUT},
        **{f"{FLOOR}_{figure.key}": stages[FLOOR]["test"][figure.key] for figure in HELD_OUT},
        "dev_bits_per_byte": dev["bits_per_byte"],
        "parameters_millions": parameters / 1e6,
        "best_round": best,
    }


def _rows(measured: Mapping[str, Measurement]) -> list[list[str]]:
    rows = []
    for tokenizer in TOKENIZERS:
        any_shape = measured[f"{tokenizer} / {next(iter(SHAPES))}"]
        floor = [figure.cell(any_shape.spread(f"{FLOOR}_{figure.key}")) for figure in HELD_OUT]
        rows.append([tokenizer, "Kneser-Ney, 5-gram", *floor, *[NOTHING] * (len(FIGURES) - len(floor))])
        for shape in SHAPES:
            found = measured[f"{tokenizer} / {shape}"]
            rows.append([tokenizer, shape, *(figure.cell(found.spread(figure.key)) for figure in FIGURES)])
    return rows
