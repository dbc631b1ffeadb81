"""loopwise: language models that improve on their own feedback.

>>> import loopwise as lw
>>> lw.Problem(id="1", prompt="2+2=").prompt
'2+2='
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loopwise.config.reading import load_recipe
    from loopwise.config.recipes import ImproveRecipe, PretrainRecipe, TuneRecipe
    from loopwise.errors import LoopwiseError
    from loopwise.models.folders import load_policy
    from loopwise.observer import Observer
    from loopwise.runs.journal import Journal
    from loopwise.stages.demo import demo
    from loopwise.stages.finetune import tune
    from loopwise.stages.improve import improve
    from loopwise.stages.pretrain import pretrain
    from loopwise.types import Problem, Updated

_HOMES = {
    "ImproveRecipe": "loopwise.config.recipes",
    "Journal": "loopwise.runs.journal",
    "LoopwiseError": "loopwise.errors",
    "Observer": "loopwise.observer",
    "PretrainRecipe": "loopwise.config.recipes",
    "Problem": "loopwise.types",
    "TuneRecipe": "loopwise.config.recipes",
    "Updated": "loopwise.types",
    "demo": "loopwise.stages.demo",
    "improve": "loopwise.stages.improve",
    "load_policy": "loopwise.models.folders",
    "load_recipe": "loopwise.config.reading",
    "pretrain": "loopwise.stages.pretrain",
    "tune": "loopwise.stages.finetune",
}

__all__ = [
    "ImproveRecipe",
    "Journal",
    "LoopwiseError",
    "Observer",
    "PretrainRecipe",
    "Problem",
    "TuneRecipe",
    "Updated",
    "demo",
    "improve",
    "load_policy",
    "load_recipe",
    "pretrain",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used, so that importing the package costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'loopwise' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
