"""One step of Dr. GRPO (rollout, reward, update): ``loopwise improve`` beside TRL's GRPOTrainer.

Both start from one saved Llama of 6.3 million parameters and learn from 16 prompts x 8 samples of 32 tokens a step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import our_side, shape, trl_side
from benchmarks.gauges import SAMPLED, STEP, TRAINED, StepMeter
from benchmarks.harness import (
    Benchmark,
    Figure,
    Measurement,
    Rival,
    Run,
    Section,
    Settings,
    as_content,
    run_alternating,
    table,
)
from benchmarks.machine import bandwidth, dtypes, matmul_rival, peak
from loopwise.types import Request, Sample, Sampling

OURS, TRL = "loopwise improve", "TRL's GRPOTrainer"
SAMPLES, STEPS = 8, 4
SAMPLING, ROLLOUT = "sampling", "rollout"

FIGURES = (
    Figure("step", "seconds a step", ".2f"),
    Figure("sampling", "sampling", ".2f"),
    Figure("training", "training", ".2f"),
    Figure("growth_mib", "peak memory over the loaded model, MiB", ".0f"),
    Figure("peak_mib", "in all, MiB", ".0f"),
    Figure("sampled_per_second", "sampled tokens/s", ".0f"),
    Figure("training_flop_use", "training: share of matmul peak", ".1%"),
    Figure("sampling_flop_use", "sampling: of matmul peak", ".1%"),
    Figure("sampling_bandwidth_use", "of memory bandwidth", ".1%"),
)
FIRST = (Figure("first_loss", "loss", ".6f"), Figure("first_grad_norm", "gradient norm", ".6f"))
NOTES = (
    "Seconds are medians over the steps of a process but the first; sampling is the call that draws, training all "
    "after the rollout. Shares: 6 FLOPs for each weight of the blocks and token that is read with gradients, 2 without "
    "(attention and output layer not counted; tokens as each side reads them: a prompt once a group, or once a "
    "sample, padding too); of bandwidth, the least that any sampler must read (weights, and each prompt's keys and "
    "values once for its group). No completion ends early: ours has no end-of-text, TRL's is suppressed. TRL keeps "
    "activations, unless recomputing them, its default, is said. AdamW is one on both sides, the reward Python in the "
    "same process."
)


@dataclass(frozen=True)
class Case:
    """Sizes of a step: prompts, tokens of each, tokens of each completion."""

    prompts: int
    prompt: int
    completion: int

    @property
    def tokens(self) -> int:
        """Sampled tokens."""
        return self.prompts * SAMPLES * self.completion


CASES = (Case(16, 175, 32), Case(16, 6, 32))
QUICK_CASES = (Case(4, 40, 8), Case(4, 6, 8))


def run(settings: Settings) -> Section:
    """Both sides for each prompt length and compute type, and their first steps on the same samples."""
    trl_side.check_trl()
    model = shape.QUICK if settings.quick else shape.FULL
    texts: list[str] = []
    content: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        path = str(shape.save_model(model, Path(folder) / "model", end_of_text=False))
        for dtype in dtypes(settings):
            for case in QUICK_CASES if settings.quick else CASES:
                name = f"prompt {case.prompt}, completion {case.completion}, {dtype}"
                measured, limits = _measure(settings, model, case, {"model": path, "dtype": dtype})
                first = _first_steps(settings, case, path)
                texts += [f"### {name}", table(measured, FIGURES, {}), _agreement(first), limits]
                content[name] = {**as_content(measured, FIGURES), "first_step": as_content(first, FIRST)}
    title = f"## A step of Dr. GRPO: {CASES[0].prompts} prompts x {SAMPLES} samples"
    return Section("\n\n".join([title, *texts, NOTES]), {**content, "notes": NOTES})


BENCHMARK = Benchmark((), run)


def _measure(
    settings: Settings, model: shape.Shape, case: Case, common: Mapping[str, Any]
) -> tuple[list[Measurement], str]:
    options = {**common, "case": vars(case), "steps": STEPS}
    *measured, machine = run_alternating(
        [
            Rival(OURS, "benchmarks.grpo:ours", options),
            Rival(TRL, "benchmarks.grpo:trl", options),
            Rival(f"{TRL}, recomputing", "benchmarks.grpo:trl", {**options, "recompute": True}),
            matmul_rival(quick=settings.quick, dtype=common["dtype"]),
        ],
        settings.repeats,
        settings.threads,
    )
    flops, read = peak(machine), bandwidth(machine)
    least = model.decoding_bytes(case.prompts, case.prompt, SAMPLES, case.completion)

    def shares(run: Run) -> Run:
        training, sampling = run["training"] or 0.0, run["sampling"] or 0.0
        return {
            **run,
            "sampled_per_second": case.tokens / (run["step"] or 1.0),
            "training_flop_use": 6 * model.multiplied * (run[TRAINED] or 0.0) / training / flops / 1e9,
            "sampling_flop_use": 2 * model.multiplied * (run[SAMPLED] or 0.0) / sampling / flops / 1e9,
            "sampling_bandwidth_use": least / sampling / read / 1e9,
        }

    limits = f"{common['dtype']} matmul peak in this run: {flops:.0f} GFLOP/s; reading memory: {read:.1f} GB/s."
    return [measurement.with_runs(shares) for measurement in measured], limits


def _first_steps(settings: Settings, case: Case, model: str) -> tuple[Measurement, ...]:
    """Both sides' first step on the same samples: unequal lengths, so that the loss is not 0 by construction."""
    options = {"model": model, "dtype": "float32", "case": vars(case), "steps": 1, "given": True}
    return run_alternating(
        [Rival(OURS, "benchmarks.grpo:ours", options), Rival(TRL, "benchmarks.grpo:trl", options)], 1, settings.threads
    )


