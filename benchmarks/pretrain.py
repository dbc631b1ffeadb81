"""Tinyshakespeare, character by character: ``loopwise pretrain`` beside a plain AdamW loop, on the way to 1.886 nats.

Both train a GPT-2 shape of 4 layers and 128 numbers on the first nine tenths of the text, in windows of 64, and are
judged on the whole last tenth: the mean over its windows that do not overlap, each character predicted once.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import loopwise.recipes
from benchmarks.harness import Benchmark, Figure, Rival, Section, Settings, as_content, run_alternating, table
from benchmarks.machine import matmul_rival, peak
from loopwise.config.reading import load_recipe
from loopwise.config.recipes import PretrainRecipe
from loopwise.observer import Observer
from loopwise.runs.journal import Journal
from loopwise.stages.pretrain import RUN_ID, pretrain
from loopwise.types import Evaluation
from loopwise.workspace import JOURNAL

TEXT = "tinyshakespeare.txt"
RECIPE = Path(str(loopwise.recipes.__file__)).with_name("shakespeare.yaml")
TARGET = 1.886
NANOGPT_SECONDS = 158.0

# The setting of nanoGPT's CPU example.
LAYERS, WIDTH, HEADS, WINDOW, BATCH = 4, 128, 4, 64, 12
STEPS, EVALUATE_EVERY, WARMUP_STEPS = 2000, 250, 100
LR, LEAST_LR, BETAS, WEIGHT_DECAY, CLIP = 1e-3, 1e-4, (0.9, 0.99), 0.1, 1.0
QUICK_STEPS = 20
_WINDOWS_AT_ONCE = 128

FIGURES = (
    Figure("seconds_to_target", f"seconds to {TARGET} nats"),
    Figure("seconds_in_steps", "of them in steps"),
    Figure("validation_nats", "validation nats at the end", ".4f"),
    Figure("tokens_per_second", "tokens/s trained", ".0f"),
    Figure("flop_use", "share of matmul peak", ".1%"),
    Figure("process_seconds", "whole process, seconds"),
)
NOTES = (
    "Seconds count from before the text is read to the end of the first evaluation at or under the target (ours: to "
    "the commit of its round), with every evaluation, checkpoint and sample on the way; imports only in the whole "
    "process. Tokens/s is the pace of optimizer steps. Share of the matmul peak: 6 FLOPs a token for each multiplied "
    "weight, and attention in full, at that pace. Vocabulary: ours has its 258 byte-level ids, the rival the text's "
    "own characters. Repeat i of both runs with seed i."
)


def run(settings: Settings) -> Section:
    """Both rivals in turn, beside the machine's matmul peak."""
    quick = settings.quick
    shared = {"text": str(settings.data / TEXT)}
    steps = [f"update.steps={QUICK_STEPS}", "update.optimizer.warmup_steps=2"] if quick else []
    plain_steps = {"steps": QUICK_STEPS if quick else STEPS, "evaluate_every": 10 if quick else EVALUATE_EVERY}
    *measured, matmul = run_alternating(
        [
            Rival("loopwise pretrain", "benchmarks.pretrain:ours", {**shared, "overrides": steps}),
            Rival("AdamW loop on transformers' GPT-2", "benchmarks.pretrain:plain", {**shared, **plain_steps}),
            matmul_rival(quick=quick),
        ],
        settings.repeats,
        settings.threads,
    )
    best = peak(matmul)
    shown = [m.with_figure("flop_use", lambda run: (run["gflops"] or 0.0) / best) for m in measured]
    references = {"nanoGPT's CPU example": {"seconds_to_target": NANOGPT_SECONDS}}
    text = "\n\n".join(
        (
            f"## Pretraining: Tinyshakespeare characters to {TARGET} nats",
            table(shown, FIGURES, references),
            f"fp32 matmul peak in this run: {best:.0f} GFLOP/s. {NOTES}",
        )
    )
    content = as_content(shown, FIGURES)
    return Section(
        text,
        {
            **content,
            "references": references,
            "matmul": {"peak_gflops": best, "runs": list(matmul.runs)},
            "notes": NOTES,
        },
    )


