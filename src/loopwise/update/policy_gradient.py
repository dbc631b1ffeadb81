"""The policy gradient family: REINFORCE, RLOO, GRPO, Dr. GRPO and DAPO's loss; PPO stands on it.

One objective with interchangeable parts (config/methods.py): what a reward is compared with, how tokens are averaged,
where the ratio is clipped, a KL term and an entropy bonus. The papers stand at the losses. Left out: DAPO's resampling
until enough problems do not tie, and its penalty on length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from loopwise.config.methods import AdvantageConfig, PolicyGradientConfig
from loopwise.models.logps import TokenRow, TokenScores, score_tokens
from loopwise.models.policy import Policy
from loopwise.types import Context, Problem, Rollout, Sampling, Scored, Updated
from loopwise.update.advantages import RunningMean, advantages
from loopwise.update.experience import Experience, padded
from loopwise.update.fitting import Means, flops_without_gradient, tokens_read
from loopwise.update.learner import Learner
from loopwise.update.losses import clipped_policy_loss, kl_estimate, row_weights
from loopwise.update.online import Learned, Online, begin, minibatches, row_of, teaches
from loopwise.update.reference import Reference
from loopwise.update.units import work_units

MISMATCH = 1e-3
"""Mean difference, in nats a token, up to which the sampler's log-probabilities stand for the old policy's."""
Sums = dict[str, torch.Tensor | float]


class Shares(NamedTuple):
    """What a trained token of each row of a unit weighs in the policy's loss, and of any row in a mean over tokens."""

    rows: Sequence[float]
    token: float