def _agreement(first: Sequence[Measurement]) -> str:
    return "First step of both on the same given samples, 1 to all tokens long:\n\n" + table(first, FIRST, {})


def ours(options: Mapping[str, Any]) -> dict[str, float | None]:
    """Some steps of ``loopwise improve`` on ``model``, sampling its own completions or learning from ``given`` ones."""
    from loopwise.config.blocks import RuntimeConfig
    from loopwise.config.reading import parse_recipe
    from loopwise.config.recipes import ImproveRecipe
    from loopwise.generate.local import LocalGenerator
    from loopwise.models.folders import load_policy
    from loopwise.rollout import Rollout
    from loopwise.runtime import make_runtime
    from loopwise.stages.improve import improve

    case, folder = Case(**options["case"]), Path(options["folder"])
    count = case.prompts * options["steps"]
    rows = shape.write_rows(
        folder / "prompts.jsonl", ({"prompt": prompt} for prompt in shape.prompts(count, case.prompt))
    )
    content = our_side.recipe(
        options,
        rows,
        rewards=["benchmarks.shape.digit_share"],
        problems=count,
        samples=SAMPLES,
        gate={"enabled": False},
        sampling={"max_tokens": case.completion, "temperature": 1.0},
        update={"method": "dr_grpo", "problems_per_step": case.prompts, "optimizer": dict(trl_side.OPTIMIZER)},
    )
    recipe = parse_recipe(ImproveRecipe, content)
    policy = load_policy(options["model"], make_runtime(RuntimeConfig(threads=options["threads"]), options["repeat"]))
    meter = StepMeter()
    with (
        meter.counting_tokens(),
        meter.timing(LocalGenerator, "generate", SAMPLING),
        meter.timing(Rollout, "__call__", ROLLOUT),
    ):
        improve(
            recipe,
            folder / "run",
            policy=policy,
            observer=our_side.StepObserver(meter),
            rewards=[shape.digit_share],
            generator=GivenSamples(case) if options.get("given") else None,
        )
    first = our_side.first_step(folder / "run")
    return first if options.get("given") else {**figures(meter), **meter.memory}


