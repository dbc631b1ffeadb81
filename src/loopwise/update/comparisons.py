"""Better and worse completions of one prompt: what a step learns from them, cut into forward passes.

Margin ranking, RRHF (Yuan et al. 2023), SLiC-HF (Zhao et al. 2023), DPO (Rafailov et al. 2023), IPO (Azar et al. 2024)
and SPIN (Chen et al. 2024); the equations stand at the losses. Shape letters: S rows, C tokens, K comparisons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from loopwise.config.methods import DPOConfig, IPOConfig, MarginConfig, RRHFConfig, SLiCConfig
from loopwise.models.logps import TokenRow, score_tokens
from loopwise.update.fitting import Batch, tokens_read
from loopwise.update.losses import dpo_loss, ipo_loss, likelihood_loss, margin_loss, rrhf_loss, slic_loss
from loopwise.update.reference import Reference
from loopwise.update.units import work_units

ComparingConfig = MarginConfig | RRHFConfig | SLiCConfig | DPOConfig


@dataclass(frozen=True)
class Comparison:
    """Completions of one prompt, the best first; of a pair the chosen one, then the rejected.

    ``rewards`` has one for each completion where several are ranked (RRHF). ``weight`` multiplies the loss of a pair.
    """

    rows: tuple[TokenRow, ...]
    rewards: tuple[float, ...] = ()
    weight: float = 1.0


@dataclass(frozen=True)
class Unit:
    """S rows that are read together, and K comparisons among them with the places of their rows, the best first."""

    rows: tuple[TokenRow, ...]
    comparisons: tuple[Comparison, ...]
    places: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(comparisons: Sequence[Comparison]) -> Unit:
        """Each row is read once, in however many comparisons it is."""
        rows: dict[TokenRow, int] = {}
        places = tuple(tuple(rows.setdefault(row, len(rows)) for row in one.rows) for one in comparisons)
        return Unit(tuple(rows), tuple(comparisons), places)


def cut(comparisons: Sequence[Comparison], tokens_per_pass: int) -> list[Unit]:
    """Work units of whole comparisons, of at most ``tokens_per_pass`` padded tokens.

    A comparison whose rows do not fit together is a unit of its own, however long.
    """
    rows = list(dict.fromkeys(row for one in comparisons for row in one.rows))
    home = {rows[place]: unit for unit, places in enumerate(work_units(rows, tokens_per_pass)) for place in places}
    together: dict[int, list[Comparison]] = {}
    alone: dict[tuple[TokenRow, ...], list[Comparison]] = {}
    for one in comparisons:
        homes = {home[row] for row in one.rows}
        if len(homes) > 1:
            alone.setdefault(one.rows, []).append(one)
        else:
            together.setdefault(homes.pop(), []).append(one)
    return [Unit.of(part) for part in (*(together[unit] for unit in sorted(together)), *alone.values())]


def compared(comparisons: Sequence[Comparison], config: ComparingConfig, reference: Reference | None) -> Batch[Unit]:
    """A batch whose loss is the mean over its comparisons, and over the tokens imitated, however it is cut.

    Metrics by TRL's names, means over the comparisons: ``logps/chosen`` and ``logps/rejected``, log-probabilities of
    the best and of the worst completion; with a reference ``rewards/chosen``, ``rewards/rejected``,
    ``rewards/margins`` and ``rewards/accuracies``, where a reward is ``beta (logp - logp of the reference)``.
    """
    units = cut(comparisons, config.tokens_per_pass)
    imitated = sum(one.rows[0].trained_tokens for one in comparisons)
    objective = Objective(config, reference, len(comparisons), max(1, imitated))
    return Batch(units, objective, tokens_read(list(dict.fromkeys(row for one in comparisons for row in one.rows))))


class Likelihoods(NamedTuple):
    """Log-probabilities of completions: ``totals`` over their tokens and ``means`` of a token, ``[S]`` or ``[K]``."""

    totals: torch.Tensor
    means: torch.Tensor

    @staticmethod
    def of(logps: torch.Tensor, mask: torch.Tensor) -> Likelihoods:
        """Of tokens' log-probabilities ``[S, C]`` where the mask ``[S, C]`` is 1."""
        totals = (logps * mask).sum(1)
        return Likelihoods(totals, totals / mask.sum(1).clamp(min=1))

    def at(self, places: torch.Tensor) -> Likelihoods:
        """Those of some rows."""
        return Likelihoods(self.totals[places], self.means[places])


