"""The stage behind each command that takes a recipe, loaded when it is called for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from loopwise.config.recipes import Recipe
from loopwise.observer import Observer
from loopwise.results import Result

MODULES = {
    "pretrain": "pretrain.pretrain",
    "tune": "finetune.tune",
    "improve": "improve.improve",
    "judge": "judging.train_judge",
}
"""The module and the function in it, for each command."""


def run_command(command: str, recipe: Recipe, out: Path, *, resume: bool, observer: Observer) -> Result:
    """Do what ``loopwise COMMAND`` does with a recipe of its kind."""
    module, _, function = MODULES[command].partition(".")
    stage = getattr(import_module(f"loopwise.stages.{module}"), function)
    result: Result = stage(recipe, out, resume=resume, observer=observer)
    return result