@dataclass(frozen=True)
class GivenSamples:
    """Our generator of what both sides are given."""

    case: Case
    offers = frozenset({"weights", "token_ids", "text"})

    async def generate(self, policy: Any, requests: Sequence[Request], sampling: Sampling) -> list[Sample]:
        """A sample for each request, whatever the policy."""
        samples = []
        for request in requests:
            prompt = str(request.problem.prompt)
            text = given_completion(self.case, prompt, request.index)
            prompt_ids, token_ids = policy.tokenizer([prompt, text])["input_ids"]
            samples.append(
                Sample(
                    id=request.sample_id,
                    problem_id=request.problem.id,
                    group=request.group,
                    index=request.index,
                    policy_id=policy.id,
                    text=text,
                    finish_reason="stop",
                    prompt_ids=tuple(prompt_ids),
                    token_ids=tuple(token_ids),
                    loss_mask=(1,) * len(token_ids),
                )
            )
        return samples


def trl(options: Mapping[str, Any]) -> dict[str, float | None]:
    """Some steps of TRL's trainer on ``model``, sampling its own completions or learning from ``given`` ones."""
    library = trl_side.load_trl(options["threads"])
    model, tokenizer = trl_side.load_model(options["model"])
    tokenizer.eos_token = shape.END  # TRL must have one; suppressed, it is never drawn
    case, given = Case(**options["case"]), options.get("given", False)
    rows = [{"prompt": prompt} for prompt in shape.prompts(case.prompts * options["steps"], case.prompt)]
    meter = StepMeter()
    trainer = library.GRPOTrainer(
        model=model,
        reward_funcs=shape.digit_share,
        args=library.GRPOConfig(**_grpo_arguments(options, case, tokenizer)),
        train_dataset=trl_side.dataset(rows),
        processing_class=tokenizer,
        rollout_func=_given_rollout(tokenizer, case) if given else None,
    )
    with (
        meter.timing(trainer, "_generate_single_turn", SAMPLING),
        meter.timing(trainer, "_prepare_inputs", ROLLOUT),
    ):
        first = trl_side.measure(trainer, meter)
    return first if given else {**figures(meter), **meter.memory}


def _grpo_arguments(options: Mapping[str, Any], case: Case, tokenizer: Any) -> dict[str, Any]:
    """One optimizer step a rollout, of whose completions none ends early."""
    return trl_side.arguments(
        options,
        case.prompts * SAMPLES,
        **trl_side.DR_GRPO,
        num_generations=SAMPLES,
        max_completion_length=case.completion,
        generation_kwargs={"suppress_tokens": [tokenizer.eos_token_id]},
    )


def given_completion(case: Case, prompt: str, index: int) -> str:
    """What both sides are given to learn from in the agreement of first steps."""
    length = int(shape.generator("length", prompt, index).integers(1, case.completion + 1))
    return shape.text(length, "completion", prompt, index)


def _given_rollout(tokenizer: Any, case: Case) -> Any:
    def rollout(prompts: Sequence[str], _: Any) -> dict[str, Any]:
        # TRL hands each prompt over once for every sample of it, one after the other.
        texts = [given_completion(case, prompt, place % SAMPLES) for place, prompt in enumerate(prompts)]
        return {
            "prompt_ids": tokenizer(list(prompts))["input_ids"],
            "completion_ids": tokenizer(texts)["input_ids"],
            "logprobs": None,
        }

    return rollout


def figures(meter: StepMeter) -> dict[str, float | None]:
    """A step's medians: seconds in all, in the sampling call and after the rollout, and tokens read."""
    step, rollout = meter.median(STEP), meter.median(ROLLOUT)
    return {
        "step": step,
        "sampling": meter.median(SAMPLING),
        "training": step - rollout,
        TRAINED: meter.median(TRAINED),
        SAMPLED: meter.median(SAMPLED),
    }
