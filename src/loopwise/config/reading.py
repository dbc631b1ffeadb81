"""Reading recipes: a YAML file with overrides becomes the recipe of one command, or an error that names the key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from loopwise.config.blocks import Block
from loopwise.config.errors import explain, found
from loopwise.config.paths import R, resolve_paths
from loopwise.config.recipes import COMMANDS, Endpoints, TuneRecipe
from loopwise.config.yaml_text import parse_yaml, read_yaml
from loopwise.errors import ConfigError


def load_recipe(kind: type[R], path: str | Path, overrides: Sequence[str] = ()) -> R:
    """Read a YAML recipe and apply dotted overrides such as ``update.optimizer.lr=1e-4``.

    Relative paths inside are taken from the recipe's folder. Raises ConfigError naming file, key and mend.
    """
    path = Path(path)
    try:
        content = read_yaml(path)
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
        content = read_yaml(Path(path))
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


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *parents, last = key.split(".")
    if not equals or not all([*parents, last]):
        raise ConfigError(f'"{override}": expected key=value, for example update.optimizer.lr=1e-4.')
    value = parse_yaml(text, f'"{override}"')
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
