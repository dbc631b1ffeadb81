"""The blocks of a recipe: frozen pydantic models that refuse unknown keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator


class Block(BaseModel):
    """Base of every block of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_flag_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # YAML reads yes, no, on and off as flags, and pydantic would take those for 1 and 0.
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise ValueError("expected a number or text (put quotes around yes, no, on and off)")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _rest_by_default(cls, value: Any, info: ValidationInfo) -> Any:
        # What a block leaves out is as in the default of its key, which differs from that of the block's own class.
        field = cls.model_fields[str(info.field_name)]
        if isinstance(field.default, Block) and field.annotation is type(field.default) and isinstance(value, Mapping):
            return _completed(field.default, value)
        return value

    def changed(self, *names: str) -> list[str]:
        """Those of the named keys that are not at their default: a run's record names them all, given or not."""
        fields = type(self).model_fields
        return [name for name in names if getattr(self, name) != fields[name].default]

    def _refuse_idle(self, why: str, *names: str) -> None:
        """Raise ValueError where one of the named keys is changed, though it does nothing; ``why``, and the mend."""
        for name in self.changed(*names):
            raise ValueError(f'"{name}" does nothing {why}')


def _completed(default: Block, given: Mapping[Any, Any]) -> dict[Any, Any]:
    completed: dict[Any, Any] = dict(default)
    for key, value in given.items():
        below: Any = completed.get(key)
        merges = isinstance(below, Block) and isinstance(value, Mapping)
        completed[key] = _completed(below, value) if merges else value
    return completed


class TokenizerConfig(Block):
    """A tokenizer trained on the run's own text, or one that is there already."""

    kind: Literal["char", "byte", "bpe"] = Field("bpe", description="char: one token a character, rare ones as bytes")
    vocabulary: int = Field(4096, ge=1, description="most tokens; of char, most characters beside the 256 bytes")
    path: str | None = Field(None, description="folder of a tokenizer to use instead of training one")
    chat: bool = Field(False, description="add ChatML tokens and template, so that prompts may be messages")

    @model_validator(mode="after")
    def _no_idle_keys(self) -> TokenizerConfig:
        idle = self.changed("kind", "vocabulary")
        if self.path is not None and idle:
            raise ValueError(f'"{idle[0]}" is of a tokenizer trained here; {self.path} has its own. Leave one out')
        if self.kind == "byte":
            self._refuse_idle("with kind: byte, which has all 256 bytes. Leave it out", "vocabulary")
        return self


class LoraConfig(Block):
    """Low-rank adapters beside frozen weights (Hu et al. 2021), through peft."""

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0, description="the adapters' output is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] = Field((), description="names of linear layers; none: all inside the blocks")
    merge: bool = Field(True, description="write one merged model; false: the adapter apart, beside its base")


