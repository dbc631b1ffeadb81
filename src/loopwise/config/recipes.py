"""Recipes: what each command that trains reads. Unknown keys are refused, and the nearest known one is named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from loopwise.config.blocks import (
    Block,
    BudgetConfig,
    CorpusConfig,
    CurriculumConfig,
    DataConfig,
    EndpointConfig,
    GateConfig,
    Model,
    MonitorsConfig,
    RefineConfig,
    Reward,
    RewardConfig,
    RuntimeConfig,
    SamplingConfig,
)
from loopwise.config.judge_blocks import JudgeDataConfig, JudgeModel, JudgingConfig, MaskedConfig
from loopwise.config.methods import (
    DrGRPOConfig,
    ImproveUpdate,
    PretrainConfig,
    SFTConfig,
    TuneUpdate,
)


def _alone(runtime: RuntimeConfig) -> RuntimeConfig:
    if runtime.processes != 1:
        raise ValueError('"processes" runs controls beside the loop, and this command has none. Leave it out')
    return runtime


Alone = Annotated[RuntimeConfig, AfterValidator(_alone)]
Endpoints = Mapping[str, EndpointConfig]


class PretrainRecipe(Block):
    """``loopwise pretrain``: a model made from nothing (or continued) on plain text."""

    model: Model
    data: CorpusConfig
    update: PretrainConfig = PretrainConfig()
    rounds: int = Field(5, ge=1, description="held-out text is measured and samples are drawn after each")
    prompts: tuple[str, ...] = Field(("",), description="beginnings that samples go on from after each round")
    sampling: SamplingConfig = SamplingConfig(max_tokens=128, temperature=0.8)
    gate: GateConfig = GateConfig(metric="likelihood")
    seed: int = Field(0, ge=0)
    runtime: Alone = RuntimeConfig()
    budget: BudgetConfig = BudgetConfig()


class TuneRecipe(Block):
    """``loopwise tune``: supervised fine-tuning on rows with completions."""

    model: Model
    data: DataConfig
    update: TuneUpdate = SFTConfig()
    rounds: int = Field(1, ge=1, description="the dev split is evaluated after each")
    rewards: tuple[Reward, ...] = ()
    endpoints: Endpoints = Field(default_factory=dict, description="remote models that judges name")
    sampling: SamplingConfig = SamplingConfig(temperature=0.0)
    gate: GateConfig = GateConfig(metric="likelihood")
    seed: int = Field(0, ge=0)
    runtime: Alone = RuntimeConfig()
    budget: BudgetConfig = BudgetConfig()

    @property
    def has_idle_rewards(self) -> bool:
        """Whether it names rewards, though its gate measures none."""
        return bool(self.rewards) and self.gate.metric == "likelihood"


class ImproveRecipe(Block):
    """``loopwise improve``: the loop. Each round draws ``problems`` problems, ``samples`` samples of each."""

    model: Model
    data: DataConfig
    rewards: tuple[Reward, ...] = Field(
        (), validate_default=True, description="what scores a sample, summed by weight; default: the task's own"
    )
    report_rewards: tuple[Reward, ...] = Field((), description="reported, never decisive: the gold of a label-free run")
    critics: tuple[Reward, ...] = Field((), description="what says in words where a sample went wrong")
    refine: RefineConfig | None = Field(None, description="how drafts are revised after their critics")
    endpoints: Endpoints = Field(
        default_factory=dict, description="remote models that judges, critics and `generator` name"
    )
    generator: str | None = Field(None, description="endpoint that writes the samples; default: the model itself")
    monitors: MonitorsConfig = MonitorsConfig()
    update: ImproveUpdate = DrGRPOConfig()
    rounds: int = Field(4, ge=1)
    problems: int = Field(64, ge=1, description="problems a round")
    samples: int = Field(8, ge=1, description="samples a problem")
    curriculum: CurriculumConfig | None = Field(None, description="draw by measured difficulty")
    sampling: SamplingConfig = SamplingConfig()
    gate: GateConfig = GateConfig()
    controls: tuple[Literal["labelled", "unfiltered", "gold"], ...] = Field((), description="run beside the loop")
    label_free: bool = Field(False, description="a promise, enforced: no training signal may see a reference")
    seed: int = Field(0, ge=0)
    runtime: RuntimeConfig = RuntimeConfig()
    budget: BudgetConfig = BudgetConfig()

    @field_validator("rewards")
    @classmethod
    def _rewards_of_rows(cls, rewards: tuple[RewardConfig, ...], info: ValidationInfo) -> tuple[RewardConfig, ...]:
        data = info.data.get("data")
        if not rewards and data is not None and data.task is None:
            raise ValueError("expected at least 1 entry (only a built-in task has rewards of its own)")
        return rewards

    def steps(self, problems: int) -> int:
        """Steps of a round that draws so many problems: optimizer steps, or rollouts of an online method, or trials."""
        return self.update.steps_of(problems)

    @property
    def held_out_revisions(self) -> int:
        """How often a held-out answer is revised at most, to be measured as revised as well; 0 where none is."""
        return self.refine.revisions if self.refine is not None and self.refine.held_out else 0


class MaskedRecipe(Block):
    """The run before a judge's own, in which its encoder learns to fill in masked tokens."""

    model: JudgeModel
    data: JudgeDataConfig
    update: MaskedConfig = MaskedConfig()
    rounds: int = Field(2, ge=1)
    gate: GateConfig = GateConfig(metric="likelihood")
    seed: int = Field(0, ge=0)
    runtime: Alone = RuntimeConfig()
    budget: BudgetConfig = BudgetConfig()

    @property
    def sampling(self) -> SamplingConfig:
        """Nothing is ever drawn; what runs a recipe asks all the same."""
        return SamplingConfig()


class JudgeRecipe(Block):
    """``loopwise judge``: a classifier or reward model, from rows with judgements."""

    model: JudgeModel
    data: JudgeDataConfig
    masked: MaskedConfig | None = Field(None, description="first learn to fill in masked tokens of the same texts")
    update: JudgingConfig = JudgingConfig()
    rounds: int = Field(3, ge=1, description="the dev rows are judged after each")
    gate: GateConfig = Field(
        GateConfig(), description="metric reward: judgements that are right; likelihood: their log-probability"
    )
    seed: int = Field(0, ge=0)
    runtime: Alone = RuntimeConfig()
    budget: BudgetConfig = BudgetConfig()

    @model_validator(mode="after")
    def _hinge_has_a_margin(self) -> JudgeRecipe:
        if self.update.loss == "hinge" and not (self.update.margin or self.data.margin_column):
            raise ValueError('"update.loss: hinge" needs "update.margin" or "data.margin_column": equal scores fit it')
        return self

    @property
    def sampling(self) -> SamplingConfig:
        """Nothing is ever drawn; what runs a recipe asks all the same."""
        return SamplingConfig()


Recipe = PretrainRecipe | TuneRecipe | ImproveRecipe
RunRecipe = Recipe | MaskedRecipe | JudgeRecipe
"""Every kind that a run of the journal has."""
COMMANDS: dict[str, type[Block]] = {
    "pretrain": PretrainRecipe,
    "tune": TuneRecipe,
    "improve": ImproveRecipe,
    "judge": JudgeRecipe,
}
"""The command that runs each kind of recipe."""


def config_hash(recipe: Block) -> str:
    """SHA-256 of the resolved recipe in canonical JSON."""
    return hashlib.sha256(json.dumps(recipe.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
