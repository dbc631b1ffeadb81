"""One run of the loop: a recipe's parts put together, its steps handed to the loop, its figures to the journal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from loopwise import loop
from loopwise.advice import advise
from loopwise.config.methods import OnlineConfig, reference_of
from loopwise.config.recipes import ImproveRecipe
from loopwise.evaluate.groups import group_metrics, joined
from loopwise.evaluate.rewards import feedback_metrics
from loopwise.gate import Gate, refusal
from loopwise.loop import Position, Steps
from loopwise.measuring import Measuring, Parts
from loopwise.meter import Meter
from loopwise.models.policy import Policy
from loopwise.monitors import Monitors, Watched, monitored
from loopwise.observer import Observer
from loopwise.rollout import Roller
from loopwise.starting import ranks_in_words, sampling_of, sharing_in_words
from loopwise.tasks.curriculum import draw_round
from loopwise.types import (
    Budget,
    Context,
    Decision,
    Partial,
    Problem,
    Rollout,
    Scored,
    Updated,
)
from loopwise.workspace import RunFiles, Workspace

WATCH_SAMPLES = 4
Stages = dict[str, dict[str, dict[str, Any]]]


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
        self._monitors: Monitors | None = None
        self._seen: Watched | None = None
        self._warnings: Sequence[str] = ()
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
        self.measuring = Measuring(parts, files, self.roller)

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
        self.measuring.remember(position)
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
        self._monitors = self._make_monitors(base)
        self._round_started = time.monotonic()
        if position.round == 0:
            for split in gate.splits:
                self.measuring.measure(0, position.incumbent, split, stage="base")
            self._watch(0, position.policy)

        def decide(number: int, candidate: Policy, at: Position) -> Decision:
            if candidate.weights is not None and not candidate.weights.finite:
                return refusal("could not be judged: its weights hold numbers that are not finite")
            self._watch(number, candidate)
            decision = gate.decide(number, candidate, at.incumbent, at.incumbent_round)
            return self._monitor(number, candidate, decision)

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

    def stage(self, policy: Policy, number: int, name: str) -> dict[str, dict[str, Any]]:
        """Figures of a policy of round ``number`` on dev and test: ``accuracy``, its 95% interval, judged problems."""
        return self.measuring.stage(policy, number, name)

    def _gate(self) -> Gate:
        splits = [name for name in self.parts.streams.held_out if name != "test"]
        config = self.parts.recipe.gate
        return Gate(self.measuring.measure, splits, config.confidence, config.enabled)

    def _draw(self, number: int) -> Sequence[Problem]:
        self._scored, self._kept, self._drawn, self._round_started = [], [], {}, time.monotonic()
        self._seen, self._warnings = None, ()
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

        def roll(policy: Any, problems: Sequence[Problem], k: int, *, step: int = 0, judged: bool = True) -> Scored:
            scored = rollout(policy, problems, k, step=step, judged=judged)
            # Revisions are no fresh answers: a round's figures are of its drafts.
            if judged and not any(problem.parent for problem in problems):
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
            every = ": all there were, so nothing was learned" if skipped == updated.metrics.get("steps") else ""
            self._note(
                "warning",
                f"round {position.round}: {skipped:g} optimizer steps were skipped, because their gradients were not "
                f"finite{every}. Lower update.optimizer.lr, or set runtime.dtype: float32.",
            )
        for advice in (*self._warnings, *advise(self.parts.recipe, summary)):
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
        if self._monitors is not None and self._seen is not None:
            for name, watched in (("monitor", self._seen), ("monitor_base", self._monitors.of_base)):
                summary |= {f"{name}/{figure}": value for figure, value in watched.figures.items()}
        summary |= self._drawn
        evaluation = self.measuring.measured.get((updated.candidate.id, "dev"))
        if self.parts.figures and evaluation:
            summary |= {f"dev/{name}": value for name, value in self.parts.figures(evaluation).items()}
        return summary | {f"update/{name}": value for name, value in updated.metrics.items()}

    def _figures(self, scored: Scored) -> dict[str, float]:
        """What there is to say of samples and their rewards."""
        recipe = self.parts.recipe
        assert isinstance(recipe, ImproveRecipe)
        return feedback_metrics(scored) | group_metrics(scored, recipe.update.threshold, recipe.samples)

    def _make_monitors(self, base: Policy) -> Monitors | None:
        recipe = self.parts.recipe
        if not isinstance(recipe, ImproveRecipe):
            return None
        problems = monitored(recipe, self.parts.streams)
        if not problems:
            return None
        return Monitors(
            config=recipe.monitors,
            roller=self.roller,
            problems=problems,
            sampling=sampling_of(recipe),
            threshold=recipe.update.threshold,
            base=base,
            runtime=self.parts.runtime,
            ask=self.files.ask,
        )

    def _monitor(self, number: int, candidate: Policy, decision: Decision) -> Decision:
        """The gate's decision, or a rollback where a monitor is past its second limit; warns of the others."""
        if self._monitors is None:
            return decision
        self._seen = self._monitors.watch(number, candidate)
        crossings = self._monitors.crossings(self._seen)
        self._warnings = [crossing.words for crossing in crossings if not crossing.rolls_back]
        reasons = "; ".join(crossing.words for crossing in crossings if crossing.rolls_back)
        if not reasons:
            return decision
        gate = "" if decision.accepted else f"; and by the gate: {decision.reason}"
        return replace(decision, accepted=False, best=False, reason=f"rolled back by monitors: {reasons}{gate}")

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
        if (reached := self.files.workspace.ranks.lead(self.parts.exhausted)) is not None:
            self._note("warning", f"budget: {reached}")
        return reached


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
