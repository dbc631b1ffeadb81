"""Recipes: frozen pydantic models that refuse unknown keys and name the nearest known one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from loopwise.config_errors import explain, found
from loopwise.errors import ConfigError


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


class ModelConfig(Block):
    """Which model to start from: a Hugging Face folder (or hub name), or one created from a preset."""

    path: str | None = None
    create: str | None = Field(None, description="preset of a model made from nothing, for example demo")

    @model_validator(mode="after")
    def _one_source(self) -> ModelConfig:
        if (self.path is None) == (self.create is None):
            raise ValueError('name either "path" (a model folder) or "create" (a preset), not both')
        return self


def _file_or_count(value: Any) -> Any:
    counts = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if value is not None and not isinstance(value, str) and not counts:
        raise ValueError("expected a file of rows, or how many rows (at least 0)")
    return value


FileOrCount = Annotated[str | int | None, BeforeValidator(_file_or_count)]


class DataConfig(Block):
    """Where problems come from: a row file or a built-in task."""

    train: str | None = Field(None, description="JSONL, JSON, CSV or Parquet file of rows")
    task: str | None = Field(None, description="built-in task, for example addition")
    labelled: FileOrCount = Field(None, description="rows with completions: a file, or how many of the task")
    dev: FileOrCount = Field(None, description="held-out rows the gate sees: a file or a number")
    test: FileOrCount = Field(None, description="held-out rows of the final report: a file or a number")
    skills: tuple[str, ...] = Field((), description="row files of old skills that no round may lose")
    prompt_column: str = "prompt"
    completion_column: str = "completion"
    reference_columns: tuple[str, ...] = Field((), description="columns that hold the truth")

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if (self.train is None) == (self.task is None):
            raise ValueError('name either "train" (a row file) or "task" (a built-in task), not both')
        return self


class RewardConfig(Block):
    """One reward: a built-in rule, ``module.function`` or ``path/to/file.py:function``."""

    use: str
    weight: float = 1.0
    time_limit: float = Field(30.0, gt=0, description="seconds one call may take")
    uses_reference: bool | None = Field(None, description="whether it may see reference columns; rules know themselves")
    options: Mapping[str, Any] = Field(default_factory=dict, description="keyword arguments of a built-in rule")


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


class SFTConfig(Block):
    """Supervised fine-tuning on labelled rows."""

    method: Literal["sft"] = "sft"
    steps: int = Field(100, ge=1, description="optimizer steps a round")
    batch_size: int = Field(32, ge=1, description="rows an optimizer step")
    micro_batch_size: int | None = Field(None, ge=1, description="rows a forward pass; results do not depend on it")
    max_length: int | None = Field(None, ge=2, description="longest row in tokens; longer ones are an error")
    optimizer: OptimizerConfig = OptimizerConfig()


class RFTConfig(SFTConfig):
    """Rejection-sampling fine-tuning: keep what the reward passes, pool it, fine-tune on pool and labelled rows."""

    method: Literal["rft"] = "rft"  # type: ignore[assignment]  # narrows the discriminator of its base
    keep: Literal["verified", "all", "gold", "none"] = Field("verified", description="all, gold, none: the controls")
    threshold: float = Field(1.0, description="a sample passes with a total reward of at least this")
    per_problem: int = Field(4, ge=1, description="distinct samples kept of one problem")
    labelled_share: float = Field(0.3, ge=0, le=1, description="share of each batch from the labelled rows")
    restart: bool = Field(False, description="train from the base each round (STaR, ReST-EM) instead of going on")


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
    checkpoint_steps: int = Field(50, ge=1, description="optimizer steps between mid-round checkpoints")
    keep_checkpoints: int = Field(2, ge=2)
    generate_batch: int = Field(256, ge=1, description="samples decoded together: one work unit")
    disk_wait: float = Field(600.0, ge=0, description="seconds to wait for room when the disk is full")


def _reward_shorthand(value: Any) -> Any:
    return {"use": value} if isinstance(value, str) else value


def _model_shorthand(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


Reward = Annotated[RewardConfig, BeforeValidator(_reward_shorthand)]
Model = Annotated[ModelConfig, BeforeValidator(_model_shorthand)]


class TuneRecipe(Block):
    """``loopwise tune``: supervised fine-tuning on rows with completions."""

    model: Model
    data: DataConfig
    update: SFTConfig = SFTConfig()
    rounds: int = Field(1, ge=1, description="the dev split is evaluated after each")
    rewards: tuple[Reward, ...] = ()
    sampling: SamplingConfig = SamplingConfig(temperature=0.0)
    gate: GateConfig = GateConfig(metric="likelihood")
    seed: int = Field(0, ge=0)
    runtime: RuntimeConfig = RuntimeConfig()
    budget: BudgetConfig = BudgetConfig()


class ImproveRecipe(Block):
    """``loopwise improve``: the loop. Each round draws ``problems`` problems, ``samples`` samples of each."""

    model: Model
    data: DataConfig
    rewards: tuple[Reward, ...] = Field(min_length=1)
    report_rewards: tuple[Reward, ...] = Field((), description="reported, never decisive: the gold of a label-free run")
    update: RFTConfig = RFTConfig()
    rounds: int = Field(4, ge=1)
    problems: int = Field(64, ge=1, description="problems a round")
    samples: int = Field(8, ge=1, description="samples a problem")
    sampling: SamplingConfig = SamplingConfig()
    gate: GateConfig = GateConfig()
    controls: tuple[Literal["labelled", "unfiltered", "gold"], ...] = Field((), description="run beside the loop")
    label_free: bool = Field(False, description="a promise, enforced: no training signal may see a reference")
    seed: int = Field(0, ge=0)
    runtime: RuntimeConfig = RuntimeConfig()
    budget: BudgetConfig = BudgetConfig()


Recipe = TuneRecipe | ImproveRecipe
R = TypeVar("R", TuneRecipe, ImproveRecipe)


def load_recipe(kind: type[R], path: str | Path, overrides: Sequence[str] = ()) -> R:
    """Read a YAML recipe and apply dotted overrides such as ``update.optimizer.lr=1e-4``.

    Relative paths inside are taken from the recipe's folder. Raises ConfigError naming file, key and mend.
    """
    path = Path(path)
    try:
        content = _parse_yaml(path.read_text(encoding="utf-8-sig"), str(path))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such recipe. `loopwise improve --help` shows an example.") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: a folder, not a recipe. Name the YAML file in it.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text. Name a YAML file, saved as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error}). Check its permissions.") from None
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: expected keys such as model, data, rewards; found {found(content)}. "
            "`loopwise improve --help` shows an example."
        )
    for override in overrides:
        _override(content, override)
    return resolve_paths(parse_recipe(kind, content, str(path)), path.parent)


def parse_recipe(kind: type[R], content: Mapping[str, Any], place: str = "recipe") -> R:
    """Validate a mapping as a recipe. Raises ConfigError naming the key and the mend."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        other, command = (TuneRecipe, "tune") if kind is ImproveRecipe else (ImproveRecipe, "improve")
        if _fits(other, content):
            raise ConfigError(f"{place}: this is a recipe of `loopwise {command}`. Run that command on it.") from None
        raise ConfigError(explain(kind, place, error)) from None


