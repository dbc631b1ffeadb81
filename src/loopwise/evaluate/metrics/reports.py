"""The figures of a whole set of samples that no mean of rewards gives: corpus BLEU, macro-F1, perplexity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loopwise.evaluate.parts import JudgePart, Part, RewardPart
from loopwise.evaluate.references import Figures, MetricReward
from loopwise.evaluate.rewards import RewardSum
from loopwise.types import LOST, Problem, Sample


def corpus_reports(
    feedback: RewardSum, problems: Sequence[Problem], samples: Sequence[Sample]
) -> dict[str, dict[str, Any]]:
    """Figures of ``samples`` [S] by the name of each reward that has any; ``problems`` [P] are theirs.

    Samples that could not be drawn are left out, and what a reward could not judge is of its figures; so is a reward
    that could judge nothing. Raises what its judge raises where that reads the samples again.
    """
    by_id = {problem.id: problem for problem in problems}
    samples = [sample for sample in samples if sample.finish_reason != LOST]
    owners = [by_id[sample.problem_id] for sample in samples]
    found = {part.name: _figures(part, owners, samples) for part in feedback.parts} if samples else {}
    return {name: dict(figures) for name, figures in found.items() if figures}


def _figures(part: Part, owners: Sequence[Problem], samples: Sequence[Sample]) -> Figures | None:
    if isinstance(part, JudgePart):
        of_judge = getattr(part.source, "report", None)
        return None if of_judge is None else dict(of_judge(owners, samples) or {})
    reward = getattr(part.call, "function", None) if isinstance(part, RewardPart) else None
    if not isinstance(part, RewardPart) or not isinstance(reward, MetricReward):
        return None
    batch = part.batch(owners, samples)
    columns = {**batch.columns, "prompts": batch.prompts, "completion_ids": batch.completion_ids}
    return reward.report([sample.text for sample in samples], columns)
