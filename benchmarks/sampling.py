"""Sampling alone: our generator beside transformers' ``generate``, groups of 8 completions of each prompt."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import grpo, shape, trl_side
from benchmarks.gauges import MemoryGauge
from benchmarks.harness import (
    Benchmark,
    Figure,
    Rival,
    Run,
    Section,
    Settings,
    as_content,
    run_alternating,
    table,
)
from benchmarks.machine import bandwidth, dtypes, matmul_rival, peak

OURS, RIVAL = "loopwise", "transformers' generate"
ROLLOUTS = 4
DEMO = grpo.Case(500, 8, 5)
QUICK_DEMO = grpo.Case(20, 8, 5)

FIGURES = (
    Figure("seconds", "seconds a rollout", ".3f"),
    Figure("tokens_per_second", "tokens/s", ".0f"),
    Figure("growth_mib", "peak memory over the loaded model, MiB", ".0f"),
    Figure("flop_use", "share of matmul peak", ".1%"),
    Figure("bandwidth_use", "of memory bandwidth", ".1%"),
)
NOTES = (
    "Seconds are the median over the rollouts of a process but the first. Neither side knows an end-of-text, so that "
    "every completion has all its tokens. Ours draws every token with a log-probability and an entropy, and its texts; "
    "generate gives token ids. Share of the matmul peak: 2 FLOPs for each weight of the blocks and token, each prompt "
    "counted once for its group; of bandwidth, the least that any sampler must read: on both sides the same work."
)


def run(settings: Settings) -> Section:
    """Both sides on the Llama with long and short prompts, and on the demo's model."""
    model = shape.QUICK if settings.quick else shape.FULL
    texts: list[str] = []
    content: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        llama = str(shape.save_model(model, Path(folder) / "llama", end_of_text=False))
        demo, demo_shape = save_demo(Path(folder) / "demo")
        for dtype in dtypes(settings):
            cases = [(case, llama, model) for case in (grpo.QUICK_CASES if settings.quick else grpo.CASES)]
            cases.append((QUICK_DEMO if settings.quick else DEMO, str(demo), demo_shape))
            for case, path, sizes in cases:
                options = {"model": path, "dtype": dtype, "case": vars(case)}
                *measured, machine = run_alternating(
                    [
                        Rival(OURS, "benchmarks.sampling:ours", options),
                        Rival(RIVAL, "benchmarks.sampling:generate", options),
                        matmul_rival(quick=settings.quick, dtype=dtype),
                    ],
                    settings.repeats,
                    settings.threads,
                )
                shares = _shares(sizes, case, peak(machine), bandwidth(machine))
                shown = [m.with_runs(shares) for m in measured]
                which = "demo's model" if path == str(demo) else "Llama"
                name = f"{which}, {case.prompts} x {grpo.SAMPLES}, prompt {case.prompt}, {case.completion} new, {dtype}"
                texts += [f"### {name}", table(shown, FIGURES, {})]
                content[name] = as_content(shown, FIGURES)
    return Section("\n\n".join(["## Sampling groups of completions", *texts, NOTES]), {**content, "notes": NOTES})


BENCHMARK = Benchmark((), run)


def save_demo(folder: Path) -> tuple[Path, shape.Shape]:
    """Write the demo's model, with random weights and without an end-of-text; its sizes as those of a Llama."""
    from loopwise.config.blocks import ModelConfig, RuntimeConfig
    from loopwise.models.folders import save_policy
    from loopwise.models.presets import create_policy
    from loopwise.runtime import make_runtime

    policy = create_policy(ModelConfig(create="demo"), make_runtime(RuntimeConfig(), seed=0))
    assert policy.weights is not None
    module: Any = policy.weights.module
    policy.tokenizer.eos_token = None
    module.config.eos_token_id = module.generation_config.eos_token_id = None
    save_policy(policy, folder)
    layers, width = module.config.n_layer, module.config.n_embd
    # GPT-2's two feed-forward matrices of 4 x width hold as much as three of a Llama with 8/3 x width.
    return folder, shape.Shape(layers, width, 8 * width // 3, module.config.n_head)


def ours(options: Mapping[str, Any]) -> dict[str, float | None]:
    """Rollouts of our generator: one work unit each."""
    from loopwise.config.blocks import RuntimeConfig
    from loopwise.generate.local import LocalGenerator
    from loopwise.models.folders import load_policy
    from loopwise.runtime import make_runtime, run_async, seed_key
    from loopwise.types import Problem, Request, Sampling

    case = grpo.Case(**options["case"])
    runtime = make_runtime(RuntimeConfig(threads=options["threads"], dtype=options["dtype"]), options["repeat"])
    policy = load_policy(options["model"], runtime)
    problems = [Problem(str(place), prompt) for place, prompt in enumerate(shape.prompts(case.prompts, case.prompt))]
    sampling = Sampling(max_tokens=case.completion)
    generator = LocalGenerator(runtime)

    def rollout(number: int) -> None:
        requests = [
            Request(f"{group}/{index}", problem, group, index, seed_key(options["repeat"], number, group, index))
            for group, problem in enumerate(problems)
            for index in range(grpo.SAMPLES)
        ]
        samples = run_async(generator.generate(policy, requests, sampling))
        assert {len(sample.token_ids) for sample in samples} == {case.completion}

    return _timed(rollout)


def generate(options: Mapping[str, Any]) -> dict[str, float | None]:
    """Rollouts of transformers' ``generate``, each prompt given once for every completion, as TRL does."""
    import torch

    torch.set_num_threads(options["threads"])
    case = grpo.Case(**options["case"])
    model, tokenizer = trl_side.load_model(options["model"])
    if options["dtype"] == "bfloat16":
        model = model.to(torch.bfloat16)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    rows = [prompt for prompt in shape.prompts(case.prompts, case.prompt) for _ in range(grpo.SAMPLES)]
    inputs = tokenizer(rows, return_tensors="pt", padding=True).to(model.device)

    def rollout(number: int) -> None:
        torch.manual_seed(number)
        with torch.no_grad():
            found = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                do_sample=True,
                top_k=0,
                max_new_tokens=case.completion,
            )
        assert tuple(found.shape) == (len(rows), inputs["input_ids"].shape[1] + case.completion)

    return _timed(rollout)


def _timed(rollout: Callable[[int], None]) -> dict[str, float | None]:
    gauge, seconds = MemoryGauge(), []
    for number in range(ROLLOUTS):
        began = time.perf_counter()
        rollout(number)
        seconds.append(time.perf_counter() - began)
    return {"seconds": statistics.median(seconds[1:]), **gauge.figures()}


def _shares(model: shape.Shape, case: grpo.Case, gflops: float, gigabytes: float) -> Callable[[Run], Run]:
    read = case.prompts * case.prompt + case.tokens
    least = model.decoding_bytes(case.prompts, case.prompt, grpo.SAMPLES, case.completion)

    def shares(run: Run) -> Run:
        seconds = run["seconds"] or 1.0
        return {
            **run,
            "tokens_per_second": case.tokens / seconds,
            "flop_use": 2 * model.multiplied * read / seconds / gflops / 1e9,
            "bandwidth_use": least / seconds / gigabytes / 1e9,
        }

    return shares