def resolve_paths(recipe: R, folder: Path) -> R:
    """Make the recipe's file names absolute; relative ones are taken from ``folder``."""

    def resolve(value: str) -> str:
        return str((folder / value).absolute())

    def reward(config: RewardConfig) -> RewardConfig:
        file, colon, function = config.use.rpartition(":")
        return config.model_copy(update={"use": f"{resolve(file)}:{function}"}) if colon else config

    data = recipe.data
    files = {n: resolve(v) for n in ("train", "dev", "test", "labelled") if isinstance(v := getattr(data, n), str)}
    changes: dict[str, Any] = {
        "data": data.model_copy(update={**files, "skills": tuple(map(resolve, data.skills))}),
        "rewards": tuple(map(reward, recipe.rewards)),
    }
    if isinstance(recipe, ImproveRecipe):
        changes["report_rewards"] = tuple(map(reward, recipe.report_rewards))
    if recipe.model.path and (folder / recipe.model.path).is_dir():
        changes["model"] = recipe.model.model_copy(update={"path": resolve(recipe.model.path)})
    return recipe.model_copy(update=changes)


def config_hash(recipe: Block) -> str:
    """SHA-256 of the resolved recipe in canonical JSON."""
    return hashlib.sha256(json.dumps(recipe.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a number, as YAML 1.2 does, and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key that is no plain word", problem_mark=key_node.start_mark)
            if key_node.value in seen:
                raise yaml.MarkedYAMLError(problem=f'key "{key_node.value}" twice', problem_mark=key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*(\.[\d_]*)?([eE][-+]?\d+)|\d[\d_]*\.[\d_]*|\.\d+([eE][-+]?\d+)?|\.inf|\.nan)$"),
    list("-+0123456789."),
)


def _parse_yaml(text: str, place: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise ConfigError(f"{place}: nested too deeply. Write fewer brackets.") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2026-99-99
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise ConfigError(f"{place}{where}: not YAML ({reason}). Mend it, or put quotes around the text.") from None


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *parents, last = key.split(".")
    if not equals or not all([*parents, last]):
        raise ConfigError(f'"{override}": expected key=value, for example update.optimizer.lr=1e-4.')
    value = _parse_yaml(text, f'"{override}"')
    block: Any = content
    for depth, parent in enumerate(parents, start=1):
        if block.get(parent) is None:
            block[parent] = {}
        block = block[parent]
        if not isinstance(block, dict):
            whole = ".".join(parents[:depth])
            raise ConfigError(f'"{override}": "{whole}" is not a block of keys in the recipe. Give it as {whole}=….')
    block[last] = value


def _fits(kind: type[Block], content: Mapping[str, Any]) -> bool:
    try:
        kind.model_validate(content)
    except ValidationError:
        return False
    return True
