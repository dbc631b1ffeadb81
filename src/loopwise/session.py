"""One run of the loop: a recipe's parts put together, its steps handed to the loop, its figures to the journal."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loopwise import loop
from loopwise.config import ImproveRecipe, ModelConfig, RewardConfig, TuneRecipe
from loopwise.data.formats import fingerprint
from loopwise.errors import ResumeError
from loopwise.evaluate.groups import group_metrics, joined
from loopwise.evaluate.likelihood import mean_logps
from loopwise.evaluate.rewards import RewardSum, feedback_metrics
from loopwise.evaluate.stats import mean_interval
from loopwise.gate import Gate, refusal
from loopwise.loop import Position, Steps
from loopwise.models.folders import load_policy
from loopwise.models.policy import Policy
from loopwise.models.presets import create_policy
from loopwise.rollout import Roller
from loopwise.runs.journal import Journal
from loopwise.runtime import Runtime, run_async, seed_key
from loopwise.tasks.streams import Streams
from loopwise.types import (
    Budget,
    Context,
    Decision,
    Evaluation,
    Feedback,
    FeedbackSource,
    Generator,
    Partial,
    Problem,
    Request,
    Rollout,
    Sample,
    Sampling,
    Scored,
    Update,
    Updated,
)
from loopwise.workspace import JOURNAL, RunFiles, check_out

WATCH_SAMPLES = 4
TRIAL_PROBLEMS = 3
Stages = dict[str, dict[str, dict[str, Any]]]


class Observer:
    """What a person watching is told. This one says nothing; the command line and the notebook have their own."""

    def run_started(self, run_id: str, rounds: int, done: int) -> None:
        """A run begins (or goes on after ``done`` rounds)."""

    def progress(self, what: str, done: int, total: int) -> None:
        """``done`` of ``total`` samples (of a phase) or optimizer steps (``train``)."""

    def round_finished(self, run_id: str, summary: Mapping[str, Any]) -> None:
        """A round is committed."""

    def note(self, level: str, message: str) -> None:
        """Something a person should know: ``info`` or ``warning``."""


@dataclass
class Meter:
    """Adds up what a run spends, wall seconds included.

    Rollouts are booked by key, once, in the round they belong to: what is re-read after a resume, or of a round that is
    committed, costs nothing again.
    """

    total: Budget = Budget()
    booked: set[str] = field(default_factory=set)
    open_round: int = 0
    _since: float = field(default_factory=time.monotonic)

    def resume(self, position: Position) -> None:
        """Go on from where a run stands. The base's evaluation belongs to the first round."""
        self.total, self.booked = position.budget, set(position.booked)
        self.open_round = position.round + 1 if position.round else 0

    def book(self, number: int, key: str, budget: Budget) -> None:
        """Spend a rollout's cost unless it is booked."""
        if number >= self.open_round and key not in self.booked:
            self.booked.add(key)
            self.spend(budget)

    def spend(self, budget: Budget) -> None:
        """Spend at once."""
        self.total = self.total + budget

    def spent(self) -> Budget:
        """All that was spent up to now."""
        now = time.monotonic()
        self.spend(Budget(seconds=now - self._since))
        self._since = now
        return self.total


@dataclass(frozen=True)
class Parts:
    """What a run is made of. ``update`` and ``generator`` may be anybody's that keep the protocols of types.py."""

    recipe: ImproveRecipe | TuneRecipe
    streams: Streams
    runtime: Runtime
    update: Update
    generator: Generator
    feedback: FeedbackSource
    report: FeedbackSource | None = None


