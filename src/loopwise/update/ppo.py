"""PPO (Schulman et al. 2017): a value head is the baseline, and each rollout is learned from several times.

The head reads the last hidden states of the policy's own model, so that policy and value share one network. The
reward, less a KL by k1 where that is asked for, comes with the last token. Left out: a value network of its own, and
the KL of each token in that token's reward (Ouyang et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from loopwise.config.methods import AdvantageConfig, PPOConfig, ValueConfig
from loopwise.models.logps import TokenRow, score_tokens
from loopwise.models.policy import Policy
from loopwise.types import Context, Problem
from loopwise.update.experience import Experience, padded
from loopwise.update.fitting import tokens_read
from loopwise.update.learner import Learner
from loopwise.update.losses import gae, value_loss
from loopwise.update.online import Online, begin
from loopwise.update.policy_gradient import PolicyGradient, Shares, Sums, language_model
from loopwise.update.reference import Reference
from loopwise.update.sharding import gathered


class WithValueHead(nn.Module):
    """A language model with a value of each state: ``states @ direction + bias``, 0 at the start."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.language_model_inside = model
        width = model.get_output_embeddings().weight.shape[-1]
        device = next(model.parameters()).device
        # Vectors, not a linear layer: Muon takes the matrices inside the blocks alone.
        self.direction = nn.Parameter(torch.zeros(width, device=device))
        self.bias = nn.Parameter(torch.zeros(1, device=device))

    def get_input_embeddings(self) -> Any:
        return self.language_model_inside.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        return self.language_model_inside.get_output_embeddings()

    def values(self, states: torch.Tensor) -> torch.Tensor:
        """States ``[S, T, H]`` to values fp32 ``[S, T]``."""
        # Not a product of matrices, which autocast would take in half precision.
        return (states.float() * self.direction).sum(-1) + self.bias


@dataclass(frozen=True)
class PPO(PolicyGradient):
    """The clipped objective with advantages by GAE from the model's own value head."""

    config: PPOConfig

    @property
    def needs(self) -> frozenset[str]:
        """As the family, but that old log-probabilities are read together with the values."""
        return super().needs if self._kl_in_reward else super().needs - {"logprobs"}

    @property
    def _advantage(self) -> AdvantageConfig:
        # What GAE starts from are the rewards as they are.
        return AdvantageConfig(baseline="none", drop_tied=self.config.advantage.drop_tied)

    def _begin(self, policy: Policy, state: Any, problems: Sequence[Problem], context: Context) -> Online:
        return begin(policy, state, problems, context, self.config, self.samples, self.rounds, _with_value_head)

    def _taught(self, part: Experience) -> Experience:
        # The value head learns from every sample.
        return part.of([n for n in range(len(part.rows)) if part.counted[n]])

    def _with_old(self, learner: Learner, found: Experience) -> tuple[Experience, int]:
        """Old log-probabilities, values, and from them advantages and returns, read in one pass."""
        if not found.rows:
            return found, 0

        def read(module: Any, part: Sequence[TokenRow]) -> torch.Tensor:
            scores = score_tokens(language_model(module), part, self.sampling.temperature, states=True)
            return torch.stack([scores.logps, module.values(scores.states)], dim=-1)

        both = self._in_units(found.rows, read, learner)
        old, values = tuple(each[:, 0] for each in both), tuple(each[:, 1] for each in both)
        masks = [np.array(row.mask) for row in found.rows]
        estimates = [
            _advantages(reward[0], value, mask, self.config.value)
            for reward, value, mask in zip(found.advantages, values, masks, strict=True)
        ]
        advantages = [advantage for advantage, _ in estimates]
        if self.config.advantage.scale == "batch":
            every = np.concatenate([each[mask != 0] for each, mask in zip(advantages, masks, strict=True)])
            mean, deviation = every.mean(), every.std() + 1e-8
            advantages = [(each - mean) / deviation * (mask != 0) for each, mask in zip(advantages, masks, strict=True)]
        returns = tuple(each for _, each in estimates)
        found = replace(found, advantages=tuple(advantages), old=old, values=values, returns=returns)
        return found, tokens_read(found.rows)

    def _loss(
        self, module: nn.Module, share: Experience, weights: Shares, reference: Reference | None
    ) -> tuple[torch.Tensor, Sums]:
        model, config = language_model(module), self.config
        bonus = config.entropy_bonus > 0
        scores = score_tokens(model, share.rows, self.sampling.temperature, entropies=bonus, states=True)
        total, sums = self._terms(model, scores, share, weights, reference)
        assert isinstance(module, WithValueHead)
        assert scores.states is not None
        values = module.values(scores.states)
        mask = (scores.mask != 0).to(values.dtype)
        error = value_loss(values, padded(share.values, values), padded(share.returns, values), config.value.clip)
        weight = torch.tensor(weights.rows, dtype=values.dtype, device=values.device)[:, None]
        sums["value_error"] = (error.detach() * mask).sum()
        return total + config.value.weight * (error * mask * weight).sum(), sums


def _with_value_head(model: nn.Module, memory: Mapping[str, Any]) -> tuple[nn.Module, Callable[[], Mapping[str, Any]]]:
    module = WithValueHead(model)
    if "value_head" in memory:
        with torch.no_grad():
            module.direction.copy_(memory["value_head"]["direction"])
            module.bias.copy_(memory["value_head"]["bias"])

    def remember() -> Mapping[str, Any]:
        head = {"direction": module.direction, "bias": module.bias}
        return {"value_head": {name: gathered(tensor.detach()).clone() for name, tensor in head.items()}}

    return module, remember


def _advantages(
    reward: float, values: np.ndarray, mask: np.ndarray, config: ValueConfig
) -> tuple[np.ndarray, np.ndarray]:
    """GAE of one sample whose reward comes with its last own token: advantages and returns fp64 ``[T]``."""
    rewards = np.zeros(len(values))
    rewards[np.flatnonzero(mask)[-1]] = reward
    rows = [torch.from_numpy(np.asarray(row, dtype=np.float64))[None] for row in (rewards, values, mask)]
    advantage, returned = gae(rows[0], rows[1], rows[2], config.gamma, config.lam)
    return advantage[0].numpy(), returned[0].numpy()