def _path_shorthand(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


def _kind_shorthand(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


_DIALS = ("depth", "width", "heads", "context", "dropout", "init_std", "tokenizer")


class ModelConfig(Block):
    """Which model to start from: a Hugging Face folder (or hub name), or one created from a preset."""

    path: str | None = None
    create: str | None = Field(None, description="preset of a model made from nothing: demo, gpt2, llama, qwen3, lstm")
    endpoint: str | None = Field(
        None, description="a remote model, which has no weights here: only its prompt improves"
    )
    depth: int = Field(4, ge=1, description="layers: the size dial, from which width and heads follow")
    width: int | None = Field(None, ge=1, description="default: 32 a layer")
    heads: int | None = Field(None, ge=1, description="attention heads; default: one for each 32 of width")
    context: int = Field(256, ge=2, description="most tokens a sequence may have")
    dropout: float = Field(0.0, ge=0, lt=1)
    init_std: float = Field(
        0.02, gt=0, description="standard deviation of the initial weights (an LSTM's own matrices are Xavier-uniform)"
    )
    tokenizer: Annotated[TokenizerConfig | None, BeforeValidator(_kind_shorthand)] = Field(
        None, description="of a created model; a plain text is its kind"
    )
    lora: LoraConfig | None = Field(None, description="train low-rank adapters; the weights below stay as they are")

    @model_validator(mode="after")
    def _one_source(self) -> ModelConfig:
        if sum(source is not None for source in (self.path, self.create, self.endpoint)) != 1:
            raise ValueError('name one of "path" (a model folder), "create" (a preset) and "endpoint" (a remote model)')
        given = self.changed(*_DIALS)
        if given and (self.create is None or self.create == "demo"):
            whose = self.path or self.endpoint or "demo"
            raise ValueError(f'"{given[0]}" shapes a created model; {whose} has its own. Leave it out')
        if self.endpoint is not None:
            self._refuse_idle("of a remote model, whose weights are elsewhere. Leave it out", "lora")
        return self


def _file_or_count(value: Any) -> Any:
    counts = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if value is not None and not isinstance(value, str) and not counts:
        raise ValueError("expected a file of rows, or how many rows (at least 0)")
    return value


FileOrCount = Annotated[str | int | None, BeforeValidator(_file_or_count)]


RowFormat = Literal[
    "auto",
    "text",
    "messages",
    "prompt",
    "prompt_completion",
    "preference",
    "unpaired",
    "alpaca",
    "sharegpt",
    "verl",
    "question_answer",
]


class RowsConfig(Block):
    """One of several sources of rows; what it leaves out is taken from ``data``."""

    path: str
    weight: float = Field(1.0, gt=0, description="share of the rows drawn, relative to the other sources")
    format: RowFormat | None = None
    prompt_column: str | None = None
    completion_column: str | None = None


class DataConfig(Block):
    """Where problems come from: row files or a built-in task."""

    train: Annotated[
        str | tuple[Annotated[RowsConfig, BeforeValidator(_path_shorthand)], ...] | None,
        BeforeValidator(lambda value: [value] if isinstance(value, Mapping) else value),
    ] = Field(None, description="JSONL, JSON, CSV or Parquet file, or datasets folder; or a list of them: a mixture")
    format: RowFormat = Field("auto", description="the shape of the rows; auto: told by their columns")
    task: str | None = Field(None, description="built-in task: addition, sorting, reasoning_gym:NAME, ...")
    task_options: Mapping[str, Any] = Field(default_factory=dict, description="parameters of the task")
    labelled: FileOrCount = Field(None, description="rows with completions: a file, or how many of the task")
    dev: FileOrCount = Field(None, description="held-out rows the gate sees: a file or a number")
    test: FileOrCount = Field(None, description="held-out rows of the final report: a file or a number")
    skills: tuple[str, ...] = Field((), description="row files of old skills that no round may lose")
    prompt_column: str | None = Field(None, description="default: the format's own")
    completion_column: str | None = Field(None, description="default: the format's own")
    reference_columns: tuple[str, ...] = Field((), description="columns that hold the truth")
    augment: str | None = Field(None, description="path/to/file.py:function that changes a train row, anew each epoch")

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if (not self.train) == (self.task is None):
            raise ValueError('name either "train" (a row file) or "task" (a built-in task), not both')
        if self.task_options and self.task is None:
            raise ValueError('"task_options" are parameters of a task, and no "task" is named')
        return self


class SourceConfig(Block):
    """One source of plain text."""

    path: str
    weight: float = Field(1.0, gt=0, description="share of the tokens drawn, relative to the other sources")
    text_column: str | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        "text", description="column of row files, or several; their texts, and a list's, are joined by line breaks"
    )
    split_on: str | None = Field(None, min_length=1, description="cuts a text file into documents, as a blank line")


def _share_or_file(value: Any) -> Any:
    shares = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1
    if not isinstance(value, str) and not shares:
        raise ValueError("expected a file of text, or a share of it (at least 0, less than 1)")
    return value


def _sources(value: Any) -> Any:
    return [value] if isinstance(value, str | Mapping) else value


ShareOrFile = Annotated[float | str, BeforeValidator(_share_or_file)]


class CorpusConfig(Block):
    """Text to pretrain on: files, folders or datasets, several as a mixture; and the text held out."""

    train: Annotated[
        tuple[Annotated[SourceConfig, BeforeValidator(_path_shorthand)], ...],
        BeforeValidator(_sources),
    ] = Field(min_length=1, description="text, JSONL, JSON, CSV or Parquet files, datasets folders, folders of these")
    dev: ShareOrFile = Field(0.1, description="text held out: a file, or a share (of one document its end)")
    test: ShareOrFile = Field(0.0, description="text of the final report: a file, or a share")
    deduplicate: Literal["none", "exact", "near"] = Field("exact", description="drop documents seen before")
    near_threshold: float = Field(0.8, gt=0, le=1, description="share of 5-character shingles that makes two near")

    @model_validator(mode="after")
    def _no_idle_threshold(self) -> CorpusConfig:
        if self.deduplicate != "near":
            self._refuse_idle("without deduplicate: near. Set that, or leave it out", "near_threshold")
        return self


class RewardConfig(Block):
    """One reward: a built-in rule, ``module.function`` or ``path/to/file.py:function``."""

    use: str
    weight: float = 1.0
    time_limit: float = Field(30.0, gt=0, description="seconds one call may take")
    uses_reference: bool | None = Field(None, description="whether it may see reference columns; rules know themselves")
    options: Mapping[str, Any] = Field(default_factory=dict, description="keyword arguments of a built-in rule")


class PriceConfig(Block):
    """What a remote model costs, in the currency of ``most_money``, for a million tokens."""

    read: float = Field(0.0, ge=0)
    written: float = Field(0.0, ge=0)


class EndpointConfig(Block):
    """A remote model behind an OpenAI-compatible API."""

    url: str = Field(description="as http://localhost:8000/v1")
    model: str = Field(description="the model's name there")
    key_env: str | None = Field(None, description="environment variable that holds the key; the key stands nowhere")
    concurrency: int = Field(8, ge=1, description="calls at a time")
    timeout: float = Field(60.0, gt=0, description="seconds a call may take")
    retries: int = Field(5, ge=0, description="of a call that failed for no fault of its own, each waiting longer")
    price: PriceConfig = PriceConfig()
    most_tokens: int | None = Field(None, ge=1, description="read and written; the run ends with the round that spends")
    most_money: float | None = Field(None, gt=0, description="spent likewise, at `price`")

    @model_validator(mode="after")
    def _money_has_a_price(self) -> EndpointConfig:
        if self.most_money is not None and not any(self.price.model_dump().values()):
            raise ValueError('"most_money" needs "price", or nothing is ever spent. Add it, or use most_tokens')
        return self


class RefineConfig(Block):
    """Draft, critique, revision: how an answer is revised until its critics have nothing to say against it."""

    revisions: int = Field(3, ge=1, description="at most, of one draft")
    template: str = Field("{prompt}{draft}\n{critique}\n", description="what a revision of a text prompt goes on from")
    chat_template: str = Field(
        "{critique}\n\nWrite the whole answer again, mended.",
        description="of a conversation: what the user says to the draft",
    )
    held_out: bool = Field(True, description="measure held-out answers first as drafted, then as revised")

    @model_validator(mode="after")
    def _has_its_fields(self) -> RefineConfig:
        for key, wanted in (("template", ("prompt", "draft", "critique")), ("chat_template", ("critique",))):
            missing = [name for name in wanted if "{" + name + "}" not in getattr(self, key)]
            if missing:
                raise ValueError(f'"{key}" has no {{{missing[0]}}}. Say where it goes')
        return self


class LimitConfig(Block):
    """When a monitor speaks: past ``warn`` it warns, past ``roll_back`` the round goes."""

    warn: float | None = None
    roll_back: float | None = None


class MonitorsConfig(Block):
    """What is watched each round beside the reward, on samples of held-out problems (dev), drawn for it alone."""

    problems: int = Field(64, ge=0, description="dev problems that samples are drawn for after each round; 0: none")
    samples: int = Field(4, ge=1, description="of each")
    kl: LimitConfig = Field(LimitConfig(warn=2.0), description="nats a token from the base, more")
    entropy: LimitConfig = Field(LimitConfig(warn=0.2), description="share of the base's entropy, less")
    distinct: LimitConfig = Field(LimitConfig(warn=0.3), description="share of the base's distinct answers, less")
    length: LimitConfig = Field(LimitConfig(warn=2.0), description="times the base's length, or as many times shorter")
    vote_share: LimitConfig = Field(LimitConfig(warn=0.98), description="samples that agree with the majority, more")
    pass_at_k: LimitConfig = Field(LimitConfig(warn=0.05), description="below the base's pass@k")
    truth: LimitConfig = Field(LimitConfig(warn=0.05), description="below the base's truth, as report_rewards have it")


class SamplingConfig(Block):
    """How completions are drawn."""

    max_tokens: int = Field(256, ge=1)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()


Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Block):
    """Optimizer and schedule. ``lr`` is AdamW's; under Muon, ``matrix_lr`` drives the matrices inside the blocks."""

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(1e-5, gt=0)
    matrix_lr: float = Field(0.02, gt=0)
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    weight_decay: float = Field(0.01, ge=0)
    momentum: float = Field(0.95, ge=0, lt=1)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    final_share: float = Field(0.1, ge=0, le=1, description="the schedule ends at this share of the rate")
    clip: float = Field(1.0, gt=0, description="gradient norm")