class Session:
    """Runs ``parts`` in ``files``: restores the newest position, loops, and measures."""

    def __init__(self, parts: Parts, files: RunFiles, observer: Observer) -> None:
        self.parts = parts
        self.files = files
        self.observer = observer
        self.meter = Meter()
        self._scored: list[Scored] = []
        self._kept: list[str] = []
        self._measured: dict[tuple[str, str], Evaluation] = {}
        self._written: set[tuple[int, str, str]] = set()
        self._round_started = time.monotonic()
        recipe = parts.recipe
        self.roller = Roller(
            run_id=files.run_id,
            seed=recipe.seed,
            generator=parts.generator,
            feedback=parts.feedback,
            report=parts.report,
            journal=files.journal,
            unit=recipe.runtime.generate_batch,
            book=self.meter.book,
            store=files.workspace.store,
            on_progress=observer.progress,
        )

    def run(self, base: Policy) -> Position:
        """Run what is left of the recipe's rounds, from the newest checkpoint, or from ``base`` where there is none."""
        recipe = self.parts.recipe
        loop.check_needs(self.parts.update, self.parts.generator.offers)
        position = self.files.restore(self.parts.runtime)
        if position is None:
            self.files.commit_round(Position.start(base), {}, None, ())
            # Read back, as a resumed run does: what was loaded may round otherwise than the module handed in.
            position = self.files.restore(self.parts.runtime)
            assert position is not None
        self._remember(position)
        self.meter.resume(position)
        self.observer.run_started(self.files.run_id, recipe.rounds, position.round)
        for warning in self.parts.runtime.warnings:
            self._note("warning", warning)
        gate = self._gate()
        self._round_started = time.monotonic()
        if position.round == 0:
            for split in gate.splits:
                self.measure(0, position.incumbent, split, stage="base")
            self._watch(0, position.policy)

        def decide(number: int, candidate: Policy, at: Position) -> Decision:
            if candidate.weights is not None and not candidate.weights.finite:
                return refusal("could not be judged: its weights hold numbers that are not finite")
            self._watch(number, candidate)
            return gate.decide(number, candidate, at.incumbent, at.incumbent_round)

        steps = Steps(
            draw=self._draw,
            update=self.parts.update,
            rollout=self._rollout,
            context=self._context,
            gate=decide,
            spent=self.meter.spent,
            commit=self._commit,
            exhausted=self._exhausted,
        )
        return loop.run(position, steps, recipe.rounds)

    def measure(self, number: int, policy: Policy, split: str, stage: str = "candidate") -> Evaluation:
        """Evaluate a policy of round ``number`` on a held-out split, greedily or by likelihood, once a policy."""
        key = (policy.id, split)
        if key not in self._measured:
            problems = self.parts.streams.held_out[split]
            if self.parts.recipe.gate.metric == "likelihood":
                completions = [self.parts.streams.completion(problem) for problem in problems]
                scores = mean_logps(policy, problems, completions, self.parts.runtime)
            else:
                greedy = replace(sampling_of(self.parts.recipe), temperature=0.0, top_k=0, top_p=1.0)
                scored = self.roller.at(number, split, greedy)(policy, problems, 1)
                scores = scored.feedback.totals
            self._measured[key] = Evaluation(split, policy.id, scores)
        if (number, split, stage) not in self._written:
            self._written.add((number, split, stage))
            evaluation = self._measured[key]
            interval = mean_interval(evaluation.scores)
            self.files.workspace.store(
                lambda: self.files.journal.add_evaluation(self.files.run_id, number, stage, evaluation, interval)
            )
        return self._measured[key]

    def _remember(self, position: Position) -> None:
        """Take over what earlier processes measured in committed rounds, so that it is not paid for again."""
        if position.round:
            for row in self.files.journal.evaluations(self.files.run_id):
                if row.round <= position.round:
                    self._measured.setdefault((row.evaluation.policy_id, row.evaluation.split), row.evaluation)

    def stage(self, policy: Policy, number: int, name: str) -> dict[str, dict[str, Any]]:
        """Figures of a policy of round ``number`` on dev and test: ``accuracy``, its 95% interval, judged problems."""
        found = {}
        for split in ("dev", "test"):
            if split in self.parts.streams.held_out:
                evaluation = self.measure(number, policy, split, stage=name)
                low, high = mean_interval(evaluation.scores)
                found[split] = {"accuracy": evaluation.mean, "ci95": [low, high], "n": int(evaluation.judged.size)}
        return found

    def _gate(self) -> Gate:
        splits = [name for name in self.parts.streams.held_out if name != "test"]
        config = self.parts.recipe.gate
        return Gate(self.measure, splits, config.confidence, config.enabled)

    def _draw(self, number: int) -> Sequence[Problem]:
        self._scored, self._kept, self._round_started = [], [], time.monotonic()
        recipe = self.parts.recipe
        return self.parts.streams.draw(number, recipe.problems) if isinstance(recipe, ImproveRecipe) else ()

    def _rollout(self, number: int) -> Rollout:
        rollout = self.roller.at(number, "train", sampling_of(self.parts.recipe))

        def roll(policy: Any, problems: Sequence[Problem], k: int, *, step: int = 0) -> Scored:
            scored = rollout(policy, problems, k, step=step)
            self._scored.append(scored)
            return scored

        return roll

    def _context(self, number: int, position: Position) -> Context:
        recipe = self.parts.recipe
        every, total = recipe.runtime.checkpoint_steps, recipe.update.steps

        def record(step: int, metrics: Mapping[str, float]) -> None:
            self.files.pending.append((step, metrics))
            self.observer.progress("steps", step, total)

        def checkpoint(step: int, progress: Callable[[], tuple[Any, Any]]) -> None:
            # After the last step too: what was learned is safe before anything is evaluated.
            if step % every == 0 or step == total:
                partial = Partial(step, *progress())
                booked = tuple(sorted(self.meter.booked))
                self.files.commit_progress(replace(position, partial=partial, budget=self.meter.spent(), booked=booked))

        return Context(
            run_id=self.files.run_id,
            seed=recipe.seed,
            round=number,
            runtime=self.parts.runtime,
            spend=self.meter.spend,
            record=record,
            keep=self._kept.extend,
            checkpoint=checkpoint,
            partial=position.partial,
        )

    def _commit(self, position: Position, updated: Updated, decision: Decision) -> None:
        summary = self._summary(position, updated, decision)
        self.files.commit_round(position, summary, decision, self._kept)
        self.meter.resume(position)
        if skipped := updated.metrics.get("skipped"):
            self._note(
                "warning",
                f"round {position.round}: {skipped:g} optimizer steps were skipped, because their gradients were not "
                "finite. Lower update.optimizer.lr, or set runtime.dtype: float32.",
            )
        self.observer.round_finished(self.files.run_id, summary)

    def _summary(self, position: Position, updated: Updated, decision: Decision) -> dict[str, Any]:
        summary: dict[str, Any] = {
            "round": position.round,
            "problems": sum(len(scored.problems) for scored in self._scored),
            "samples": sum(len(scored.samples) for scored in self._scored),
            "kept": len(self._kept),
            "reward": None,
            "pass_at_k": None,
            "dev_accuracy": None if math.isnan(decision.candidate) else decision.candidate,
            "dev_before": None if math.isnan(decision.incumbent) else decision.incumbent,
            "accepted": decision.accepted,
            "seconds": round(time.monotonic() - self._round_started, 3),
        }
        recipe = self.parts.recipe
        if self._scored and isinstance(recipe, ImproveRecipe):
            scored = joined(self._scored)
            summary |= feedback_metrics(scored) | group_metrics(scored, recipe.update.threshold, recipe.samples)
            summary |= scored.feedback.metrics
        return summary | {f"update/{name}": value for name, value in updated.metrics.items()}

    def _watch(self, number: int, policy: Policy) -> None:
        watched = self.parts.streams.watch
        if watched and isinstance(self.parts.recipe, ImproveRecipe):
            self.roller.at(number, "watch", sampling_of(self.parts.recipe))(policy, watched, WATCH_SAMPLES)

    def _note(self, level: str, message: str) -> None:
        """Tell the person watching, and write it down for those who come later."""
        self.observer.note(level, message)
        number = len(self.files.journal.rounds(self.files.run_id))
        self.files.workspace.store(lambda: self.files.journal.add_event(self.files.run_id, number, level, message))

    def _exhausted(self, budget: Budget) -> str | None:
        limits = self.parts.recipe.budget.model_dump(exclude_none=True)
        for name, limit in limits.items():
            if getattr(budget, name) >= limit:
                self._note("warning", f"budget: {name} {getattr(budget, name):g} reached its limit of {limit:g}")
                return str(name)
        return None


