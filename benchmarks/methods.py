"""Every way of learning from a score by gradient, on sums from one warm start a seed, with one budget of samples."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness import (
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
from benchmarks.warm_starts import HELD_OUT, warm_starts
from loopwise.evaluate.stats import wilson

ROUNDS, PROBLEMS, SAMPLES, NEW_TOKENS = 4, 512, 8, 5
QUICK = {"rounds": 1, "problems": 8, "samples": 4}
LABELLED = 400
TEACHER = ("data.labelled=2000", "update.steps=800")

_FITTED = {"name": "muon", "matrix_lr": 0.02, "lr": 3e-3}
_FIT = {"method": "rft", "steps": 40, "batch_size": 128, "labelled_share": 0.3, "optimizer": _FITTED}
_PAIRS = {"steps": 16, "batch_size": 64, "optimizer": {"name": "muon", "matrix_lr": 0.005, "lr": 3e-4}}
# At the rates of the others both lose the model: every round was rolled back.
_SMALL = {"name": "adamw", "lr": 1e-4}
_ONLINE = {"problems_per_step": 32, "optimizer": {"name": "adamw", "lr": 3e-4}}
_PPO = {**_ONLINE, "passes": 2, "optimizer": {"name": "adamw", "lr": 2e-4}}
CONTROL = "labelled sums alone (control)"
METHODS: Mapping[str, Mapping[str, Any]] = {
    CONTROL: {**_FIT, "keep": "none"},
    "RFT": _FIT,
    "STaR": {**_FIT, "restart": True, "pool": "round"},
    "ReST-EM": {**_FIT, "restart": True},
    "margin ranking": {**_PAIRS, "method": "margin"},
    "RRHF": {**_PAIRS, "method": "rrhf"},
    "SLiC": {**_PAIRS, "method": "slic"},
    "DPO": {**_PAIRS, "method": "dpo", "optimizer": _SMALL},
    "IPO": {**_PAIRS, "method": "ipo", "optimizer": _SMALL},
    "SPIN (learns gold answers)": {**_PAIRS, "method": "spin"},
    "REINFORCE": {**_ONLINE, "method": "reinforce"},
    "RLOO": {**_ONLINE, "method": "rloo"},
    "GRPO": {**_ONLINE, "method": "grpo"},
    "Dr. GRPO": {**_ONLINE, "method": "dr_grpo"},
    "Dr. GRPO, KL to the base": {**_ONLINE, "method": "dr_grpo", "kl": {"weight": 0.01}},
    "DAPO's loss": {**_ONLINE, "method": "dapo"},
    "PPO": {**_PPO, "method": "ppo"},
    "distillation (has a teacher)": {**_ONLINE, "method": "distill"},
}
QUICK_METHODS = (CONTROL, "DPO", "Dr. GRPO", "PPO", "distillation (has a teacher)")

FIGURES = (
    Figure("before", "before", ".1%"),
    Figure("after", "after", ".1%"),
    Figure("rolled_back", "rounds rolled back", ".0f"),
    Figure("sampled", "answers sampled", ".0f"),
    Figure("steps", "steps (online: rollouts)", ".0f"),
    Figure("minutes", "minutes", ".1f"),
)
NOTES = (
    f"Accuracy on {HELD_OUT} test sums of each seed, which nothing else has seen, as median (lowest-highest) of the "
    "seeds; the interval is Wilson's of all seeds' sums together. The result is the best round by as many dev sums. "
    f"All draw {ROUNDS} rounds x {PROBLEMS} sums x {SAMPLES} answers of up to {NEW_TOKENS} tokens; the control draws "
    f"none and goes on with the {LABELLED} labelled sums of the warm start, as RFT, STaR and ReST-EM do beside their "
    "samples; the others see no label, except that SPIN's better answer is the gold one. A seed's warm start is one "
    "for all methods. The reward is exact: for answers this short it is close to a label."
)


def run(settings: Settings) -> Section:
    """Every method for each seed."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        options = {
            "models": warm_starts(Path(folder) / "base", settings, settings.repeats, [f"data.labelled={LABELLED}"]),
            "teachers": warm_starts(Path(folder) / "teacher", settings, settings.repeats, TEACHER),
            **(QUICK if settings.quick else {"rounds": ROUNDS, "problems": PROBLEMS, "samples": SAMPLES}),
        }
        rivals = [
            Rival(name, "benchmarks.methods:learn", {**options, "method": name})
            for name in (QUICK_METHODS if settings.quick else METHODS)
        ]
        measured = [
            measurement.with_figure("minutes", lambda run: (run["process_seconds"] or 0.0) / 60)
            for measurement in run_alternating(rivals, settings.repeats, settings.threads)
        ]
    head = ["", *(figure.heading for figure in FIGURES[:2]), "95%", *(figure.heading for figure in FIGURES[2:])]
    text = "\n\n".join(("## Methods: addition from one warm start", markdown(head, list(map(_row, measured))), NOTES))
    return Section(text, {**as_content(measured, FIGURES), "notes": NOTES})


BENCHMARK = Benchmark((), run)


def learn(options: Mapping[str, Any]) -> dict[str, float | None]:
    """One run of ``loopwise improve`` by a method of the table."""
    from loopwise.config.reading import parse_recipe
    from loopwise.config.recipes import ImproveRecipe
    from loopwise.stages.improve import improve

    recipe = parse_recipe(ImproveRecipe, recipe_of(options))
    result = improve(recipe, Path(options["folder"]) / "run")
    stages, rounds = result.summary["stages"], result.summary["rounds"]
    test = stages["improved"]["test"]
    return {
        "before": stages["base"]["test"]["accuracy"],
        "after": test["accuracy"],
        "right": round(test["accuracy"] * test["n"]),
        "judged": test["n"],
        "rolled_back": sum(not each["accepted"] for each in rounds),
        "sampled": sum(each["samples"] for each in rounds),
        "steps": sum(each.get("update/steps", 0.0) for each in rounds),
    }


def recipe_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of a method and a seed."""
    seed = options["repeat"]
    update = dict(METHODS[options["method"]])
    if update["method"] == "distill":
        update["teacher"] = options["teachers"][seed]
    return {
        "model": options["models"][seed],
        "data": {"task": "addition", "labelled": LABELLED, "dev": HELD_OUT, "test": HELD_OUT},
        "rewards": ["exact_match"],
        "sampling": {"max_tokens": NEW_TOKENS, "temperature": 1.0},
        **{name: options[name] for name in ("rounds", "problems", "samples")},
        "seed": seed,
        "runtime": {"threads": options["threads"], "generate_batch": 4096},
        "update": update,
    }


def _row(measured: Measurement) -> list[str]:
    cells = [figure.cell(measured.spread(figure.key)) for figure in FIGURES]
    low, high = wilson(*(int(sum(measured.values(key) or ())) for key in ("right", "judged")))
    return [measured.rival, *cells[:2], f"{low:.1%}-{high:.1%}", *cells[2:]]
