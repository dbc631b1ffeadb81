"""Recipes: a YAML file for each command that trains. Unknown keys are refused, and the nearest known one is named."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator

from loopwise.blocks import (
    Block,
    BudgetConfig,
    CorpusConfig,
    CurriculumConfig,
    DataConfig,
    EndpointConfig,
    GateConfig,
    Model,
    ModelConfig,
    MonitorsConfig,
    RefineConfig,
    Reward,
    RewardConfig,
    RowsConfig,
    RuntimeConfig,
    SamplingConfig,
    SourceConfig,
)
from loopwise.config_errors import explain, found
from loopwise.errors import ConfigError
from loopwise.judge_blocks import JudgeDataConfig, JudgeModel, JudgeModelConfig, JudgingConfig, MaskedConfig
from loopwise.methods import (
    DistillConfig,
    DrGRPOConfig,
    ImproveUpdate,
    OnlineConfig,
    PretrainConfig,
    ReflexionConfig,
    SFTConfig,
    TuneUpdate,
)

S = TypeVar("S", RowsConfig, SourceConfig)
M = TypeVar("M", ModelConfig, JudgeModelConfig)

PATH_OPTIONS = ("model", "path", "variants")
"""Options of rewards and critics that may name a file or folder; relative ones start from the recipe's own."""


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
        if isinstance(self.update, OnlineConfig):
            return -(-problems // self.update.problems_per_step)
        if isinstance(self.update, ReflexionConfig):
            return self.update.trials
        return self.update.steps


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
R = TypeVar("R", PretrainRecipe, TuneRecipe, ImproveRecipe, JudgeRecipe)
COMMANDS: dict[str, type[Block]] = {
    "pretrain": PretrainRecipe,
    "tune": TuneRecipe,
    "improve": ImproveRecipe,
    "judge": JudgeRecipe,
}
"""The command that runs each kind of recipe."""


def load_recipe(kind: type[R], path: str | Path, overrides: Sequence[str] = ()) -> R:
    """Read a YAML recipe and apply dotted overrides such as ``update.optimizer.lr=1e-4``.

    Relative paths inside are taken from the recipe's folder. Raises ConfigError naming file, key and mend.
    """
    path = Path(path)
    try:
        content = _read_yaml(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such recipe. `loopwise recipes list` names some to start from.") from None
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: expected keys such as model, data, rewards; found {found(content)}. "
            "`loopwise recipes list` names some to start from."
        )
    own = bool(overrides) and _fits(kind, content)
    for override in overrides:
        _override(content, override)
    return resolve_paths(parse_recipe(kind, content, str(path), foreign=not own), path.parent)


def load_endpoints(path: str | Path) -> Endpoints:
    """The block ``endpoints`` of a YAML file, which may be a recipe. Raises ConfigError naming file, key and mend."""
    try:
        content = _read_yaml(Path(path))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. Name a YAML file with a block endpoints.") from None
    block = content.get("endpoints") if isinstance(content, dict) else None
    if not block:
        raise ConfigError(f'{path}: no key "endpoints". Add it: "endpoints: {{NAME: {{url: ..., model: ...}}}}".')
    try:
        return _EndpointsBlock.model_validate({"endpoints": block}).endpoints
    except ValidationError as error:
        raise ConfigError(explain(_EndpointsBlock, str(path), error, {"endpoints": block})) from None


class _EndpointsBlock(Block):
    endpoints: Endpoints


def parse_recipe(kind: type[R], content: Mapping[str, Any], place: str = "recipe", *, foreign: bool = True) -> R:
    """Validate a mapping as a recipe. Raises ConfigError naming the key and the mend.

    ``foreign``: it may be meant for another command, which the error then names.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        command = next((name for name, other in COMMANDS.items() if other is not kind and _is_of(other, content)), None)
        if command and foreign:
            raise ConfigError(f"{place}: this is a recipe of `loopwise {command}`. Run that command on it.") from None
        raise ConfigError(explain(kind, place, error, content)) from None


def resolve_paths(recipe: R, folder: Path) -> R:
    """Make the recipe's file names absolute; relative ones are taken from ``folder``."""

    def resolve(value: str) -> str:
        return str((folder / value).absolute())

    def reward(config: RewardConfig) -> RewardConfig:
        file, colon, function = config.use.rpartition(":")
        use = f"{resolve(file)}:{function}" if colon else config.use
        options = {name: _resolve_option(name, value, resolve) for name, value in config.options.items()}
        return config.model_copy(update={"use": use, "options": options})

    if isinstance(recipe, JudgeRecipe):
        files = {n: resolve(v) for n in ("train", "dev", "test") if isinstance(v := getattr(recipe.data, n), str)}
        judged = {"data": recipe.data.model_copy(update=files), "model": _resolve_model(recipe.model, resolve)}
        return recipe.model_copy(update=judged)
    changes: dict[str, Any] = {"data": _resolve_data(recipe.data, resolve)}
    if not isinstance(recipe, PretrainRecipe):
        changes["rewards"] = tuple(map(reward, recipe.rewards))
    if isinstance(recipe, ImproveRecipe):
        changes["report_rewards"] = tuple(map(reward, recipe.report_rewards))
        changes["critics"] = tuple(map(reward, recipe.critics))
    changes["model"] = _resolve_model(recipe.model, resolve)
    if isinstance(recipe, ImproveRecipe) and isinstance(recipe.update, DistillConfig):
        teacher = resolve(recipe.update.teacher)
        if os.path.isdir(teacher):
            changes["update"] = recipe.update.model_copy(update={"teacher": teacher})
    return recipe.model_copy(update=changes)


def _resolve_option(name: str, value: Any, resolve: Callable[[str], str]) -> Any:
    """An option of a reward: where it names a file or folder that is there, its absolute name."""
    if name not in PATH_OPTIONS or not isinstance(value, str) or not value:
        return value
    file, colon, function = value.rpartition(":")
    if colon and file.endswith(".py"):
        return f"{resolve(file)}:{function}"
    return resolve(value) if os.path.exists(resolve(value)) else value


def _resolve_data(data: DataConfig | CorpusConfig, resolve: Callable[[str], str]) -> DataConfig | CorpusConfig:
    """Names of files made absolute; a source that is no file here may be a dataset's name on the hub, and stays."""

    def source(entry: S) -> S:
        path = resolve(entry.path)
        return entry.model_copy(update={"path": path if os.path.exists(path) or Path(path).suffix else entry.path})

    changes: dict[str, Any] = {n: resolve(v) for n in ("dev", "test") if isinstance(v := getattr(data, n), str)}
    if isinstance(data, CorpusConfig):
        return data.model_copy(update={**changes, "train": tuple(map(source, data.train))})
    if isinstance(data.labelled, str):
        changes["labelled"] = resolve(data.labelled)
    if isinstance(data.train, str):
        changes["train"] = source(RowsConfig(path=data.train)).path
    elif data.train:
        changes["train"] = tuple(map(source, data.train))
    if data.augment:
        file, _, function = data.augment.rpartition(":")
        changes["augment"] = f"{resolve(file)}:{function}"
    return data.model_copy(update={**changes, "skills": tuple(map(resolve, data.skills))})


def _resolve_model(model: M, resolve: Callable[[str], str]) -> M:
    changes: dict[str, Any] = {}
    if model.path and os.path.isdir(resolve(model.path)):
        changes["path"] = resolve(model.path)
    if model.tokenizer and model.tokenizer.path and os.path.isdir(resolve(model.tokenizer.path)):
        changes["tokenizer"] = model.tokenizer.model_copy(update={"path": resolve(model.tokenizer.path)})
    return model.model_copy(update=changes)


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


def _read_yaml(path: Path) -> Any:
    """Raises FileNotFoundError, and ConfigError where the file cannot be read as YAML."""
    try:
        return _parse_yaml(path.read_text(encoding="utf-8-sig"), str(path))
    except FileNotFoundError:
        raise
    except IsADirectoryError:
        raise ConfigError(f"{path}: a folder, not a recipe. Name the YAML file in it.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text. Name a YAML file, saved as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error}). Check its permissions.") from None


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
    return _validated(kind, content) is not None


def _is_of(kind: type[Block], content: Mapping[str, Any]) -> bool:
    """Whether a recipe fits its kind, and has nothing for which that command would send it back."""
    recipe = _validated(kind, content)
    if not isinstance(recipe, TuneRecipe):
        return recipe is not None
    unlabelled = recipe.data.task is not None and recipe.data.labelled is None
    return not (unlabelled or recipe.has_idle_rewards)


def _validated(kind: type[Block], content: Mapping[str, Any]) -> Block | None:
    try:
        return kind.model_validate(content)
    except ValidationError:
        return None
