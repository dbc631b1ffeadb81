"""Small finished runs, written with the journal's own API."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from loopwise.evaluate.stats import mean_interval, paired
from loopwise.runs.journal import Journal, Place
from loopwise.types import Budget, Decision, Evaluation, Feedback, Problem, Prompt, Sample

IMPROVE = {
    "data": {"train": None, "task": "addition", "labelled": 250},
    "rewards": [{"use": "exact_match"}],
    "update": {"steps": 40, "keep": "verified", "threshold": 1.0},
    "gate": {"metric": "reward", "enabled": True},
    "problems": 300,
    "samples": 4,
    "rounds": 3,
}
PRETRAIN = {
    "model": {"create": "llama"},
    "data": {"train": [{"path": "poems.json", "weight": 1.0}], "dev": 0.1, "test": 0.1, "deduplicate": "exact"},
    "update": {"steps": 60, "batch_size": 16, "window": 64},
    "prompts": ["", "床前"],
    "sampling": {"max_tokens": 48, "temperature": 0.8},
    "gate": {"metric": "likelihood", "enabled": True},
    "rounds": 3,
}
Scores = Sequence[float]


def scores(share: float, count: int = 100) -> list[float]:
    """``count`` scores, the first ``share`` of them 1, the others 0."""
    return [float(place < round(share * count)) for place in range(count)]


@dataclass
class Recorder:
    """Writes a run as the loop does: evaluations, watched and training samples, then the round with its decision."""

    journal: Journal
    run_id: str
    config: Mapping[str, Any]
    prompts: Sequence[Prompt] = ("957+864=",)
    texts: Callable[[int, int], str] = lambda number, index: f"{number}{index}"
    summary: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[str, ...] = ("exact_match",)

    def start(self, kind: str = "improve", dev: Scores | None = None, test: Scores | None = None) -> None:
        self.journal.create_run(self.run_id, kind, self.config, "hash", {}, {"torch": "2.13.0"}, 2)
        self.journal.add_problems(self.run_id, [Problem(f"p{n}", prompt) for n, prompt in enumerate(self.prompts)])
        self._commit(0, {}, None, ())
        self.evaluate(0, "dev", dev, "base")
        self.evaluate(0, "test", test, "base")
        self.draw(0, "watch")
        self.dev = [] if dev is None else dev

    def round(
        self,
        number: int,
        dev: Scores | None,
        *,
        drawn: bool = True,
        steps: Sequence[Mapping[str, float]] = (),
        **changes: Any,
    ) -> None:
        kept = self.draw(number, "train") if drawn else ()
        self.draw(number, "watch")
        self.evaluate(number, "dev", dev, "candidate")
        decision = Decision(True, "no held-out split: accepted unseen", *[float("nan")] * 4, 0, True)
        if dev is not None:
            test = paired(dev, self.dev)
            best = not test.shows_loss and test.difference >= 0
            means = float(np.nanmean(dev)), float(np.nanmean(self.dev))
            reason = "rolled back, loss shown" if test.shows_loss else "new best" if best else "no loss shown"
            fields = (not test.shows_loss, reason, *means, test.difference, test.upper, test.n, best)
            decision = Decision(*fields, {"dev": {"difference": test.difference}})
            self.dev = dev if best else self.dev
        figures = {"round": number, "samples": 4 * drawn, "kept": len(kept), "reward": 0.1 * number, "k": 4.0}
        figures |= {"pass_at_1": 0.1, "pass_at_k": 0.2, "distinct": 0.5, "entropy": 0.1, "completions/mean_length": 4.0}
        self._commit(number, {**figures, **self.summary, **changes}, decision, kept, steps)

    def evaluate(self, number: int, split: str, values: Scores | None, stage: str) -> None:
        if values is not None:
            given = np.array(values, dtype=np.float64)
            evaluation = Evaluation(split, f"policy-{number}", given)
            self.journal.add_evaluation(self.run_id, number, stage, evaluation, mean_interval(given))

    def draw(self, number: int, phase: str, count: int = 4) -> list[str]:
        """Four samples of each prompt, the even ones judged right; returns the ids of those."""
        if phase == "watch" and not {"problems", "prompts"} & set(self.config):
            return []
        place = Place(self.run_id, number, 0, phase)
        samples = [
            Sample(f"{phase}/{number}/{n}/{i}", f"p{n}", n, i, "policy", self.texts(number, i), "stop")
            for n in range(len(self.prompts))
            for i in range(count)
        ]
        rewards = np.array([[float(sample.index % 2 == 0)] * len(self.parts) for sample in samples])
        self.journal.add_samples(place, samples)
        self.journal.add_feedback(
            place, samples, Feedback(self.parts, (1.0,) * len(self.parts), rewards, ~np.isnan(rewards))
        )
        return [sample.id for sample in samples if sample.index % 2 == 0]

    def gold(self, number: int, split: str, values: Scores) -> None:
        """Samples of a held-out split that the report's own reward judged."""
        place = Place(self.run_id, number, 0, split)
        problems = [Problem(f"{split}-{n}", f"held out {n}") for n in range(len(values))]
        self.journal.add_problems(self.run_id, problems)
        samples = [
            Sample(f"{split}/{number}/{n}/0", problem.id, n, 0, "policy", "text", "stop")
            for n, problem in enumerate(problems)
        ]
        self.journal.add_samples(place, samples)
        rewards = np.array(values, dtype=np.float64)[:, None]
        feedback = Feedback(("number",), (1.0,), rewards, ~np.isnan(rewards))
        self.journal.add_feedback(place, samples, feedback, "report")

    def _commit(
        self,
        number: int,
        summary: Mapping[str, Any],
        decision: Decision | None,
        kept: Sequence[str],
        steps: Sequence[Mapping[str, float]] = (),
    ) -> None:
        self.journal.commit_round(
            self.run_id,
            round=number,
            summary=summary,
            decision=decision,
            checkpoint=(f"r{number}", "hash"),
            step_metrics=list(enumerate(steps, start=1)),
            kept=kept,
            budget=Budget(),
        )


def figures(values: Scores) -> dict[str, Any]:
    """A stage's figures as in ``summary.json``."""
    given = np.array(values, dtype=np.float64)
    judged = given[~np.isnan(given)]
    low, high = mean_interval(given)
    return {"accuracy": float(judged.mean()) if judged.size else float("nan"), "ci95": [low, high], "n": judged.size}


def text_figures(values: Scores, window: int = 64, bytes: int = 7543) -> dict[str, Any]:
    """A pretraining stage's figures: ``values`` are mean log-probabilities a token of windows of equal length."""
    nats, tokens = -float(np.mean(values)), window * len(values)
    bits = nats * tokens / math.log(2) / bytes
    figures_of = {"nats_per_token": nats, "perplexity": math.exp(nats), "bits_per_byte": bits}
    return {**figures(values), **figures_of, "tokens": tokens, "bytes": bytes}


def summarise(run_id: str, stages: Mapping[str, Any], task: str = "addition") -> dict[str, Any]:
    """The content of ``summary.json``."""
    budget = {"tokens_generated": 285856, "tokens_trained": 2, "flops": 5e12, "seconds": 261.5, "judge_calls": 9}
    return {
        "task": task,
        "seed": 0,
        "run_id": run_id,
        "wall_seconds": 272.0,
        "stages": stages,
        "rounds": [],
        "budget": budget,
    }


@dataclass(frozen=True)
class Finished:
    """A finished run's folder and summary."""

    out: Path
    summary: dict[str, Any]
