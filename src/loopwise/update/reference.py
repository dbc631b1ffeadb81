"""The reference model of a KL term or a preference loss: another policy, or the weights below the adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from loopwise.errors import ConfigError
from loopwise.models.logps import TokenRow, score_tokens
from loopwise.models.lora import adapters_off
from loopwise.models.policy import Policy


@dataclass(frozen=True)
class Reference:
    """``module`` is the reference's own, or None where it is the trained one without its adapters."""

    module: nn.Module | None

    @staticmethod
    def of(name: str, policy: Policy | None) -> Reference:
        """The reference of a recipe's name, given what the context has. Raises ConfigError where it has none."""
        if name == "adapters_off":
            return Reference(None)
        if policy is None or policy.weights is None:
            raise ConfigError(f'the update compares with a reference ("{name}"), and the run has none to give.')
        return Reference(policy.weights.module)

    @torch.no_grad()
    def logps(self, trained: nn.Module, rows: Sequence[TokenRow], temperature: float = 1.0) -> torch.Tensor:
        """Log-probabilities of each row's following tokens, as ``token_logps`` gives them, without a gradient."""
        if self.module is not None:
            return score_tokens(self.module, rows, temperature).logps
        with adapters_off(trained):
            return score_tokens(trained, rows, temperature).logps
