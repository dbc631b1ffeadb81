"""Methods that learn from rows and from words: imitation, Chain of Hindsight, Reflexion."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from loopwise.config.blocks import OptimizerConfig
from loopwise.config.method import Method, Threshold, TokensPerPass


class SFTConfig(Method):
    """Supervised fine-tuning on labelled rows."""

    method: Literal["sft"] = "sft"
    steps: int = Field(100, ge=1, description="optimizer steps a round")
    batch_size: int = Field(32, ge=1, description="rows an optimizer step")
    tokens_per_pass: int = TokensPerPass
    max_length: int | None = Field(None, ge=2, description="longest row in tokens; default: the model's context")
    too_long: Literal["error", "drop", "truncate"] = Field("error", description="truncate: the completion's end is cut")
    end_of_text: bool = Field(True, description="close completions with end-of-text, and learn it")
    optimizer: OptimizerConfig = OptimizerConfig()

    def steps_of(self, problems: int) -> int:
        """Optimizer steps of a round, however many problems it draws."""
        return self.steps


class RFTConfig(SFTConfig):
    """Rejection-sampling fine-tuning: keep what the reward passes, pool it, fine-tune on pool and labelled rows."""

    imitates_rows: ClassVar[bool] = True
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

    @property
    def uses_gold(self) -> bool:
        return self.keep == "gold"

    def most_samples(self, problems: int, samples: int) -> int:
        return problems * samples if self.keep in ("verified", "all") else 0


class ILFConfig(SFTConfig):
    """Imitation learning from language feedback: drafts are criticised and revised, the best revision of each is kept,
    and the model learns to write it at once."""

    imitates_rows: ClassVar[bool] = True
    method: Literal["ilf"] = "ilf"  # type: ignore[assignment]
    threshold: float = Threshold
    revisions: int = Field(4, ge=1, description="drawn of each draft that is criticised")
    choose: Literal["reward", "critic"] = Field(
        "reward", description="best revision by reward; critic: one that the critics have nothing to say against"
    )
    accepted_drafts: bool = Field(False, description="learn drafts that pass at once, too")
    labelled_share: float = Field(0.3, ge=0, le=1, description="share of each batch from the labelled rows")

    @property
    def reads_words(self) -> bool:
        return True

    def most_samples(self, problems: int, samples: int) -> int:
        return problems * samples * (1 + self.revisions)


class HindsightConfig(SFTConfig):
    """Chain of Hindsight: the model reads a worse answer and a better one under their names, and is asked for a good
    one."""

    method: Literal["hindsight"] = "hindsight"  # type: ignore[assignment]
    threshold: float = Threshold
    good: str = Field(" good: ", min_length=1, description="what stands before a good answer, and asks for one")
    bad: str = Field(" bad: ", min_length=1, description="what stands before a worse one")
    dropped: float = Field(0.15, ge=0, lt=1, description="share of the worse answer's tokens that is left out")
    labelled_share: float = Field(0.3, ge=0, le=1, description="share of each batch from the labelled rows")

    @property
    def compares_samples(self) -> bool:
        return True


class ReflexionConfig(Method):
    """Reflexion: after a miss a lesson is written and kept in the prompt for the next trial; no weights change."""

    trains: ClassVar[bool] = False
    method: Literal["reflexion"] = "reflexion"
    threshold: float = Threshold
    writes: Literal["model", "critic"] = Field("model", description="who writes the lesson; critic: its critique as is")
    trials: int = Field(3, ge=1, description="of one problem a round, the first without a new lesson")
    lessons: int = Field(3, ge=1, description="kept of one task, the newest")
    template: str = Field(
        "{prompt}{draft}\n{critique}\nIn one sentence, what to do differently: ",
        description="what the model writes a lesson after",
    )

    @property
    def reads_words(self) -> bool:
        return self.writes == "critic" or "{critique}" in self.template

    def most_samples(self, problems: int, samples: int) -> int:
        lessons = problems if self.writes == "model" else 0
        return self.trials * (problems * samples + lessons)

    def steps_of(self, problems: int) -> int:
        """Trials of a round, however many problems it draws."""
        return self.trials
