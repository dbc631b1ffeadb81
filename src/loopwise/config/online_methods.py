"""Methods that learn from fresh samples: the policy gradient family, PPO and distillation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from loopwise.config.blocks import Block, OptimizerConfig
from loopwise.config.method import REFERENCE, Method, Reference, Threshold, TokensPerPass


class KLConfig(Block):
    """A pull towards a reference policy."""

    weight: float = Field(0.0, ge=0, description="0: the reference is never read")
    estimator: Literal["k1", "k2", "k3"] = Field("k3", description="k1 is taken off the reward, the others are losses")
    reference: Reference = Field("base", description=REFERENCE)

    @model_validator(mode="after")
    def _no_idle_keys(self) -> KLConfig:
        if not self.weight:
            self._refuse_idle("with weight 0. Raise weight, or leave it out", "estimator", "reference")
        return self


class OnlineConfig(Method):
    """What learning from fresh samples has in common: each step rolls out a few problems and learns from them."""

    method: Literal["online"] = "online"
    problems_per_step: int = Field(16, ge=1, description="problems a rollout; those of a round are dealt in turn")
    passes: int = Field(1, ge=1, description="times each rollout is learned from")
    minibatches: int = Field(1, ge=1, description="optimizer steps a pass")
    tokens_per_pass: int = TokensPerPass
    threshold: float = Threshold
    mask_truncated: bool = Field(False, description="learn nothing from samples cut at sampling.max_tokens")
    optimizer: OptimizerConfig = OptimizerConfig()

    @model_validator(mode="after")
    def _a_problem_for_each(self) -> OnlineConfig:
        if self.minibatches > self.problems_per_step:
            raise ValueError(
                f'"minibatches" are made of whole problems, and {self.problems_per_step} of them (problems_per_step) '
                f"make no {self.minibatches}. Lower it, or raise problems_per_step"
            )
        return self

    @property
    def updates_per_rollout(self) -> int:
        """Optimizer steps taken on one rollout."""
        return self.passes * self.minibatches

    def steps_of(self, problems: int) -> int:
        """Rollouts of a round that draws so many problems."""
        return -(-problems // self.problems_per_step)


class AdvantageConfig(Block):
    """What a reward is compared with, and in which unit."""

    baseline: Literal["none", "running", "batch", "group", "leave_one_out"] = Field(
        "group", description="mean reward taken off: of all steps so far, the step, the problem's samples, the others"
    )
    scale: Literal["none", "group", "batch"] = Field("none", description="standard deviation divided by")
    drop_tied: bool = Field(False, description="problems whose samples all score alike count in no mean")


class ClipConfig(Block):
    """How far the ratio to the sampling policy may go from 1 before its gradient ends."""

    low: float = Field(0.2, gt=0, lt=1)
    high: float = Field(0.2, gt=0)


_AVERAGE = "tokens weigh 1 / their sample's, 1 / the step's, or 1 / sampling.max_tokens"


class PolicyGradientConfig(OnlineConfig):
    """The policy gradient family; the methods differ in their defaults."""

    method: Literal["policy_gradient"] = "policy_gradient"  # type: ignore[assignment]
    advantage: AdvantageConfig = AdvantageConfig()
    average: Literal["sequence", "token", "constant"] = Field("constant", description=_AVERAGE)
    ratio: Literal["token", "sequence"] = Field("token", description="what is compared with its old probability")
    clip: ClipConfig = ClipConfig()
    kl: KLConfig = KLConfig()
    entropy_bonus: float = Field(0.0, ge=0, description="weight of the mean entropy of a token")

    @model_validator(mode="after")
    def _sequences_weigh_alike(self) -> PolicyGradientConfig:
        if self.ratio == "sequence":
            self._refuse_idle("with ratio: sequence, where a sample is one action. Leave it out", "average")
        return self

    @model_validator(mode="after")
    def _no_idle_clip(self) -> PolicyGradientConfig:
        if self.updates_per_rollout == 1:
            why = "with one optimizer step a rollout, whose ratio is 1. Raise passes or minibatches, or leave it out"
            self._refuse_idle(why, "clip")
        return self

    @property
    def compares_samples(self) -> bool:
        return self.advantage.baseline in ("group", "leave_one_out")


class DrGRPOConfig(PolicyGradientConfig):
    """Dr. GRPO: reward less the group's mean, every token weighed alike whatever its sample's length."""

    method: Literal["dr_grpo"] = "dr_grpo"  # type: ignore[assignment]


class GRPOConfig(PolicyGradientConfig):
    """GRPO: rewards standardised in the group, the mean over each sample's tokens."""

    method: Literal["grpo"] = "grpo"  # type: ignore[assignment]
    advantage: AdvantageConfig = AdvantageConfig(scale="group")
    average: Literal["sequence", "token", "constant"] = Field("sequence", description=_AVERAGE)