def sampling_of(recipe: ImproveRecipe | TuneRecipe) -> Sampling:
    """The recipe's sampling block as the generators' type."""
    return Sampling(**recipe.sampling.model_dump())


def start_policy(model: ModelConfig, runtime: Runtime) -> Policy:
    """The policy a recipe starts from: loaded, or created from a preset."""
    return create_policy(model.create, runtime) if model.create else load_policy(str(model.path), runtime)


def recorded_threads(out: Path, run_id: str, *, resume: bool) -> int | None:
    """Check ``out`` before anything is loaded; the thread count a resumed run was started with, None for a new one.

    Another count would round differently. Raises OutputExistsError, ResumeError.
    """
    check_out(out, resume=resume)
    if not resume:
        return None
    # For writing: a journal whose making was cut short has no tables yet, and gets them now.
    with contextlib.closing(Journal.open(out / JOURNAL)) as journal:
        row = journal.run(run_id)
        others = [run.run_id for run in journal.runs()]
    if row is None and others:
        raise ResumeError(f"{out}: holds the run {others[0]}, not {run_id}. Go on with `loopwise runs resume {out}`.")
    return row.threads if row else None


def try_rewards(
    recipe: ImproveRecipe | TuneRecipe,
    base: Policy,
    generator: Generator,
    problems: Sequence[Problem],
    feedback: RewardSum,
) -> tuple[tuple[Sample, ...], Feedback]:
    """A real sample of each problem, judged. Raises RewardError when a reward breaks its contract on them."""
    requests = [
        Request(f"trial/{place}", problem, place, 0, seed_key(recipe.seed, "trial", place))
        for place, problem in enumerate(problems)
    ]
    samples = run_async(generator.generate(base, requests, sampling_of(recipe)))
    return tuple(samples), run_async(feedback.check(problems, samples))


def reward_fingerprint(rewards: Sequence[RewardConfig]) -> dict[str, str]:
    """The content of every reward file a recipe names."""
    files = [reward.use.rpartition(":")[0] for reward in rewards if ":" in reward.use]
    return {f"reward file {file}": fingerprint(file) for file in files}