BENCHMARK = Benchmark((TEXT,), run)


@dataclass
class StepClock:
    """When optimizer steps ended, counted from 1 in each stretch without an evaluation."""

    marks: list[tuple[int, float]] = field(default_factory=list)

    def mark(self, step: int) -> None:
        """Step ``step`` of a stretch has ended."""
        self.marks.append((step, time.perf_counter()))

    @property
    def step_seconds(self) -> float:
        """Mean seconds from the end of a step to the end of the next one: what lies between stretches is left out."""
        gaps = [
            then - before for (_, before), (step, then) in zip(self.marks, self.marks[1:], strict=False) if step > 1
        ]
        return sum(gaps) / len(gaps)


class StepObserver(Observer):
    """Hands the stage's optimizer steps to a clock."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def progress(self, what: str, done: int, total: int) -> None:
        """Rounds are the stretches: held-out text is measured between them."""
        if what == "steps":
            self.clock.mark(done)


def ours(options: Mapping[str, Any]) -> dict[str, float | None]:
    """One run of the shipped recipe on the file ``text``, with ``overrides``, into ``folder``."""
    overrides = [
        f"data.train={json.dumps(options['text'])}",
        f"runtime.threads={options['threads']}",
        f"seed={options['repeat']}",
        *options["overrides"],
    ]
    clock, out = StepClock(), Path(options["folder"]) / "run"
    began = datetime.now(UTC)
    recipe = load_recipe(PretrainRecipe, RECIPE, overrides)
    result = pretrain(recipe, out, observer=StepObserver(clock))
    window = recipe.update.window or recipe.model.context
    held_out = result.summary["stages"]["pretrained"]["dev"]
    reached = _first_reached(out / JOURNAL, held_out["tokens"], window)
    assert result.policy.weights is not None
    return {
        "seconds_to_target": None if reached is None else (reached[1] - began).total_seconds(),
        "validation_nats": held_out["nats_per_token"],
        **_pace(
            clock,
            None if reached is None else reached[0] * recipe.update.steps,
            recipe.update.batch_size * window,
            training_flops(result.policy.weights.module, window),
        ),
    }


def plain(options: Mapping[str, Any]) -> dict[str, float | None]:
    """One run of ``steps`` steps of AdamW, written as anybody would, evaluated every ``evaluate_every`` steps."""
    torch.set_num_threads(options["threads"])
    torch.manual_seed(options["repeat"])
    clock, every = StepClock(), options["evaluate_every"]
    began = time.perf_counter()
    train, validation, vocabulary = _characters(Path(options["text"]))
    model = _gpt2(vocabulary)
    optimizer = _adamw(model)
    reached: tuple[int, float] | None = None
    nats = math.inf
    for step in range(options["steps"]):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options["steps"])
        starts = torch.randint(len(train) - WINDOW, (BATCH, 1))
        tokens = train[starts + torch.arange(WINDOW + 1)]
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.mark(step % every + 1)
        if (step + 1) % every == 0 or step + 1 == options["steps"]:
            nats = validation_nats(model, validation)
            if reached is None and nats <= TARGET:
                reached = step + 1, time.perf_counter() - began
    return {
        "seconds_to_target": None if reached is None else reached[1],
        "validation_nats": nats,
        **_pace(clock, None if reached is None else reached[0], BATCH * WINDOW, training_flops(model, WINDOW)),
    }


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine from LR to LEAST_LR at the last step."""
    if step < WARMUP_STEPS:
        return LR * (step + 1) / (WARMUP_STEPS + 1)
    done = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return LEAST_LR + 0.5 * (LR - LEAST_LR) * (1 + math.cos(math.pi * done))


