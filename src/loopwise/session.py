"""One run of the loop: a recipe's parts put together, its steps handed to the loop, its figures to the journal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from loopwise import loop
from loopwise.advice import advise
from loopwise.config import ImproveRecipe, PretrainRecipe, Recipe
from loopwise.evaluate.groups import group_metrics, joined
from loopwise.evaluate.likelihood import mean_logps
from loopwise.evaluate.rewards import feedback_metrics
from loopwise.evaluate.stats import mean_interval
from loopwise.gate import Gate, refusal
from loopwise.loop import Position, Steps
from loopwise.meter import Meter
from loopwise.methods import OnlineConfig, reference_of, rows_config
from loopwise.models.policy import Policy
from loopwise.observer import Observer
from loopwise.rollout import Roller
from loopwise.runtime import Runtime
from loopwise.starting import ranks_in_words, sampling_of, sharing_in_words
from loopwise.tasks.base import Streams
from loopwise.tasks.curriculum import draw_round
from loopwise.types import (
    Budget,
    Context,
    Decision,
    Evaluation,
    FeedbackSource,
    Generator,
    Partial,
    Problem,
    Rollout,
    Scored,
    Update,
    Updated,
)
from loopwise.workspace import RunFiles, Workspace

WATCH_SAMPLES = 4
Stages = dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class Parts:
    """What a run is made of. ``update`` and ``generator`` may be anybody's that keep the protocols of types.py.

    ``watched`` are the problems whose samples are kept after each round. ``score(policy, split)`` (float64 ``[P]``)
    takes the place of the gate's metric where a stage measures otherwise; ``figures`` adds to an evaluation's mean.
    """

    recipe: Recipe
    streams: Streams
    runtime: Runtime
    update: Update
    generator: Generator
    feedback: FeedbackSource
    report: FeedbackSource | None = None
    watched: Sequence[Problem] = ()
    score: Callable[[Policy, str], np.ndarray] | None = None
    figures: Callable[[Evaluation], Mapping[str, float]] | None = None


class Session:
    """Runs ``parts`` in ``files``: restores the newest position, loops, and measures."""

    def __init__(self, parts: Parts, files: RunFiles, observer: Observer) -> None:
        self.parts = parts
        self.files = files
        self.observer = observer
        self.meter = Meter()
        self._scored: list[Scored] = []
        self._kept: list[str] = []
        self._fresh: Scored | None = None
        self._drawn: Mapping[str, float] = {}
        self._base: Policy | None = None
        self._measured: dict[tuple[str, str], Evaluation] = {}
        self._written: set[tuple[int, str, str]] = set()
        self._steps = 0
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
            ranks=files.workspace.ranks,
        )

    def run(self, base: Policy) -> Position:
        """Run what is left of the recipe's rounds, from the newest checkpoint, or from ``base`` where there is none."""
        recipe, self._base = self.parts.recipe, base
        loop.check_needs(self.parts.update, self.parts.generator.offers, reference=base.weights is not None)
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
        for level, message in ranks_in_words(recipe, self.parts.runtime):
            self._note(level, message)
        if position.round == 0 and position.partial is None and isinstance(recipe, ImproveRecipe):
            for message in sharing_in_words(base):
                self._note("info", message)
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
            scores = self._score(number, policy, split)
            self._measured[key] = Evaluation(split, policy.id, scores)
        if (number, split, stage) not in self._written:
            self._written.add((number, split, stage))
            evaluation = self._measured[key]
            interval = mean_interval(evaluation.scores)
            self.files.workspace.store(
                lambda: self.files.journal.add_evaluation(self.files.run_id, number, stage, evaluation, interval)
            )
        return self._measured[key]

    def _score(self, number: int, policy: Policy, split: str) -> np.ndarray:
        if self.parts.score is not None:
            return self.parts.score(policy, split)
        problems, recipe = self.parts.streams.held_out[split], self.parts.recipe
        if recipe.gate.metric == "likelihood":
            assert not isinstance(recipe, PretrainRecipe)
            completions = [self.parts.streams.completion(problem) for problem in problems]
            end_of_text = rows_config(recipe.update).end_of_text
            return mean_logps(policy, problems, completions, self.parts.runtime, end_of_text=end_of_text)
        greedy = replace(sampling_of(recipe), temperature=0.0, top_k=0, top_p=1.0)
        return self.roller.at(number, split, greedy)(policy, problems, 1).feedback.totals

    def _remember(self, position: Position) -> None:
        """Take over what earlier processes measured in committed rounds, so that it is not paid for again."""
        if position.round:
            for row in self.files.ask(lambda journal: journal.evaluations(self.files.run_id)):
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
                found[split] |= self.parts.figures(evaluation) if self.parts.figures else {}
        return found

    def _gate(self) -> Gate:
        splits = [name for name in self.parts.streams.held_out if name != "test"]
        config = self.parts.recipe.gate
        return Gate(self.measure, splits, config.confidence, config.enabled)

    def _draw(self, number: int) -> Sequence[Problem]:
        self._scored, self._kept, self._drawn, self._round_started = [], [], {}, time.monotonic()
        problems = self._problems(number)
        recipe = self.parts.recipe
        self._steps = recipe.steps(len(problems)) if isinstance(recipe, ImproveRecipe) else recipe.update.steps
        return problems

    def _problems(self, number: int) -> Sequence[Problem]:
        recipe, streams = self.parts.recipe, self.parts.streams
        if not isinstance(recipe, ImproveRecipe):
            return ()
        if recipe.curriculum is None:
            return streams.draw(number, recipe.problems)
        run_id, threshold = self.files.run_id, recipe.update.threshold
        groups = self.files.ask(lambda journal: journal.pass_rates(run_id, number, threshold))
        drawn = draw_round(streams, recipe.problems, recipe.seed, number, groups, recipe.curriculum)
        self._drawn = drawn.metrics
        return drawn.problems

    def _rollout(self, number: int) -> Rollout:
        rollout = self.roller.at(number, "train", sampling_of(self.parts.recipe))

        def roll(policy: Any, problems: Sequence[Problem], k: int, *, step: int = 0) -> Scored:
            scored = rollout(policy, problems, k, step=step)
            self._scored.append(scored)
            self._fresh = scored
            return scored

        return roll

    def _context(self, number: int, position: Position) -> Context:
        recipe = self.parts.recipe
        every, total = recipe.runtime.checkpoint_steps, self._steps
        online = isinstance(recipe.update, OnlineConfig)

        def record(step: int, metrics: Mapping[str, float]) -> None:
            # A step that drew its own samples is told with what they scored.
            sampled = self._figures(self._fresh) if self._fresh and online else {}
            self._fresh = None
            metrics = {**sampled, **metrics}
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
            reference=position.policy if reference_of(recipe.update) == "accepted" else self._base,
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
        for advice in advise(self.parts.recipe, summary):
            self._note("warning", f"round {position.round}: {advice}")
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
            summary |= {**self._figures(scored), **scored.feedback.metrics}
        summary |= self._drawn
        evaluation = self._measured.get((updated.candidate.id, "dev"))
        if self.parts.figures and evaluation:
            summary |= {f"dev/{name}": value for name, value in self.parts.figures(evaluation).items()}
        return summary | {f"update/{name}": value for name, value in updated.metrics.items()}

    def _figures(self, scored: Scored) -> dict[str, float]:
        """What there is to say of samples and their rewards."""
        recipe = self.parts.recipe
        assert isinstance(recipe, ImproveRecipe)
        return feedback_metrics(scored) | group_metrics(scored, recipe.update.threshold, recipe.samples)

    def _watch(self, number: int, policy: Policy) -> None:
        if self.parts.watched:
            sampling = sampling_of(self.parts.recipe)
            self.roller.at(number, "watch", sampling)(policy, self.parts.watched, WATCH_SAMPLES)

    def _note(self, level: str, message: str) -> None:
        """Tell the person watching, and write it down for those who come later."""
        self.observer.note(level, message)
        number = len(self.files.ask(lambda journal: journal.rounds(self.files.run_id)))
        self.files.workspace.store(lambda: self.files.journal.add_event(self.files.run_id, number, level, message))

    def _exhausted(self, budget: Budget) -> str | None:
        limits = self.parts.recipe.budget.model_dump(exclude_none=True)
        # Every rank has a clock of its own: what the first has spent decides.
        spent = self.files.workspace.ranks.lead(lambda: budget)
        for name, limit in limits.items():
            if getattr(spent, name) >= limit:
                self._note("warning", f"budget: {name} {getattr(spent, name):g} reached its limit of {limit:g}")
                return str(name)
        return None


@dataclass(frozen=True)
class Run:
    """A run of the journal: its name there, the command it belongs to, and what it starts from and is made of.

    ``fingerprint`` names, beside the data and the base, whatever a resumed run must find unchanged.
    """

    run_id: str
    kind: str
    parts: Parts
    base: Policy
    fingerprint: Mapping[str, str]

    def enter(self, workspace: Workspace) -> RunFiles:
        """Enter it in the journal. Raises ResumeError where it is known with another recipe or other data."""
        files = workspace.run(self.run_id, self.parts.recipe.runtime.keep_checkpoints)
        fingerprint = {**self.parts.streams.fingerprint, **self.fingerprint, "model": self.base.id}
        files.enter(self.kind, self.parts.recipe, fingerprint, self.parts.runtime)
        return files

    def go(self, workspace: Workspace, observer: Observer) -> tuple[Session, Position]:
        """Run it, or go on with it, to its end."""
        session = Session(self.parts, self.enter(workspace), observer)
        return session, session.run(self.base)
