"""The stage behind each command that takes a recipe, loaded when it is called for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from loopwise.config import Recipe
from loopwise.observer import Observer
from loopwise.results import Result

MODULES = {"pretrain": "pretrain", "tune": "finetune", "improve": "improve"}


def run_command(command: str, recipe: Recipe, out: Path, *, resume: bool, observer: Observer) -> Result:
    """Do what ``loopwise COMMAND`` does with a recipe of its kind."""
    stage = getattr(import_module(f"loopwise.stages.{MODULES[command]}"), command)
    result: Result = stage(recipe, out, resume=resume, observer=observer)
    return result
