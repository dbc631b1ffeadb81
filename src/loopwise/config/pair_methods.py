"""Methods that learn from better and worse completions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from loopwise.config.blocks import Block
from loopwise.config.method import REFERENCE, Reference, Threshold
from loopwise.config.row_methods import SFTConfig


class PairingConfig(Block):
    """How `improve` makes pairs of a problem's samples: the better one is chosen, the worse one rejected."""

    take: Literal["extremes", "all"] = Field("extremes", description="best against worst of a problem, or every pair")
    least_gap: float = Field(0.0, ge=0, description="rewards of a pair differ by more than this")


class PairsConfig(SFTConfig):
    """What learning from better and worse completions of one prompt has in common; a batch is of pairs."""

    method: Literal["pairs"] = "pairs"  # type: ignore[assignment]
    threshold: float = Threshold
    pairs: PairingConfig = PairingConfig()

    @property
    def compares_samples(self) -> bool:
        return True


class MarginConfig(PairsConfig):
    """Margin ranking: `max(0, margin - (s_chosen - s_rejected))`, s the mean log-probability of a token."""

    method: Literal["margin"] = "margin"  # type: ignore[assignment]
    margin: float = Field(0.5, gt=0, description="of mean log-probabilities, in nats a token")
    sft_weight: float = Field(0.0, ge=0, description="of imitating the chosen completion besides")


class RRHFConfig(PairsConfig):
    """RRHF: every pair of a problem's samples ranked by mean log-probability, and the best one imitated; a batch is of
    problems."""

    method: Literal["rrhf"] = "rrhf"  # type: ignore[assignment]
    ranking_weight: float = Field(1.0, gt=0)
    sft_weight: float = Field(1.0, ge=0, description="of imitating the best completion")

    @model_validator(mode="after")
    def _ranks_every_pair(self) -> RRHFConfig:
        if self.pairs.changed("take"):
            raise ValueError('"pairs.take" does nothing with rrhf, which ranks every pair. Leave it out')
        return self


class SLiCConfig(PairsConfig):
    """SLiC-HF: `max(0, delta - (logp_chosen - logp_rejected))` of whole completions, and imitation of the chosen."""

    method: Literal["slic"] = "slic"  # type: ignore[assignment]
    delta: float = Field(1.0, gt=0, description="of log-probabilities, in nats")
    sft_weight: float = Field(0.1, ge=0, description="of imitating the chosen completion")


class DPOConfig(PairsConfig):
    """Direct preference optimisation against a reference model."""

    method: Literal["dpo"] = "dpo"  # type: ignore[assignment]
    beta: float = Field(0.1, gt=0, description="how strongly the reference holds")
    sft_weight: float = Field(0.0, ge=0, description="of imitating the chosen completion besides")
    reference: Reference = Field("base", description=REFERENCE)


class IPOConfig(DPOConfig):
    """Identity preference optimisation: the margin of a token's mean over the reference is drawn to `1 / (2 beta)`."""

    method: Literal["ipo"] = "ipo"  # type: ignore[assignment]


class SPINConfig(DPOConfig):
    """Self-play: chosen is the labelled completion, rejected an own sample; the reference is the last iterate."""

    method: Literal["spin"] = "spin"  # type: ignore[assignment]
    reference: Reference = Field("accepted", description=REFERENCE)

    @model_validator(mode="after")
    def _pairs_without_rewards(self) -> SPINConfig:
        self._refuse_idle("with spin, whose pairs need no rewards. Leave it out", "pairs")
        return self

    @property
    def compares_samples(self) -> bool:
        return False

    @property
    def uses_gold(self) -> bool:
        return True
