"""Names of files in a recipe: relative ones start from the recipe's own folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from loopwise.config.blocks import CorpusConfig, DataConfig, ModelConfig, RewardConfig, RowsConfig, SourceConfig
from loopwise.config.judge_blocks import JudgeModelConfig
from loopwise.config.methods import DistillConfig
from loopwise.config.recipes import ImproveRecipe, JudgeRecipe, PretrainRecipe, TuneRecipe

R = TypeVar("R", PretrainRecipe, TuneRecipe, ImproveRecipe, JudgeRecipe)
S = TypeVar("S", RowsConfig, SourceConfig)
M = TypeVar("M", ModelConfig, JudgeModelConfig)

PATH_OPTIONS = ("model", "path", "variants")
"""Options of rewards and critics that may name a file or folder; relative ones start from the recipe's own."""


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
