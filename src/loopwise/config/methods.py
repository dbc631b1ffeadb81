"""The ``update`` block of a recipe: one class for each way of learning; ``method`` chooses it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from loopwise.config.blocks import Block, OptimizerConfig

TokensPerPass: Any = Field(
    8192, ge=1, description="padded tokens a forward pass, the dial of memory; a longer row goes alone"
)
Threshold: Any = Field(1.0, description="a sample passes with a total reward of at least this")


class SFTConfig(Block):
    """Supervised fine-tuning on labelled rows."""

    method: Literal["sft"] = "sft"
    steps: int = Field(100, ge=1, description="optimizer steps a round")
    batch_size: int = Field(32, ge=1, description="rows an optimizer step")
    tokens_per_pass: int = TokensPerPass
    max_length: int | None = Field(None, ge=2, description="longest row in tokens; default: the model's context")
    too_long: Literal["error", "drop", "truncate"] = Field("error", description="truncate: the completion's end is cut")
    end_of_text: bool = Field(True, description="close completions with end-of-text, and learn it")
    optimizer: OptimizerConfig = OptimizerConfig()


class RFTConfig(SFTConfig):
    """Rejection-sampling fine-tuning: keep what the reward passes, pool it, fine-tune on pool and labelled rows."""

    method: Literal["rft"] = "rft"  # type: ignore[assignment]  # narrows the discriminator of its base
    keep: Literal["verified", "all", "gold", "none"] = Field("verified", description="all, gold, none: the controls")
    threshold: float = Threshold
    per_problem: int = Field(4, ge=1, description="distinct samples kept of one problem")
    labelled_share: float = Field(0.3, ge=0, le=1, description="share of each batch from the labelled rows")
    restart: bool = Field(False, description="train from the base each round (STaR, ReST-EM) instead of going on")
    pool: Literal["all", "round"] = Field("all", description="learn from what every round kept, or from this round's")

    @model_validator(mode="after")
    def _no_idle_keys(self) -> RFTConfig:
        if self.keep == "none":
            why = "with keep: none, which learns from the labelled rows alone. Leave it out"
            self._refuse_idle(why, "per_problem", "labelled_share", "pool")
        if self.keep == "gold":
            self._refuse_idle("with keep: gold, of which a problem has one. Leave it out", "per_problem")
        return self


class ILFConfig(SFTConfig):
    """Imitation learning from language feedback: drafts are criticised and revised, the best revision of each is kept,
    and the model learns to write it at once."""

    method: Literal["ilf"] = "ilf"  # type: ignore[assignment]
    threshold: float = Threshold
    revisions: int = Field(4, ge=1, description="drawn of each draft that is criticised")
    choose: Literal["reward", "critic"] = Field(
        "reward", description="best revision by reward; critic: one that the critics have nothing to say against"
    )
    accepted_drafts: bool = Field(False, description="learn drafts that pass at once, too")
    labelled_share: float = Field(0.3, ge=0, le=1, description="share of each batch from the labelled rows")


class HindsightConfig(SFTConfig):
    """Chain of Hindsight: the model reads a worse answer and a better one under their names, and is asked for a good
    one."""

    method: Literal["hindsight"] = "hindsight"  # type: ignore[assignment]
    threshold: float = Threshold
    good: str = Field(" good: ", min_length=1, description="what stands before a good answer, and asks for one")
    bad: str = Field(" bad: ", min_length=1, description="what stands before a worse one")
    dropped: float = Field(0.15, ge=0, lt=1, description="share of the worse answer's tokens that is left out")
    labelled_share: float = Field(0.3, ge=0, le=1, description="share of each batch from the labelled rows")


class ReflexionConfig(Block):
    """Reflexion: after a miss a lesson is written and kept in the prompt for the next trial; no weights change."""

    method: Literal["reflexion"] = "reflexion"
    threshold: float = Threshold
    writes: Literal["model", "critic"] = Field("model", description="who writes the lesson; critic: its critique as is")
    trials: int = Field(3, ge=1, description="of one problem a round, the first without a new lesson")
    lessons: int = Field(3, ge=1, description="kept of one task, the newest")
    template: str = Field(
        "{prompt}{draft}\n{critique}\nIn one sentence, what to do differently: ",
        description="what the model writes a lesson after",
    )


Reference = Literal["base", "accepted", "adapters_off"]
_REFERENCE = "compared with: the run's base, the policy the round starts from, or the weights below the adapters"


class PairingConfig(Block):
    """How `improve` makes pairs of a problem's samples: the better one is chosen, the worse one rejected."""

    take: Literal["extremes", "all"] = Field("extremes", description="best against worst of a problem, or every pair")
    least_gap: float = Field(0.0, ge=0, description="rewards of a pair differ by more than this")


class PairsConfig(SFTConfig):
    """What learning from better and worse completions of one prompt has in common; a batch is of pairs."""

    method: Literal["pairs"] = "pairs"  # type: ignore[assignment]
    threshold: float = Threshold
    pairs: PairingConfig = PairingConfig()


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
    reference: Reference = Field("base", description=_REFERENCE)


class IPOConfig(DPOConfig):
    """Identity preference optimisation: the margin of a token's mean over the reference is drawn to `1 / (2 beta)`."""

    method: Literal["ipo"] = "ipo"  # type: ignore[assignment]


class SPINConfig(DPOConfig):
    """Self-play: chosen is the labelled completion, rejected an own sample; the reference is the last iterate."""

    method: Literal["spin"] = "spin"  # type: ignore[assignment]
    reference: Reference = Field("accepted", description=_REFERENCE)

    @model_validator(mode="after")
    def _pairs_without_rewards(self) -> SPINConfig:
        self._refuse_idle("with spin, whose pairs need no rewards. Leave it out", "pairs")
        return self


class KLConfig(Block):
    """A pull towards a reference policy."""

    weight: float = Field(0.0, ge=0, description="0: the reference is never read")
    estimator: Literal["k1", "k2", "k3"] = Field("k3", description="k1 is taken off the reward, the others are losses")
    reference: Reference = Field("base", description=_REFERENCE)

    @model_validator(mode="after")
    def _no_idle_keys(self) -> KLConfig:
        if not self.weight:
            self._refuse_idle("with weight 0. Raise weight, or leave it out", "estimator", "reference")
        return self


class OnlineConfig(Block):
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


class PretrainConfig(Block):
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
