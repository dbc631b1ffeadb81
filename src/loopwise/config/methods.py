"""The ``update`` block of a recipe: one class for each way of learning; ``method`` chooses it.

Every method is imported from here; those of a family stand together in the modules beside this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from loopwise.config.blocks import OptimizerConfig
from loopwise.config.method import Method, Reference
from loopwise.config.online_methods import (
    AdvantageConfig,
    ClipConfig,
    DAPOConfig,
    DistillConfig,
    DrGRPOConfig,
    GRPOConfig,
    KLConfig,
    OnlineConfig,
    PolicyGradientConfig,
    PPOConfig,
    ReinforceConfig,
    RLOOConfig,
    ValueConfig,
)
from loopwise.config.pair_methods import (
    DPOConfig,
    IPOConfig,
    MarginConfig,
    PairingConfig,
    PairsConfig,
    RRHFConfig,
    SLiCConfig,
    SPINConfig,
)
from loopwise.config.row_methods import HindsightConfig, ILFConfig, ReflexionConfig, RFTConfig, SFTConfig

__all__ = [
    "AdvantageConfig",
    "ClipConfig",
    "DAPOConfig",
    "DPOConfig",
    "DistillConfig",
    "DrGRPOConfig",
    "GRPOConfig",
    "HindsightConfig",
    "ILFConfig",
    "IPOConfig",
    "ImproveUpdate",
    "KLConfig",
    "MarginConfig",
    "OnlineConfig",
    "PPOConfig",
    "PairingConfig",
    "PairsConfig",
    "PolicyGradientConfig",
    "PretrainConfig",
    "RFTConfig",
    "RLOOConfig",
    "RRHFConfig",
    "Reference",
    "ReflexionConfig",
    "ReinforceConfig",
    "SFTConfig",
    "SLiCConfig",
    "SPINConfig",
    "TuneUpdate",
    "ValueConfig",
    "optimizer_of",
    "reference_of",
    "rows_config",
]


class PretrainConfig(Method):
    """Next-token prediction on packed windows of text."""

    steps: int = Field(200, ge=1, description="optimizer steps a round")
    batch_size: int = Field(16, ge=1, description="windows an optimizer step")
    micro_batch_size: int | None = Field(None, ge=1, description="windows a forward pass; changes only dropout's draws")
    window: int | None = Field(None, ge=2, description="tokens a window; default: the context, at most 1024 if loaded")
    optimizer: OptimizerConfig = OptimizerConfig(name="muon", lr=3e-3, schedule="linear", warmup_steps=20)


def _method_or(default: str) -> Discriminator:
    def method(value: Any) -> str | None:
        named = value.get("method", default) if isinstance(value, Mapping) else getattr(value, "method", None)
        return named if isinstance(named, str) else None

    return Discriminator(method)


TuneUpdate = Annotated[
    Annotated[SFTConfig, Tag("sft")]
    | Annotated[DPOConfig, Tag("dpo")]
    | Annotated[IPOConfig, Tag("ipo")]
    | Annotated[SLiCConfig, Tag("slic")]
    | Annotated[MarginConfig, Tag("margin")],
    _method_or("sft"),
]
ImproveUpdate = Annotated[
    Annotated[DrGRPOConfig, Tag("dr_grpo")]
    | Annotated[GRPOConfig, Tag("grpo")]
    | Annotated[DAPOConfig, Tag("dapo")]
    | Annotated[RLOOConfig, Tag("rloo")]
    | Annotated[ReinforceConfig, Tag("reinforce")]
    | Annotated[PPOConfig, Tag("ppo")]
    | Annotated[RFTConfig, Tag("rft")]
    | Annotated[DPOConfig, Tag("dpo")]
    | Annotated[IPOConfig, Tag("ipo")]
    | Annotated[SPINConfig, Tag("spin")]
    | Annotated[SLiCConfig, Tag("slic")]
    | Annotated[MarginConfig, Tag("margin")]
    | Annotated[RRHFConfig, Tag("rrhf")]
    | Annotated[DistillConfig, Tag("distill")]
    | Annotated[ILFConfig, Tag("ilf")]
    | Annotated[HindsightConfig, Tag("hindsight")]
    | Annotated[ReflexionConfig, Tag("reflexion")],
    _method_or("dr_grpo"),
]


def rows_config(update: Any) -> SFTConfig:
    """How rows are tokenised for an update: its own keys, or the defaults where it learns from samples alone."""
    return update if isinstance(update, SFTConfig) else SFTConfig()


def reference_of(update: Any) -> Reference | None:
    """The model that an update compares with, if it does."""
    if isinstance(update, PolicyGradientConfig):
        return update.kl.reference if update.kl.weight else None
    return update.reference if isinstance(update, DPOConfig) else None


def optimizer_of(update: SFTConfig | OnlineConfig | PretrainConfig | ReflexionConfig) -> OptimizerConfig | None:
    """The optimizer of an update; None where no weights change."""
    return None if isinstance(update, ReflexionConfig) else update.optimizer
