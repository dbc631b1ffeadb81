"""The blocks of a judge's recipe: what it stands on, what it learns from, and how."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from loopwise.config.blocks import Block, OptimizerConfig, TokenizerConfig

Pooling = Literal["mean", "cls", "last", "attention"]
Reads = Literal["completion", "prompt", "both"]
JudgeRows = Literal["auto", "labels", "preference", "unpaired"]
_SHAPE = ("depth", "width", "heads", "context", "tokenizer")
_FINE_TUNING = OptimizerConfig(lr=5e-5, betas=(0.9, 0.999), schedule="linear", final_share=0.0)
_PRETRAINING = OptimizerConfig(lr=5e-4, betas=(0.9, 0.999), schedule="linear", warmup_steps=50)


def _kind_shorthand(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


class JudgeModelConfig(Block):
    """What a judge reads with: an encoder or a causal model that is there, or an encoder made here."""

    path: str | None = Field(None, description="folder of an encoder or causal model; package:NAME: in that package")
    create: Literal["bert"] | None = Field(None, description="bert: an encoder of that shape, made from nothing")
    depth: int = Field(4, ge=0, description="layers; 0: embeddings and positions alone, for pooling: attention")
    width: int = Field(128, ge=2)
    heads: int = Field(4, ge=1, description="attention heads")
    context: int = Field(128, ge=4, description="most tokens of a text")
    tokenizer: Annotated[TokenizerConfig, BeforeValidator(_kind_shorthand)] = Field(
        TokenizerConfig(), description="of a created encoder; a plain text is its kind"
    )
    pooling: Pooling | None = Field(
        None, description="how a text's states become one; default: mean, of a causal model last"
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="of the pooled state; of a created encoder everywhere")

    @model_validator(mode="after")
    def _one_source(self) -> JudgeModelConfig:
        if (self.path is None) == (self.create is None):
            raise ValueError('name either "path" (a model folder) or "create: bert", not both')
        if self.path is not None:
            self._refuse_idle(f"with {self.path}, which has its own shape. Leave it out", *_SHAPE)
        if self.width % self.heads:
            raise ValueError(f'"width" {self.width} cannot be split into {self.heads} heads. Change one of the two')
        if self.tokenizer.chat:
            raise ValueError('"tokenizer.chat" does nothing here: a judge reads conversations as lines. Leave it out')
        return self


JudgeModel = Annotated[
    JudgeModelConfig, BeforeValidator(lambda value: {"path": value} if isinstance(value, str) else value)
]


def _share_or_file(value: Any) -> Any:
    shares = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1
    if not isinstance(value, str) and not shares:
        raise ValueError("expected a file of rows, or a share of them (at least 0, less than 1)")
    return value


ShareOrFile = Annotated[float | str, BeforeValidator(_share_or_file)]


class JudgeDataConfig(Block):
    """Rows with the judgements to learn."""

    train: str = Field(description="JSONL, JSON, CSV or Parquet file, or datasets folder")
    format: JudgeRows = Field("auto", description="labels, preference or unpaired; auto: told by the columns")
    text_column: str = Field("text", description="of rows with labels")
    label_column: str = Field("label", description="of rows with labels")
    prompt_column: str | None = Field(None, description="default: prompt; of rows with labels: none")
    completion_column: str | None = Field(None, description="of unpaired rows (default: completion)")
    margin_column: str | None = Field(None, description="of preference rows: how much better the chosen one is")
    reads: Reads | None = Field(None, description="what it judges later; default: both, of rows with labels completion")
    dev: ShareOrFile = Field(0.1, description="held out for gate and calibration: a share by hash of the text, or rows")
    test: ShareOrFile = Field(0.1, description="held out for the final report: likewise")

    @model_validator(mode="after")
    def _leaves_some(self) -> JudgeDataConfig:
        if sum(share for share in (self.dev, self.test) if not isinstance(share, str)) >= 1:
            raise ValueError("dev and test leave nothing to train on. Lower the two shares")
        return self


class FittingConfig(Block):
    """Optimizer steps on texts."""

    steps: int = Field(100, ge=1, description="optimizer steps a round")
    batch_size: int = Field(32, ge=1, description="texts or pairs an optimizer step")
    tokens_per_pass: int = Field(4096, ge=1, description="padded tokens a forward pass, the dial of memory")
    max_length: int | None = Field(None, ge=2, description="tokens; longer texts are left out; default: the context")


class MaskedConfig(FittingConfig):
    """Masked-language-model pretraining on the run's own texts (BERT, Devlin et al. 2019)."""

    rounds: int = Field(2, ge=1)
    share: float = Field(0.15, gt=0, lt=1, description="of a text's tokens that are to be predicted")
    optimizer: OptimizerConfig = _PRETRAINING


class JudgingConfig(FittingConfig):
    """How a judge learns its judgements."""

    loss: Literal["bradley_terry", "hinge"] = Field("bradley_terry", description="of preference rows")
    margin: float = Field(0.0, ge=0, description="by which the chosen one's score is to be higher")
    optimizer: OptimizerConfig = _FINE_TUNING
