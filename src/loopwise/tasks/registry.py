"""The tasks by name: the built-in ones, and every generator of reasoning-gym as ``reasoning_gym:NAME``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from loopwise.errors import ConfigError, nearest
from loopwise.tasks.addition import addition, operands
from loopwise.tasks.base import ProblemSource, Task
from loopwise.tasks.gym import PREFIX, gym_task
from loopwise.tasks.options import built, level_options
from loopwise.tasks.revision import operands as revised_operands
from loopwise.tasks.revision import revision, rows_of
from loopwise.tasks.sorting import sorted_letters, sorting
from loopwise.types import Problem

Options = Mapping[str, Any]


def _built_in(name: str, build: Callable[..., ProblemSource], key: Callable[[Problem], str], options: Options) -> Task:
    return Task({level: built(name, build, own) for level, own in level_options(options).items()}, key=key)


def _revision(options: Options) -> Task:
    drafts = {"drafts": options["drafts"]} if "drafts" in options else {}
    return replace(_built_in("revision", revision, revised_operands, options), rows=partial(rows_of, **drafts))


TASKS: dict[str, Callable[[Options], Task]] = {
    "addition": partial(_built_in, "addition", addition, operands),
    "revision": _revision,
    "sorting": partial(_built_in, "sorting", sorting, sorted_letters),
}

ASKS: Mapping[str, str] = {"revision": "addition"}
"""The tasks whose problems are another one's."""


def same_problems(one: str | None, other: str | None) -> bool:
    """Whether two tasks by name may ask the same problems."""
    return one is not None and ASKS.get(one, one) == (other and ASKS.get(other, other))


def find_task(name: str, options: Options | None = None) -> Task:
    """The task of this name with these options (and perhaps ``levels``, a list of option sets, the easiest first).

    Raises ConfigError naming the nearest task or option, or what an option must be.
    """
    if name in TASKS:
        make = TASKS[name]
    elif name.startswith(PREFIX):
        make = partial(gym_task, name.removeprefix(PREFIX))
    else:
        raise ConfigError(f'key "data.task": unknown task "{name}". {nearest(name, [*TASKS, f"{PREFIX}NAME"])}')
    return make(options or {})
