"""What is watched beside the reward after each round, on held-out problems: signs of hacking, collapse and drift."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from loopwise.config.blocks import MonitorsConfig
from loopwise.config.recipes import ImproveRecipe
from loopwise.evaluate.groups import group_means, group_metrics
from loopwise.evaluate.stats import paired
from loopwise.models.logps import TokenRow, score_tokens
from loopwise.models.policy import Policy
from loopwise.rollout import Roller
from loopwise.runs.rows import Place
from loopwise.runtime import Runtime
from loopwise.tasks.base import Streams
from loopwise.types import LOST, REWARD_ROUNDING, Feedback, Problem, Sampling, Scored
from loopwise.update.units import work_units

PHASE = "monitor"
TOKENS_AT_ONCE = 8192


@dataclass(frozen=True)
class Watched:
    """What was seen of a policy: ``figures`` by name, and the scores of each problem, float64 ``[P]``, for those that
    are compared with the base's. ``truth`` names the scores that tell it; None: nobody knows the truth.
    """

    figures: Mapping[str, float]
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    truth: Literal["truth", "reward"] | None = None


@dataclass(frozen=True)
class Crossing:
    """A monitor past its limit, in words; ``rolls_back``: past the second one."""

    name: str
    words: str
    rolls_back: bool


def monitored(recipe: ImproveRecipe, streams: Streams) -> Sequence[Problem]:
    """The held-out problems that are watched after each round; none where the gate measures no rewards."""
    if recipe.gate.metric != "reward":
        return ()
    return streams.held_out.get("dev", ())[: recipe.monitors.problems]


@dataclass(frozen=True)
class Monitors:
    """Draws samples of some held-out problems and measures them; the same uniforms every round.

    ``ask`` reads the journal. ``threshold`` is the reward that passes.
    """

    config: MonitorsConfig
    roller: Roller
    problems: Sequence[Problem]
    sampling: Sampling
    threshold: float
    base: Policy
    runtime: Runtime
    ask: Callable[[Callable[[Any], Any]], Any]

    @cached_property
    def of_base(self) -> Watched:
        """The base, which every round is compared with."""
        return self.watch(0, self.base)

    def watch(self, number: int, policy: Policy) -> Watched:
        """Sample and measure the policy of a round. Without problems there is nothing to see."""
        if not self.problems:
            return Watched({})
        config = self.config
        scored = _drawn(self.roller.at(number, PHASE, self.sampling)(policy, self.problems, config.samples))
        truth = self._truth(number, scored)
        judged = scored if truth is None else replace(scored, feedback=truth)
        groups = group_metrics(judged, self.threshold, config.samples)
        figures = {
            "reward": _mean(scored.feedback.totals),
            **({} if truth is None else {"truth": _mean(truth.totals)}),
            **{name: groups[name] for name in ("pass_at_1", "pass_at_k", "distinct", "entropy") if name in groups},
            "length": groups.get("completions/mean_length", groups.get("completions/mean_characters", math.nan)),
            # A vote that is a reward knows which part of a text is the answer.
            "vote_share": scored.feedback.metrics.get("vote_share", _vote_share(scored)),
            **self._certainty(scored),
            **self._kl(policy, scored),
        }
        known = {name: value for name, value in figures.items() if not math.isnan(value)}
        scores = {"pass_at_k": _best(judged, self.threshold), "reward": _means(scored)}
        if truth is not None:
            return Watched(known, scores | {"truth": _means(judged)}, "truth")
        return Watched(known, scores, "reward" if getattr(self.roller.feedback, "knows_truth", False) else None)

    def crossings(self, now: Watched) -> list[Crossing]:
        """The limits that a policy is past."""
        return list(crossings(self.config, self.of_base, now))

    def _truth(self, number: int, scored: Scored) -> Feedback | None:
        """What the report's rewards said of the samples, where there are any."""
        if self.roller.report is None:
            return None
        place = Place(self.roller.run_id, number, 0, PHASE)
        found: Feedback | None = self.ask(lambda journal: journal.feedback_at(place, scored.samples, "report"))
        return found

    def _certainty(self, scored: Scored) -> dict[str, float]:
        values = [s.stats["self_certainty"] for s in scored.samples if "self_certainty" in s.stats]
        return {"self_certainty": math.fsum(values) / len(values)} if values else {}

    def _kl(self, policy: Policy, scored: Scored) -> dict[str, float]:
        """Nats a token from the base, by the k3 estimator on the policy's own samples (Schulman 2020).

        Of a policy that differs in its prompt alone there is none: the base would be shown the same prompt.
        """
        weights = self.base.weights
        if weights is None or any(sample.logps is None for sample in scored.samples):
            return {}
        if policy.weights is weights:
            return {"kl": 0.0} if policy is self.base else {}
        drawn = [sample for sample in scored.samples if sample.token_ids]
        rows = [TokenRow(sample.prompt_ids, sample.token_ids, sample.loss_mask) for sample in drawn]
        own: list[float] = []
        base: list[float] = []
        with torch.inference_mode(), self.runtime.autocast():
            for unit in work_units(rows, TOKENS_AT_ONCE):
                scores = score_tokens(weights.module, [rows[n] for n in unit], self.sampling.temperature or 1.0)
                base += scores.logps[scores.mask.bool()].float().cpu().tolist()
                for sample in (drawn[n] for n in unit):
                    own += [p for p, bit in zip(sample.logps or (), sample.loss_mask, strict=True) if bit]
        gap = np.asarray(base) - np.asarray(own)
        return {"kl": float(np.mean(np.exp(gap) - gap - 1.0))} if gap.size else {}