def validation_nats(model: nn.Module, tokens: torch.Tensor) -> float:
    """Mean nats a character of ids ``[T]`` in windows that do not overlap, the last one as short as it comes."""
    model.eval()
    nats = 0.0
    with torch.inference_mode():
        for inputs, targets in _windows(tokens):
            logits = model(input_ids=inputs, use_cache=False).logits
            nats += float(F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))
    model.train()
    return nats / (len(tokens) - 1)


def training_flops(model: nn.Module, window: int) -> float:
    """FLOPs to train one token: 6 for each multiplied weight, and 12 x layers x width x window for attention.

    Forward, a weight costs 2 (multiply, add), scores and weighted values together 4 x width x window a layer; backward
    costs twice that (Chowdhery et al. 2022, appendix B; attention counted in full, though half of it is masked).
    """
    # A table is looked up, not multiplied, unless it is the output layer too.
    tables = {
        id(module.weight): module.weight.numel() for module in model.modules() if isinstance(module, nn.Embedding)
    }
    tables.pop(id(model.get_output_embeddings().weight), None)  # type: ignore[operator]
    multiplied = sum(parameter.numel() for parameter in model.parameters()) - sum(tables.values())
    config: Any = model.config
    return float(6 * multiplied + 12 * config.num_hidden_layers * config.hidden_size * window)


def _pace(clock: StepClock, steps_to_target: int | None, tokens_per_step: int, flops: float) -> dict[str, float | None]:
    pace = tokens_per_step / clock.step_seconds
    return {
        "seconds_in_steps": None if steps_to_target is None else steps_to_target * clock.step_seconds,
        "tokens_per_second": pace,
        "gflops": flops * pace / 1e9,
    }


def _first_reached(journal: Path, tokens: int, window: int) -> tuple[int, datetime] | None:
    """The first round whose candidate was at or under the target, and when it was committed."""
    with contextlib.closing(Journal.open(journal, read_only=True)) as reader:
        committed = {row.round: row.created for row in reader.rounds(RUN_ID)}
        for row in reader.evaluations(RUN_ID):
            # Round 0 is the untrained model, which the first round is compared with.
            judged = row.round > 0 and row.stage == "candidate" and row.evaluation.split == "dev"
            if judged and _nats(row.evaluation, tokens, window) <= TARGET:
                return row.round, committed[row.round]
    return None


def _nats(evaluation: Evaluation, tokens: int, window: int) -> float:
    """Mean nats a token from the mean log-probabilities of windows, of which only the last may be shorter."""
    lengths = np.full(len(evaluation.scores), window)
    lengths[-1] = tokens - window * (len(lengths) - 1)
    return -float((evaluation.scores * lengths).sum()) / tokens


def _characters(path: Path) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Ids of the first nine tenths of a text and of the rest, and how many characters it knows."""
    text = path.read_text(encoding="utf-8")
    known = {character: place for place, character in enumerate(sorted(set(text)))}
    ids = torch.tensor([known[character] for character in text])
    split = int(len(text) * 0.9)
    return ids[:split], ids[split:], len(known)


def _gpt2(vocabulary: int) -> Any:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary,
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=HEADS,
            n_positions=WINDOW,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def _adamw(model: nn.Module) -> torch.optim.AdamW:
    """Weight decay on matrices and tables alone, as in nanoGPT."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=LR, betas=BETAS)


def _windows(tokens: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and targets ``[B, WINDOW]``, in order, and the shorter last window alone."""
    predicted = len(tokens) - 1
    full = predicted // WINDOW * WINDOW
    inputs, targets = tokens[:full].view(-1, WINDOW), tokens[1 : full + 1].view(-1, WINDOW)
    for first in range(0, len(inputs), _WINDOWS_AT_ONCE):
        yield inputs[first : first + _WINDOWS_AT_ONCE], targets[first : first + _WINDOWS_AT_ONCE]
    if full < predicted:
        yield tokens[None, full:-1], tokens[None, full + 1 :]
