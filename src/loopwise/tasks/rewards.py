"""The rewards of a recipe that names none: its task's own."""

from __future__ import annotations

from typing import TypeVar

from loopwise.config.recipes import ImproveRecipe, TuneRecipe
from loopwise.errors import ConfigError
from loopwise.tasks.registry import find_task

R = TypeVar("R", ImproveRecipe, TuneRecipe)


def with_task_rewards(recipe: R) -> R:
    """The recipe with its task's rewards where it needs rewards and names none.

    Raises ConfigError where row files are to be judged without any.
    """
    needed = isinstance(recipe, ImproveRecipe) or recipe.gate.metric == "reward"
    if recipe.rewards or not needed:
        return recipe
    if recipe.data.task is None:
        raise ConfigError(
            'key "gate.metric": reward needs rewards to measure, and row files bring none of their own. Name one under '
            '"rewards", such as exact_match, number, math or path/to/file.py:function, or use metric: likelihood.'
        )
    return recipe.model_copy(update={"rewards": find_task(recipe.data.task, recipe.data.task_options).rewards})