@dataclass(frozen=True)
class Objective:
    """The loss of a work unit: its part of a batch of ``comparisons``, whose best completions have ``tokens``."""

    config: ComparingConfig
    reference: Reference | None
    comparisons: int
    tokens: int

    def __call__(self, module: nn.Module, unit: Unit) -> tuple[torch.Tensor, Mapping[str, torch.Tensor | float]]:
        """A scalar, and the unit's part of each metric."""
        scores = score_tokens(module, unit.rows)
        logps, mask = scores.logps, scores.mask.to(scores.logps.dtype)
        found = Likelihoods.of(logps, mask)
        best, worst = (torch.tensor([ends[n] for ends in unit.places], device=logps.device) for n in (0, -1))
        chosen, rejected = found.at(best), found.at(worst)
        figures = {"logps/chosen": chosen.totals, "logps/rejected": rejected.totals}
        if isinstance(self.config, RRHFConfig):
            loss = self.config.ranking_weight * _ranked(found, unit)
        elif isinstance(self.config, DPOConfig):
            assert self.reference is not None
            theirs = Likelihoods.of(self.reference.logps(module, unit.rows), mask)
            sides = (chosen, rejected, theirs.at(best), theirs.at(worst))
            figures |= _rewards(self.config.beta, *sides)
            loss = _weighed(_moved(self.config, *sides), unit)
        else:
            loss = _weighed(_hinge(self.config, chosen, rejected), unit)
        loss = loss / self.comparisons
        if self.config.sft_weight:
            loss = loss + self.config.sft_weight * likelihood_loss(logps[best], mask[best], self.tokens)
        return loss, {name: values.detach().sum() / self.comparisons for name, values in figures.items()}


def _weighed(each: torch.Tensor, unit: Unit) -> torch.Tensor:
    """The sum of the pairs' losses ``[K]``, each times its weight."""
    return (each * each.new_tensor([one.weight for one in unit.comparisons])).sum()


def _hinge(config: MarginConfig | SLiCConfig, chosen: Likelihoods, rejected: Likelihoods) -> torch.Tensor:
    """Losses ``[K]`` without a reference."""
    if isinstance(config, MarginConfig):
        return margin_loss(chosen.means, rejected.means, config.margin)
    return slic_loss(chosen.totals, rejected.totals, config.delta)


def _moved(
    config: DPOConfig,
    chosen: Likelihoods,
    rejected: Likelihoods,
    reference_chosen: Likelihoods,
    reference_rejected: Likelihoods,
) -> torch.Tensor:
    """Losses ``[K]`` of how far the policy moved from the reference."""
    if isinstance(config, IPOConfig):
        # Means, as TRL has it, so that the margin it draws to asks the same of completions of every length.
        return ipo_loss(chosen.means, rejected.means, reference_chosen.means, reference_rejected.means, config.beta)
    return dpo_loss(chosen.totals, rejected.totals, reference_chosen.totals, reference_rejected.totals, config.beta)


def _ranked(found: Likelihoods, unit: Unit) -> torch.Tensor:
    """RRHF's sum over the misranked pairs of every comparison."""
    means = found.means[[place for places in unit.places for place in places]]
    rewards = torch.tensor([reward for one in unit.comparisons for reward in one.rewards], dtype=torch.float64)
    groups = torch.tensor([number for number, places in enumerate(unit.places) for _ in places])
    return rrhf_loss(means, rewards.to(means.device), groups.to(means.device))


def _rewards(
    beta: float,
    chosen: Likelihoods,
    rejected: Likelihoods,
    reference_chosen: Likelihoods,
    reference_rejected: Likelihoods,
) -> dict[str, torch.Tensor]:
    """What the policy says the completions are worth (DPO, section 4), ``[K]`` each."""
    best = beta * (chosen.totals - reference_chosen.totals)
    worst = beta * (rejected.totals - reference_rejected.totals)
    accuracies = (best > worst).to(best.dtype)
    return {
        "rewards/chosen": best,
        "rewards/rejected": worst,
        "rewards/margins": best - worst,
        "rewards/accuracies": accuracies,
    }