class CurriculumConfig(Block):
    """Which problems a round draws, from the pass rates measured so far; those that all pass or all fail wait."""

    target: float = Field(0.5, gt=0, lt=1, description="pass rate that is drawn most")
    revisit: float = Field(0.1, ge=0, le=1, description="share of a round drawn whatever the pass rate")


class GateConfig(Block):
    """When a round is rolled back: where a paired one-sided bound shows a loss."""

    metric: Literal["reward", "likelihood"] = Field("reward", description="likelihood: mean log p per completion token")
    confidence: float = Field(0.95, gt=0.5, lt=1)
    enabled: bool = True


class BudgetConfig(Block):
    """Limits; the loop stops after the round that reaches one."""

    tokens_generated: int | None = Field(None, ge=1)
    tokens_trained: int | None = Field(None, ge=1)
    seconds: float | None = Field(None, gt=0)
    judge_calls: int | None = Field(None, ge=1)


class RuntimeConfig(Block):
    """The machine: device, compute type, threads, checkpoints."""

    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="compute; master weights stay float32")
    threads: int | None = Field(None, ge=1, description="default: all cores; pinned for the whole run")
    processes: int = Field(1, ge=1, description="runs at a time: above 1, the controls run beside the loop")
    checkpoint_steps: int = Field(
        50, ge=1, description="between mid-round checkpoints: optimizer steps; of `update` on fresh samples, rollouts"
    )
    keep_checkpoints: int = Field(2, ge=2)
    generate_batch: int = Field(256, ge=1, description="samples decoded together: one work unit")
    shard: bool = Field(False, description="FSDP2: weights in training, gradients, moments in shards over the ranks")
    disk_wait: float = Field(600.0, ge=0, description="seconds to wait for room when the disk is full")


Reward = Annotated[RewardConfig, BeforeValidator(lambda value: {"use": value} if isinstance(value, str) else value)]
Model = Annotated[ModelConfig, BeforeValidator(_path_shorthand)]
