"""Time to 90% of held-out sums from one warm start by Dr. GRPO: ``loopwise improve`` beside TRL's GRPOTrainer."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import trl_side
from benchmarks.gauges import StepMeter
from benchmarks.harness import (
    Benchmark,
    Figure,
    Rival,
    Section,
    Settings,
    as_content,
    run_alternating,
    table,
)
from benchmarks.warm_starts import HELD_OUT, warm_starts
from loopwise.observer import Observer

TARGET = 0.9
PROBLEMS, SAMPLES, NEW_TOKENS = 32, 8, 5
STEPS, EVERY = 400, 20
QUICK_STEPS, QUICK_EVERY = 4, 2
LABELLED = 400
LR = 3e-4
EVALUATING = "evaluating"

FIGURES = (
    Figure("seconds_to_target", f"seconds to {TARGET:.0%}"),
    Figure("steps_to_target", "steps to it", ".0f"),
    Figure(EVALUATING, "evaluating, seconds"),
    Figure("step", "seconds a step", ".3f"),
    Figure("best", "best accuracy", ".1%"),
    Figure("process_seconds", "whole process, seconds"),
)
NOTES = (
    f"The warm start is the model of addition-base.yaml with {LABELLED} labelled sums and the repeat's seed, one for "
    f"both. A step learns from {PROBLEMS} sums x {SAMPLES} answers, the same sums in the same order, reward 1 for the "
    f"right answer, AdamW without weight decay at {LR:g}. The objective is one, so the rate was chosen once for both, "
    "by a sweep of ours over 1e-4, 3e-4 and 1e-3 (docs/log.md). "
    f"Every {EVERY} steps both answer the same {HELD_OUT} held-out sums greedily, with our generator. Seconds count "
    "from before the model is read to the end of that evaluation; ours also keeps every sample in its journal and a "
    "checkpoint a round. Repeat i of both runs with seed i."
)


def run(settings: Settings) -> Section:
    """Both sides in turn from one warm start."""
    trl_side.check_trl()
    steps, every = (QUICK_STEPS, QUICK_EVERY) if settings.quick else (STEPS, EVERY)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        overrides = [f"data.labelled={LABELLED}"]
        models = warm_starts(Path(folder) / "base", settings, settings.repeats, overrides)
        options = {
            "models": models,
            "steps": steps,
            "every": every,
            "dtype": "float32",
            "optimizer": {**trl_side.OPTIMIZER, "lr": LR},
        }
        measured = run_alternating(
            [
                Rival("loopwise improve", "benchmarks.target:ours", options),
                Rival("TRL's GRPOTrainer", "benchmarks.target:trl", options),
            ],
            settings.repeats,
            settings.threads,
        )
    title = f"## Time to {TARGET:.0%} held-out on addition, Dr. GRPO"
    text = "\n\n".join((title, table(measured, FIGURES, {}), NOTES))
    return Section(text, {**as_content(measured, FIGURES), "notes": NOTES})


BENCHMARK = Benchmark((), run)


class _EarlyEndError(Exception):
    """The target is reached."""


class _Watch(Observer):
    """Ends the run with the round that reaches the target."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.seconds: float | None = None
        self.rounds = 0
        self.best = 0.0

    def round_finished(self, run_id: str, summary: Mapping[str, Any]) -> None:
        self.rounds += 1
        self.best = max(self.best, summary["dev_accuracy"])
        if summary["dev_accuracy"] >= TARGET:
            self.seconds = time.perf_counter() - self.began
            raise _EarlyEndError


def ours(options: Mapping[str, Any]) -> dict[str, float | None]:
    """``loopwise improve`` on the repeat's model for ``steps`` steps at most, a round of ``every`` steps."""
    from loopwise.config.reading import parse_recipe
    from loopwise.config.recipes import ImproveRecipe
    from loopwise.measuring import Measuring
    from loopwise.stages.improve import improve

    recipe = parse_recipe(ImproveRecipe, _recipe(options))
    meter, watch, out = StepMeter(), _Watch(time.perf_counter()), Path(options["folder"]) / "run"
    with meter.timing(Measuring, "measure", EVALUATING), contextlib.suppress(_EarlyEndError):
        improve(recipe, out, observer=watch)
    return _figures(
        watch.seconds, time.perf_counter() - watch.began, watch.rounds * options["every"], watch.best, meter
    )


