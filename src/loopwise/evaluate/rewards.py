"""Rewards and critics as one feedback source, and what is logged of it.

``reward(prompts, completions, completion_ids, log_extra=None, log_metric=None, **columns) -> list[float | None]``
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from loopwise.errors import ConfigError
from loopwise.evaluate.parts import Judged, LocalReward, Part, RewardPart, distinct_names
from loopwise.feedback import joined_feedback
from loopwise.types import LOST, REWARD_ROUNDING, Feedback, Problem, Sample, Scored


class RewardSum:
    """A feedback source: the weighted sum of several rewards, each masked where it could not judge; and what critics
    have to say.

    Use it as a context manager, or ``close`` it: rewards from files and modules run in processes of their own.
    ``compares``: some part sets the samples of one problem beside each other. ``knows_truth``: every reward is a
    built-in rule that reads references, so that the sum may be taken for the truth.
    """

    def __init__(self, parts: Sequence[Part], critics: Sequence[Part] = (), *, knows_truth: bool = False) -> None:
        self.parts = tuple(parts)
        self.critics = tuple(critics)
        self.everybody = (*self.parts, *self.critics)
        self.name = " + ".join(part.name for part in self.everybody)
        self.uses_reference = any(part.uses_reference for part in self.everybody)
        self.compares = any(part.compares for part in self.everybody)
        self.knows_truth = knows_truth

    def asking(self, policy: Any) -> RewardSum:
        """The same feedback, whose parts ask ``policy`` where they ask the policy itself."""
        parts, critics = ([part.asking(policy) for part in group] for group in (self.parts, self.critics))
        return RewardSum(parts, critics, knows_truth=self.knows_truth)

    @classmethod
    def from_functions(
        cls,
        functions: Sequence[Callable[..., Any]],
        weights: Sequence[float] | None = None,
        *,
        reference_columns: Collection[str] = (),
        label_free: bool = False,
    ) -> RewardSum:
        """The sum of Python callables, called in this process, where nothing can cut off a hang.

        ``weights`` defaults to ones. The functions see ``reference_columns`` unless the run is ``label_free``.
        Raises ConfigError where there are not as many weights as functions.
        """
        weights = [1.0] * len(functions) if weights is None else list(weights)
        if len(weights) != len(functions):
            raise ConfigError(f"{len(weights)} weights for {len(functions)} rewards. Give one weight a reward.")
        hidden = frozenset(reference_columns) if label_free else frozenset()
        names = distinct_names([getattr(function, "__name__", type(function).__name__) for function in functions])
        return cls(
            [
                RewardPart(name, weight, not label_free, LocalReward(function), hidden)
                for name, weight, function in zip(names, weights, functions, strict=True)
            ]
        )

    async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Feedback:
        """Judge ``samples`` [S] of ``problems``; a failing reward spoils its samples, never the run.

        A call that fails is repeated sample by sample. Samples that fail again are masked in every part (a sum without
        a penalty that failed would be a pass nobody gave), with the reason in
        ``extra[i]["error"]``; once MOST_LOST_WORKERS more calls hung or crashed, so is the rest of the batch. The
        metric ``failed/{name}`` counts the spoiled samples of a part.
        """
        drawn = [place for place, sample in enumerate(samples) if sample.finish_reason != LOST]
        if len(drawn) < len(samples):
            return _with_lost(await self.judge(problems, [samples[place] for place in drawn]), drawn, len(samples))
        owners = _owners(problems, samples)
        judged = await asyncio.gather(*(part.judge(owners, samples) for part in self.everybody))
        return self._feedback(judged, len(samples))

    async def check(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Feedback:
        """Try every reward on real samples before a run, and return what they said.

        Raises RewardError naming the reward, what it did, on which prompt, and the mend.
        """
        owners = _owners(problems, samples)
        judged = [await part.check(owners, samples) for part in self.everybody]
        return self._feedback(judged, len(samples))

    def close(self) -> None:
        """End the processes that rewards run in, and what judges hold."""
        for part in self.everybody:
            part.close()

    def __enter__(self) -> RewardSum:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _feedback(self, judged: Sequence[Judged], count: int) -> Feedback:
        rewards = np.full((count, len(self.parts)), np.nan)
        extra: list[dict[str, Any]] = [{} for _ in range(count)]
        metrics: dict[str, list[float]] = {}
        for column, said in enumerate(judged[: len(self.parts)]):
            rewards[:, column] = [math.nan if reward is None else reward for reward in said.rewards]
        for part, said in zip(self.everybody, judged, strict=True):
            for merged, own in zip(extra, said.extra, strict=True):
                merged |= own
            for name, values in said.metrics.items():
                metrics.setdefault(name, []).extend(values)
            metrics[f"failed/{part.name}"] = [float(len(said.errors))]
        scores, words = judged[: len(self.parts)], judged[len(self.parts) :]
        for key, parts, said_by in (("error", self.parts, scores), ("critic_error", self.critics, words)):
            for position in sorted({position for said in said_by for position in said.errors}):
                reasons = [(p.name, said.errors.get(position)) for p, said in zip(parts, said_by, strict=True)]
                extra[position][key] = "; ".join(f"{name}: {reason}" for name, reason in reasons if reason)
                if key == "error":
                    rewards[position] = math.nan
        for part, said in zip(self.parts, scores, strict=True):
            for position in said.abstained:
                extra[position].setdefault("abstained", part.name)
                rewards[position] = math.nan
        return Feedback(
            parts=tuple(part.name for part in self.parts),
            weights=tuple(part.weight for part in self.parts),
            rewards=rewards,
            mask=~np.isnan(rewards),
            preferences=tuple(pair for said in scores for pair in said.preferences),
            critiques=_joined_words(words, count) if words else None,
            extra=tuple(extra),
            metrics={name: math.fsum(values) / len(values) for name, values in metrics.items()},
        )


def feedback_metrics(scored: Scored) -> dict[str, float]:
    """TRL's reward metrics over the judged samples; one that cannot be taken is left out.

    ``reward`` is the mean total, ``reward_std`` the mean over groups of the standard deviation inside one (n - 1;
    0 for a single sample), ``frac_reward_zero_std`` the share of groups from which an advantage says nothing.
    """
    feedback = scored.feedback
    totals = feedback.totals
    spreads = np.array([_std(totals[members]) for _, members in scored.groups() if members])
    spreads = spreads[~np.isnan(spreads)]
    metrics = {
        "reward": _mean(totals),
        "reward_std": _mean(spreads),
        "frac_reward_zero_std": _mean((spreads < REWARD_ROUNDING).astype(np.float64)),
    }
    for column, name in enumerate(feedback.parts):
        rewards = np.where(feedback.mask[:, column], feedback.rewards[:, column], np.nan)
        metrics |= {f"rewards/{name}/mean": _mean(rewards), f"rewards/{name}/std": _std(rewards)}
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def _joined_words(judged: Sequence[Judged], count: int) -> tuple[str | None, ...]:
    """What all critics say of each sample, one after the other."""
    said = [[one.critiques[place] for one in judged if one.critiques[place]] for place in range(count)]
    return tuple("\n".join(filter(None, words)) or None for words in said)


def _with_lost(feedback: Feedback, drawn: Sequence[int], count: int) -> Feedback:
    """Feedback on ``count`` samples, from that on those that were drawn; the others are masked."""
    lost = sorted(set(range(count)) - set(drawn))
    nothing = Feedback(
        feedback.parts,
        feedback.weights,
        np.full((len(lost), len(feedback.parts)), np.nan),
        np.zeros((len(lost), len(feedback.parts)), dtype=bool),
        critiques=None if feedback.critiques is None else (None,) * len(lost),
        extra=({"error": "it could not be drawn"},) * len(lost),
    )
    places = {sample: place for place, sample in enumerate((*drawn, *lost))}
    return joined_feedback([feedback, nothing]).at([places[sample] for sample in range(count)])


def _owners(problems: Sequence[Problem], samples: Sequence[Sample]) -> list[Problem]:
    by_id = {problem.id: problem for problem in problems}
    return [by_id[sample.problem_id] for sample in samples]


def _mean(values: np.ndarray) -> float:
    judged = values[~np.isnan(values)]
    return float(judged.mean()) if judged.size else math.nan


def _std(values: np.ndarray) -> float:
    judged = values[~np.isnan(values)]
    if judged.size == 0:
        return math.nan
    return float(judged.std(ddof=1)) if judged.size > 1 else 0.0
