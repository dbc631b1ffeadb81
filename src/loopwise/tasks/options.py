"""The options of a task, as a recipe's ``data.task_options`` gives them: checked before they are used."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from loopwise.errors import ConfigError, nearest
from loopwise.tasks.base import ProblemSource

KEY = "data.task_options"


def built(task: str, build: Callable[..., ProblemSource], options: Mapping[str, Any]) -> ProblemSource:
    """``build(**options)``. Raises ConfigError naming the nearest option where one is unknown."""
    known = inspect.signature(build).parameters
    for option in options:
        if option not in known:
            raise ConfigError(f'key "{KEY}.{option}": task {task} has no such option. {nearest(option, known)}')
    return build(**options)


def check_whole(option: str, value: Any, lowest: int, highest: int) -> None:
    """Refuse an option that is not a whole number from ``lowest`` to ``highest``. Raises ConfigError."""
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise ConfigError(
            f'key "{KEY}.{option}": expected a whole number from {lowest} to {highest}, found {value!r}. Mend it.'
        )


def level_options(options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The option sets of a task's levels by name; one without a name where ``levels`` is not among the options.

    ``levels`` is a list of option sets, the easiest first, each laid over the other options. Raises ConfigError.
    """
    shared = {name: value for name, value in options.items() if name != "levels"}
    if "levels" not in options:
        return {"": shared}
    levels = options["levels"]
    if not isinstance(levels, list | tuple) or not levels or not all(isinstance(own, Mapping) for own in levels):
        raise ConfigError(
            f'key "{KEY}.levels": expected a list of option sets, the easiest first, such as '
            f"[{{digits: 1}}, {{digits: 2}}]; found {levels!r}."
        )
    named = {", ".join(f"{name}={value}" for name, value in own.items()): {**shared, **own} for own in levels}
    if len(named) < len(levels) or "" in named or any("levels" in own for own in levels):
        raise ConfigError(f'key "{KEY}.levels": every level needs options of its own that set it apart. Mend the list.')
    return named