class DAPOConfig(PolicyGradientConfig):
    """DAPO's loss: clipped higher above than below, the mean over the step's tokens, tied problems left out."""

    method: Literal["dapo"] = "dapo"  # type: ignore[assignment]
    advantage: AdvantageConfig = AdvantageConfig(scale="group", drop_tied=True)
    average: Literal["sequence", "token", "constant"] = Field("token", description=_AVERAGE)
    clip: ClipConfig = ClipConfig(high=0.28)


class ReinforceConfig(PolicyGradientConfig):
    """REINFORCE with a baseline: the mean reward so far."""

    method: Literal["reinforce"] = "reinforce"  # type: ignore[assignment]
    advantage: AdvantageConfig = AdvantageConfig(baseline="running")


class RLOOConfig(PolicyGradientConfig):
    """RLOO: reward less the mean of the problem's other samples."""

    method: Literal["rloo"] = "rloo"  # type: ignore[assignment]
    advantage: AdvantageConfig = AdvantageConfig(baseline="leave_one_out")
    ratio: Literal["token", "sequence"] = Field("sequence", description="what is compared with its old probability")


class ValueConfig(Block):
    """The value head of PPO, and how advantages follow from it (GAE)."""

    weight: float = Field(0.1, gt=0, description="of its loss")
    clip: float = Field(0.2, gt=0, description="how far a value may move from the one sampled under")
    gamma: float = Field(1.0, gt=0, le=1)
    lam: float = Field(0.95, ge=0, le=1)


class PPOConfig(PolicyGradientConfig):
    """PPO: a value head on the model's last states is the baseline, several passes over each rollout."""

    method: Literal["ppo"] = "ppo"  # type: ignore[assignment]
    passes: int = Field(4, ge=1, description="times each rollout is learned from")
    advantage: AdvantageConfig = AdvantageConfig(baseline="none", scale="batch")
    average: Literal["sequence", "token", "constant"] = Field("token", description=_AVERAGE)
    value: ValueConfig = ValueConfig()

    @model_validator(mode="after")
    def _sequences_weigh_alike(self) -> PPOConfig:
        if self.ratio == "sequence":
            raise ValueError('"ratio" is of tokens with ppo, where each has an advantage of its own. Leave it out')
        return self

    @model_validator(mode="after")
    def _value_is_the_baseline(self) -> PPOConfig:
        if self.advantage.baseline != "none" or self.advantage.scale == "group":
            raise ValueError(
                "the value head is the baseline of ppo, and its scale is none or batch. Leave advantage out"
            )
        if self.updates_per_rollout == 1 and self.value.changed("clip"):
            raise ValueError(
                '"value.clip" does nothing with one optimizer step a rollout, where values are as they were. Raise '
                "passes or minibatches, or leave it out"
            )
        return self


class DistillConfig(OnlineConfig):
    """On-policy distillation (GKD): on its own samples, the model learns a teacher's distribution of each token."""

    method: Literal["distill"] = "distill"  # type: ignore[assignment]
    teacher: str = Field(description="model folder (or hub name) with the same tokenizer")
    divergence: float = Field(1.0, ge=0, le=1, description="0: forward KL, 1: reverse KL, between: Jensen-Shannon")