def _recipe(options: Mapping[str, Any]) -> dict[str, Any]:
    """Our recipe; TRL's side takes its sums and its sampling from it."""
    return {
        "model": options["models"][options["repeat"]],
        "data": {"task": "addition", "dev": HELD_OUT, "test": 0},
        "rewards": ["exact_match"],
        "sampling": {"max_tokens": NEW_TOKENS, "temperature": 1.0},
        "rounds": options["steps"] // options["every"],
        "problems": PROBLEMS * options["every"],
        "samples": SAMPLES,
        "gate": {"enabled": False},
        "seed": options["repeat"],
        "runtime": {"threads": options["threads"], "generate_batch": HELD_OUT},
        "update": {"method": "dr_grpo", "problems_per_step": PROBLEMS, "optimizer": options["optimizer"]},
    }


def trl(options: Mapping[str, Any]) -> dict[str, float | None]:
    """TRL's trainer on the same sums, stopped by the same evaluation."""
    library = trl_side.load_trl(options["threads"])
    from loopwise.config.reading import parse_recipe
    from loopwise.config.recipes import ImproveRecipe
    from loopwise.evaluate.rules import exact_match
    from loopwise.tasks.streams import open_streams

    began = time.perf_counter()
    recipe = parse_recipe(ImproveRecipe, _recipe(options))
    streams = open_streams(recipe.data, recipe.seed, supervised=False)
    problems = [problem for round in range(1, recipe.rounds + 1) for problem in streams.draw(round, recipe.problems)]
    rows = [{"prompt": problem.prompt, "answer": problem.columns["answer"]} for problem in problems]
    model, tokenizer = trl_side.load_model(options["models"][options["repeat"]])
    trainer = library.GRPOTrainer(
        model=model,
        reward_funcs=exact_match(),
        args=library.GRPOConfig(
            **trl_side.arguments(
                options,
                PROBLEMS * SAMPLES,
                **trl_side.DR_GRPO,
                num_generations=SAMPLES,
                max_completion_length=NEW_TOKENS,
            )
        ),
        train_dataset=trl_side.dataset(rows),
        processing_class=tokenizer,
    )
    meter = StepMeter()
    evaluation = _Evaluation(streams.held_out["dev"], tokenizer, options)
    seconds: float | None = None
    done, best = 0, 0.0

    def after_step(step: int) -> bool:
        nonlocal seconds, done, best
        done = step
        if step % options["every"] == 0:
            with meter.clock(EVALUATING):
                accuracy = evaluation.of(model)
            best = max(best, accuracy)
            if accuracy >= TARGET:
                seconds = time.perf_counter() - began
        return seconds is None

    with meter.clock(EVALUATING):
        evaluation.of(model)  # the base, as our run measures it
    trl_side.train(trainer, after_step)
    return _figures(seconds, time.perf_counter() - began, done, best, meter)


class _Evaluation:
    """Greedy answers of a model that is being trained to the held-out sums, by our generator."""

    def __init__(self, problems: Any, tokenizer: Any, options: Mapping[str, Any]) -> None:
        from loopwise.config.blocks import RuntimeConfig
        from loopwise.evaluate.rules import exact_match
        from loopwise.runtime import make_runtime
        from loopwise.types import Request

        self._tokenizer = tokenizer
        self._runtime = make_runtime(RuntimeConfig(threads=options["threads"]), options["repeat"])
        self._requests = [Request(str(place), problem, place, 0, place) for place, problem in enumerate(problems)]
        self._answers = [problem.columns["answer"] for problem in problems]
        self._reward = exact_match()

    def of(self, model: Any) -> float:
        """Share of right answers."""
        from loopwise.generate.local import LocalGenerator
        from loopwise.models.policy import Policy, Weights
        from loopwise.runtime import run_async
        from loopwise.types import Sampling

        policy = Policy(Weights.of(model), self._tokenizer)
        greedy = Sampling(max_tokens=NEW_TOKENS, temperature=0.0)
        samples = run_async(LocalGenerator(self._runtime).generate(policy, self._requests, greedy))
        texts = [sample.text for sample in samples]
        scores = self._reward(prompts=[""] * len(texts), completions=texts, completion_ids=[], answer=self._answers)
        return sum(score or 0.0 for score in scores) / len(scores)


def _figures(seconds: float | None, total: float, steps: int, best: float, meter: StepMeter) -> dict[str, float | None]:
    evaluating = float(meter.totals[EVALUATING])
    return {
        "seconds_to_target": seconds,
        "steps_to_target": None if seconds is None else float(steps),
        EVALUATING: evaluating,
        "step": (total - evaluating) / max(1, steps),
        "best": best,
    }
