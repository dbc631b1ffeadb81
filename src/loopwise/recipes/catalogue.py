"""The recipes that come with loopwise: what each is for, told by the comment it begins with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any

from loopwise.errors import ConfigError, nearest

_SENTENCE = re.compile(r".+?[.!?](?=\s|$)")
_TIME = re.compile(r"\bTime: ([^.\n]+)")
_AFTER = re.compile(r"\bafter ([\w-]+)\.yaml\b")


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe's name and text."""

    name: str
    text: str

    @cached_property
    def comment(self) -> str:
        """The comment the file begins with, as one line."""
        lines = []
        for line in self.text.splitlines():
            if not line.startswith("#"):
                break
            lines.append(line.lstrip("#").strip())
        return " ".join(lines)

    @property
    def summary(self) -> str:
        """The first sentence of the comment."""
        match = _SENTENCE.match(self.comment)
        return match[0] if match else self.comment

    @property
    def time(self) -> str | None:
        """How long it takes, where the comment says ``Time: …``."""
        match = _TIME.search(self.comment)
        return match[1].strip() if match else None

    @property
    def builds_on(self) -> tuple[str, ...]:
        """The recipes whose model it starts from: the comment says ``after NAME.yaml``."""
        return tuple(dict.fromkeys(_AFTER.findall(self.comment)))

    @cached_property
    def command(self) -> str:
        """The command that runs it: the one whose keys it has."""
        import yaml
        from pydantic import ValidationError

        from loopwise.config.recipes import COMMANDS

        content = yaml.safe_load(self.text)
        for command, kind in COMMANDS.items():
            try:
                kind.model_validate(content)
            except ValidationError:
                continue
            return command
        raise ConfigError(f"recipe {self.name}: no command takes it. Reinstall loopwise.")

    def as_dict(self) -> Mapping[str, Any]:
        """What ``loopwise recipes list --json`` tells."""
        told = {"command": self.command, "summary": self.summary, "time": self.time, "builds_on": self.builds_on}
        return {"name": self.name, **told}


def names() -> list[str]:
    """The names of all shipped recipes, in order."""
    folder = resources.files("loopwise.recipes")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def catalogue() -> list[ShippedRecipe]:
    """All shipped recipes, by name."""
    return list(map(find_recipe, names()))


def find_recipe(name: str) -> ShippedRecipe:
    """The recipe of a name, with or without ``.yaml``. Raises ConfigError naming the nearest one."""
    name = name.removesuffix(".yaml")
    known = names()
    if name not in known:
        raise ConfigError(f'there is no recipe "{name}". {nearest(name, known)}')
    text = (resources.files("loopwise.recipes") / f"{name}.yaml").read_text(encoding="utf-8")
    return ShippedRecipe(name, text)