@dataclass(frozen=True)
class PolicyGradient:
    """``samples`` are drawn of each problem, as ``sampling`` says; ``rounds`` is the run's number of rounds."""

    config: PolicyGradientConfig
    samples: int
    rounds: int
    sampling: Sampling

    @property
    def needs(self) -> frozenset[str]:
        """A reference where there is a KL term; the sampler's log-probabilities where ratios or k1 start from them."""
        kl, found = self.config.kl, {"weights", "token_ids"}
        if kl.weight and kl.reference != "adapters_off":
            found.add("reference")
        if self.config.updates_per_rollout > 1 or self._kl_in_reward:
            found.add("logprobs")
        return frozenset(found)

    def __call__(
        self, policy: Policy, state: Any, problems: Sequence[Problem], rollout: Rollout, context: Context
    ) -> Updated:
        online = self._begin(policy, state, problems, context)
        kl = self.config.kl
        reference = Reference.of(kl.reference, context.reference) if kl.weight else None

        def learn(learner: Learner, scored: Scored, step: int) -> Learned:
            return self._learn(learner, scored, (context.round, step), online.memory, reference)

        return online.run(problems, rollout, learn)

    @property
    def _advantage(self) -> AdvantageConfig:
        return self.config.advantage

    @property
    def _kl_in_reward(self) -> bool:
        return self.config.kl.weight > 0 and self.config.kl.estimator == "k1"

    def _begin(self, policy: Policy, state: Any, problems: Sequence[Problem], context: Context) -> Online:
        return begin(policy, state, problems, context, self.config, self.samples, self.rounds)

    def _learn(
        self,
        learner: Learner,
        scored: Scored,
        where: tuple[int, int],
        memory: dict[str, Any],
        reference: Reference | None,
    ) -> Learned:
        """Every pass and minibatch of a rollout."""
        config = self.config
        rewards = self._rewards(scored)
        kl, judged = np.zeros(len(rewards)), np.flatnonzero(~np.isnan(rewards)).tolist()
        means, read, read_besides = Means(), 0, 0
        if reference is not None and self._kl_in_reward and judged:
            rows = [row_of(scored, place) for place in judged]
            kl[judged] = self._kl(learner, scored, judged, reference)
            means.add({"kl": float(kl.sum()) / sum(row.trained_tokens for row in rows)})
            read_besides += tokens_read(rows)
        found = self._judge(scored, rewards, config.kl.weight * kl, memory)
        whole, read_for_ratios = self._with_old(learner, found)
        read_besides += read_for_ratios
        for turn in range(config.passes):
            groups = list(dict.fromkeys(whole.groups))
            for share in minibatches(groups, config.minibatches, learner.runtime, *where, turn):
                chosen = set(share)
                part = whole.of([n for n, group in enumerate(whole.groups) if group in chosen])
                taught = self._taught(part)
                means.add(self._step(learner, part, taught, reference))
                tokens = tokens_read(taught.rows)
                read += tokens
                read_besides += tokens if reference is not None and not self._kl_in_reward else 0
        flops = flops_without_gradient(language_model(learner.module), read_besides)
        return Learned(means.found(), read, flops, whole.places)

    def _rewards(self, scored: Scored) -> np.ndarray:
        """Rewards fp64 ``[S]`` to learn from, NaN where there is nothing to learn."""
        rewards = scored.feedback.totals.copy()
        for place in range(len(scored.samples)):
            if not teaches(scored, place, self.config):
                rewards[place] = np.nan
        return rewards

    def _kl(self, learner: Learner, scored: Scored, places: Sequence[int], reference: Reference) -> list[float]:
        """k1 of each sample's own tokens against the reference, as they were drawn."""
        rows = [row_of(scored, place) for place in places]
        temperature = self.sampling.temperature

        def read(module: nn.Module, part: Sequence[TokenRow]) -> torch.Tensor:
            return reference.logps(language_model(module), part, temperature)

        theirs = self._in_units(rows, read, learner)
        found = []
        for place, row, other in zip(places, rows, theirs, strict=True):
            own = np.asarray(scored.samples[place].logps)
            found.append(float(((own - other) * np.asarray(row.mask)).sum()))
        return found

    def _judge(self, scored: Scored, rewards: np.ndarray, penalties: np.ndarray, memory: dict[str, Any]) -> Experience:
        """The samples that could be judged, with their advantages."""
        config = self._advantage
        groups = [sample.group for sample in scored.samples]
        baseline: Any = config.baseline
        if baseline == "running":
            before = RunningMean(**memory.get("baseline", {}))
            memory["baseline"] = asdict(before.updated(rewards - penalties))
            # Nothing came before the first step: its own mean is the best there is.
            baseline = before.mean if before.count else "batch"
        found = advantages(rewards, groups, baseline, config.scale, penalties)
        tied = dict(zip(sorted(set(groups)), found.tied.tolist(), strict=True))
        places = np.flatnonzero(found.judged).tolist()
        rows = [row_of(scored, place) for place in places]
        return Experience(
            places=tuple(places),
            rows=tuple(rows),
            advantages=tuple(np.full(len(row.token_ids), found.values[n]) for n, row in zip(places, rows, strict=True)),
            old=tuple(np.asarray(scored.samples[place].logps or ()) for place in places),
            groups=tuple(groups[place] for place in places),
            counted=tuple(not (config.drop_tied and tied[groups[place]]) for place in places),
        )

    def _with_old(self, learner: Learner, found: Experience) -> tuple[Experience, int]:
        """Old log-probabilities where a ratio needs them: the sampler's, or read again if these are too far off.

        And the tokens that were read for it.
        """
        if self.config.updates_per_rollout == 1 or not found.rows:
            return replace(found, old=(np.zeros(0),) * len(found.rows)), 0
        tokens = 0
        temperature = self.sampling.temperature

        def read(module: nn.Module, part: Sequence[TokenRow]) -> torch.Tensor:
            return score_tokens(language_model(module), part, temperature).logps

        units = work_units(found.rows, self.config.tokens_per_pass)
        if all(len(old) == len(row.token_ids) for old, row in zip(found.old, found.rows, strict=True)):
            first = [found.rows[n] for n in units[0]]
            tried = self._in_units(first, read, learner)
            tokens += tokens_read(first)
            gaps = [np.abs(own - found.old[n]) for own, n in zip(tried, units[0], strict=True)]
            if np.concatenate(gaps).mean() <= MISMATCH:
                return found, tokens
        return replace(found, old=tuple(self._in_units(found.rows, read, learner))), tokens + tokens_read(found.rows)

    def _in_units(
        self, rows: Sequence[TokenRow], read: Callable[[nn.Module, Sequence[TokenRow]], torch.Tensor], learner: Learner
    ) -> list[np.ndarray]:
        """What ``read(model, rows)`` (``[S, C]`` or ``[S, C, N]``) says of each row's tokens, without a gradient."""
        units = work_units(rows, self.config.tokens_per_pass)

        def work(module: nn.Module, unit: Sequence[int]) -> list[np.ndarray]:
            values = read(module, [rows[n] for n in unit]).double().cpu().numpy()
            return [each[: len(rows[n].token_ids)] for n, each in zip(unit, values, strict=True)]

        found = [each for unit in learner.read(units, work) for each in unit]
        order = np.argsort([n for unit in units for n in unit])
        return [found[n] for n in order.tolist()]

    def _taught(self, part: Experience) -> Experience:
        """What has a gradient: an advantage of exactly 0 has none, unless there are terms beside the reward's."""
        beside = self.config.entropy_bonus or (self.config.kl.weight and not self._kl_in_reward)
        return part.of([n for n in range(len(part.rows)) if part.counted[n] and (beside or part.advantages[n].any())])

    def _step(
        self, learner: Learner, part: Experience, taught: Experience, reference: Reference | None
    ) -> dict[str, float]:
        """One optimizer step on a minibatch, of which ``taught`` has a gradient."""
        config = self.config
        counting = [n for n, counts in enumerate(part.counted) if counts]
        # A sample that is one action has one probability, whatever its length.
        sequences = config.ratio == "sequence"
        lengths = [part.rows[n].trained_tokens for n in counting]
        counts = [1] * len(counting) if sequences else lengths
        each = row_weights(counts, "sequence" if sequences else config.average, self.sampling.max_tokens)
        weights = dict(zip((part.places[n] for n in counting), each, strict=True))
        tokens = max(1, sum(lengths))

        def loss(module: nn.Module, unit: Sequence[int]) -> tuple[torch.Tensor, Mapping[str, torch.Tensor | float]]:
            share = taught.of(unit)
            return self._loss(module, share, Shares([weights[place] for place in share.places], 1 / tokens), reference)

        stepped = learner.step(work_units(taught.rows, config.tokens_per_pass), loss)
        return {name: value / tokens if name in _OF_TOKENS else value for name, value in stepped.items()}

    def _loss(
        self, module: nn.Module, share: Experience, weights: Shares, reference: Reference | None
    ) -> tuple[torch.Tensor, Sums]:
        """A unit's part of the loss, and sums over its tokens."""
        model = language_model(module)
        scores = score_tokens(model, share.rows, self.sampling.temperature, entropies=self.config.entropy_bonus > 0)
        return self._terms(model, scores, share, weights, reference)

    def _terms(
        self,
        module: nn.Module,
        scores: TokenScores,
        share: Experience,
        weights: Shares,
        reference: Reference | None,
    ) -> tuple[torch.Tensor, Sums]:
        config, logps, mask = self.config, scores.logps, (scores.mask != 0).to(scores.logps.dtype)
        weight = torch.tensor(weights.rows, dtype=logps.dtype, device=logps.device)[:, None]
        gains = padded(share.advantages, logps)
        old = padded(share.old, logps) if config.updates_per_rollout > 1 else None
        low, high = config.clip.low, config.clip.high
        if config.ratio == "sequence":
            before = None if old is None else (old * mask).sum(1, keepdim=True)
            policy = clipped_policy_loss((logps * mask).sum(1, keepdim=True), before, gains[:, :1], low, high)
            total = (policy.loss * weight).sum()
        else:
            policy = clipped_policy_loss(logps, old, gains, low, high)
            total = (policy.loss * mask * weight).sum()
        sums: Sums = {}
        if old is not None:
            below, above = ((clipped * mask).sum() for clipped in (policy.clipped_low, policy.clipped_high))
            sums |= {"clip_ratio/low_mean": below, "clip_ratio/high_mean": above}
            sums["clip_ratio/region_mean"] = below + above
        if reference is not None and not self._kl_in_reward:
            kl = kl_estimate(logps, reference.logps(module, share.rows, self.sampling.temperature), config.kl.estimator)
            # A row's weight beside a sequence's ratio is not a token's.
            held = weights.token if config.ratio == "sequence" else weight
            total = total + config.kl.weight * (kl * mask * held).sum()
            sums["kl"] = (kl.detach() * mask).sum()
        if scores.entropies is not None:
            total = total - config.entropy_bonus * weights.token * (scores.entropies * mask).sum()
        return total, sums


_OF_TOKENS = frozenset({"kl", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean", "value_error"})


def language_model(module: nn.Module) -> nn.Module:
    """The language model in a module that is trained: itself, unless it carries a value head."""
    inner = getattr(module, "language_model_inside", None)
    return inner if isinstance(inner, nn.Module) else module
