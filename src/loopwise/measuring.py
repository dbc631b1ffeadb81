"""What a run is made of, and how its policies are measured on held-out problems, once each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from loopwise.config.methods import rows_config
from loopwise.config.recipes import ImproveRecipe, PretrainRecipe, RunRecipe
from loopwise.evaluate.groups import group_means
from loopwise.evaluate.likelihood import mean_logps
from loopwise.evaluate.stats import difference, mean_interval
from loopwise.loop import Position
from loopwise.models.policy import Policy
from loopwise.rollout import Roller
from loopwise.runs.rows import REFINED
from loopwise.runtime import Runtime
from loopwise.starting import sampling_of
from loopwise.tasks.base import Streams
from loopwise.types import Evaluation, FeedbackSource, Generator, Problem, Sampling, Update, compares
from loopwise.update.refinement import refine
from loopwise.workspace import RunFiles


@dataclass(frozen=True)
class Parts:
    """What a run is made of. ``update`` and ``generator`` may be anybody's that keep the protocols of types.py.

    ``watched`` are the problems whose samples are kept after each round. ``score(policy, split)`` (float64 ``[P]``)
    takes the place of the gate's metric where a stage measures otherwise; ``figures`` adds to an evaluation's mean.
    ``exhausted`` says which limit of a remote model is reached, if one is.
    """

    recipe: RunRecipe
    streams: Streams
    runtime: Runtime
    update: Update
    generator: Generator
    feedback: FeedbackSource
    report: FeedbackSource | None = None
    watched: Sequence[Problem] = ()
    score: Callable[[Policy, str], np.ndarray] | None = None
    figures: Callable[[Evaluation], Mapping[str, float]] | None = None
    exhausted: Callable[[], str | None] = lambda: None


class Measuring:
    """Measures the policies of a run on its held-out splits and writes the figures down."""

    def __init__(self, parts: Parts, files: RunFiles, roller: Roller) -> None:
        self.parts = parts
        self.files = files
        self.roller = roller
        self.measured: dict[tuple[str, str], Evaluation] = {}
        self._written: set[tuple[int, str, str]] = set()

    def measure(self, number: int, policy: Policy, split: str, stage: str = "candidate") -> Evaluation:
        """Evaluate a policy of round ``number`` on a held-out split, by rewards or by likelihood, once a policy."""
        return self._once(number, policy, split, stage, lambda: self._score(number, policy, split))

    def refined(self, number: int, policy: Policy, split: str, stage: str) -> Evaluation:
        """Evaluate a policy's held-out answers after they were revised."""
        return self._once(
            number, policy, f"{split}{REFINED}", stage, lambda: self._score_refined(number, policy, split)
        )

    def stage(self, policy: Policy, number: int, name: str) -> dict[str, dict[str, Any]]:
        """Figures of a policy of round ``number`` on dev and test: ``accuracy``, its 95% interval, judged problems.

        Where answers are revised, ``refined`` has the same of the revised ones, and the paired difference.
        """
        found: dict[str, dict[str, Any]] = {}
        for split in ("dev", "test"):
            if split in self.parts.streams.held_out:
                evaluation = self.measure(number, policy, split, stage=name)
                found[split] = _figures(evaluation)
                found[split] |= self.parts.figures(evaluation) if self.parts.figures else {}
                if self._revises:
                    revised = self.refined(number, policy, split, stage=name)
                    found[split]["refined"] = _figures(revised) | _difference(revised, evaluation)
        return found

    def remember(self, position: Position) -> None:
        """Take over what earlier processes measured in committed rounds, so that it is not paid for again."""
        if position.round:
            for row in self.files.ask(lambda journal: journal.evaluations(self.files.run_id)):
                if row.round <= position.round:
                    self.measured.setdefault((row.evaluation.policy_id, row.evaluation.split), row.evaluation)

    def _once(self, number: int, policy: Policy, split: str, stage: str, score: Callable[[], np.ndarray]) -> Evaluation:
        key = (policy.id, split)
        if key not in self.measured:
            self.measured[key] = Evaluation(split, policy.id, score())
        evaluation = self.measured[key]
        if (number, split, stage) not in self._written:
            self._written.add((number, split, stage))
            interval = mean_interval(evaluation.scores)
            self.files.workspace.store(
                lambda: self.files.journal.add_evaluation(self.files.run_id, number, stage, evaluation, interval)
            )
        return evaluation

    def _score(self, number: int, policy: Policy, split: str) -> np.ndarray:
        if self.parts.score is not None:
            return self.parts.score(policy, split)
        problems, recipe = self.parts.streams.held_out[split], self.parts.recipe
        if recipe.gate.metric == "likelihood":
            assert not isinstance(recipe, PretrainRecipe)
            completions = [self.parts.streams.completion(problem) for problem in problems]
            end_of_text = rows_config(recipe.update).end_of_text
            return mean_logps(policy, problems, completions, self.parts.runtime, end_of_text=end_of_text)
        each, drawing = held_out_drawing(self.parts)
        scored = self.roller.at(number, split, drawing)(policy, problems, each)
        return group_means((members for _, members in scored.groups()), scored.feedback.totals)

    def _score_refined(self, number: int, policy: Policy, split: str) -> np.ndarray:
        recipe = self.parts.recipe
        assert isinstance(recipe, ImproveRecipe)
        assert recipe.refine is not None
        rollout = self.roller.at(number, split, _greedy(recipe))
        problems, most = self.parts.streams.held_out[split], recipe.sampling.max_tokens
        return refine(rollout, policy, problems, 1, recipe.refine, max_tokens=most).final.feedback.totals

    @property
    def _revises(self) -> bool:
        recipe = self.parts.recipe
        return isinstance(recipe, ImproveRecipe) and recipe.held_out_revisions > 0


def held_out_drawing(parts: Parts) -> tuple[int, Sampling]:
    """How many samples of a held-out problem are drawn where rewards measure a policy, and how.

    One, greedily; but as many as in training, drawn alike, where judges set a problem's samples beside each other: a
    single answer would have nothing beside it.
    """
    recipe = parts.recipe
    if isinstance(recipe, ImproveRecipe) and compares(parts.feedback):
        return recipe.samples, sampling_of(recipe)
    return 1, _greedy(recipe)


def _greedy(recipe: RunRecipe) -> Sampling:
    return replace(sampling_of(recipe), temperature=0.0, top_k=0, top_p=1.0)


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    low, high = mean_interval(evaluation.scores)
    return {"accuracy": evaluation.mean, "ci95": [low, high], "n": int(evaluation.judged.size)}


def _difference(after: Evaluation, before: Evaluation) -> dict[str, Any]:
    """The paired difference with its two-sided 95% interval."""
    found = difference(after.scores, before.scores)
    return {"difference": found.value, "difference_ci95": [found.low, found.high]}
