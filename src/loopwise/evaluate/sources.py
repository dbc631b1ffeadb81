"""Feedback beyond functions: what a source is, what it may use, and the registry of those that come with loopwise."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from loopwise.evaluate.options import check_options
from loopwise.types import Generator

if TYPE_CHECKING:
    from loopwise.evaluate.parts import Judge
    from loopwise.runtime import Runtime

MODULES = ("programs", "measured", "itself", "trained", "remote_judges", "critics")
"""The modules of this package that have a tuple ``SOURCES``."""


@dataclass(frozen=True)
class Surroundings:
    """What a source may use besides its options.

    ``writer`` draws text from the run's policy, wherever that is; ``local`` draws from models that run here.
    ``endpoints`` are remote models by the names the recipe gives them. ``samples`` are drawn of each problem; None: one
    is, by a command that cannot draw several.
    """

    runtime: Runtime | None = None
    writer: Generator | None = None
    local: Generator | None = None
    endpoints: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    samples: int | None = None

    def local_runtime(self) -> Runtime:
        """Where a frozen model of a source runs: as the command's own models do, or else by the defaults."""
        if self.runtime is not None:
            return self.runtime
        from loopwise.config.blocks import RuntimeConfig
        from loopwise.runtime import make_runtime

        return make_runtime(RuntimeConfig(), self.seed)


@dataclass(frozen=True)
class Source:
    """A kind of judge: ``build(surroundings, **options) -> Judge``, its options keywords with annotations.

    ``says`` is what it can be asked for: rewards, critiques, or both. ``compares``: it sets samples of one problem
    beside each other, so a problem needs two or more.
    """

    name: str
    build: Callable[..., Judge]
    uses_reference: bool = False
    says: frozenset[str] = frozenset({"rewards"})
    compares: bool = False

    def make(self, surroundings: Surroundings, options: Mapping[str, Any]) -> Judge:
        """The judge with these options. Raises ConfigError naming one that is unknown, missing or wrong."""
        parameters = dict(list(inspect.signature(self.build).parameters.items())[1:])
        check_options(f'source "{self.name}"', parameters, options)
        return self.build(surroundings, **options)


@cache
def sources() -> Mapping[str, Source]:
    """Every source by name."""
    modules = (importlib.import_module(f"loopwise.evaluate.{name}") for name in MODULES)
    return {source.name: source for module in modules for source in module.SOURCES}