def crossings(config: MonitorsConfig, base: Watched, now: Watched) -> Iterator[Crossing]:
    """The limits that ``now`` is past, against ``base``.

    A model that has learned is sure of itself, too: where the truth is known and rose, entropy, distinct answers and
    vote share do not warn. They roll back all the same: that limit was set by hand, and in a label-free run the truth
    may decide nothing. A rise, and a fall of pass@k or truth, is one that a paired one-sided 95% bound shows.
    """
    figures, before = now.figures, base.figures
    if "kl" in figures:
        yield from _past(config, "kl", figures["kl"], "{value:.2g} nats a token from the base")
    learned = _has_learned(base, now)
    for crossing in _sure_of_itself(config, before, figures):
        if crossing.rolls_back or not learned:
            yield crossing
    if figures.get("length") and before.get("length"):
        ratio = max(figures["length"] / before["length"], before["length"] / figures["length"])
        words = f"answers went from {before['length']:.3g} to {figures['length']:.3g} in length"
        yield from _past(config, "length", ratio, words)
    yield from _past(config, "pass_at_k", _fall(base, now, "pass_at_k"), "pass@k is {value:.3f} below the base's")
    rose = figures.get("reward", math.nan) > before.get("reward", math.nan)
    words = f" while the reward rose from {before['reward']:.3g} to {figures['reward']:.3g}" if rose else ""
    yield from _past(config, "truth", _fall(base, now, "truth"), f"the truth is {{value:.3f}} below the base's{words}")


def _sure_of_itself(
    config: MonitorsConfig, before: Mapping[str, float], figures: Mapping[str, float]
) -> Iterator[Crossing]:
    """The limits of what learning and collapse have in common."""
    for name, what in (("entropy", "entropy"), ("distinct", "distinct answers")):
        if figures.get(name) is not None and before.get(name):
            share = figures[name] / before[name]
            words = f"{what} fell from {before[name]:.2g} to {figures[name]:.2g}"
            yield from _past(config, name, -share, words, below=True)
    if "vote_share" in figures:
        words = "{value:.0%} of the samples agree with the most frequent one of their problem"
        yield from _past(config, "vote_share", figures["vote_share"], words)


def _past(config: MonitorsConfig, name: str, value: float, words: str, *, below: bool = False) -> Iterator[Crossing]:
    limit = getattr(config, name)
    sign = -1.0 if below else 1.0
    for bound, rolls_back in ((limit.roll_back, True), (limit.warn, False)):
        if bound is not None and value > sign * bound:
            yield Crossing(name, f"{words.format(value=value)} (monitors.{name}, limit {bound:g})", rolls_back)
            return


def _has_learned(base: Watched, now: Watched) -> bool:
    """Whether the truth is known, and shown to have risen."""
    return now.truth is not None and _fall(now, base, now.truth) > 0


def _fall(base: Watched, now: Watched, name: str) -> float:
    """How far the mean over problems fell, 0 where the fall is not shown."""
    if name not in base.scores or name not in now.scores:
        return 0.0
    test = paired(now.scores[name], base.scores[name])
    return -test.difference if test.n and test.shows_loss else 0.0


def _best(scored: Scored, threshold: float) -> np.ndarray:
    """Whether any sample of each problem passes: float64 ``[P]``, NaN where none was judged."""
    totals = scored.feedback.totals
    best = [totals[members][~np.isnan(totals[members])] for _, members in scored.groups()]
    passing = threshold - REWARD_ROUNDING
    return np.array([float(values.max() >= passing) if values.size else math.nan for values in best])


def _means(scored: Scored) -> np.ndarray:
    """The mean total of each problem's samples: float64 ``[P]``, NaN where none was judged."""
    return group_means((members for _, members in scored.groups()), scored.feedback.totals)


def _drawn(scored: Scored) -> Scored:
    """Without the samples that could not be drawn, whose empty texts would agree with each other."""
    kept = [place for place, sample in enumerate(scored.samples) if sample.finish_reason != LOST]
    if len(kept) == len(scored.samples):
        return scored
    return Scored(scored.problems, tuple(scored.samples[place] for place in kept), scored.feedback.at(kept))


def _vote_share(scored: Scored) -> float:
    shares = []
    for _, members in scored.groups():
        texts = Counter(scored.samples[place].text.strip() for place in members)
        shares += [max(texts.values()) / len(members)] if members else []
    return math.fsum(shares) / len(shares) if shares else math.nan


def _mean(values: np.ndarray) -> float:
    judged = values[~np.isnan(values)]
    return float(judged.mean()) if judged.size else math.nan
