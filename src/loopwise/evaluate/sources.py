"""Feedback beyond functions: what a source is, what it may use, and the registry of those that come with loopwise."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
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

    Relative file names start from ``folder``. ``generator`` draws text from a policy. ``endpoints`` are remote models
    by the names the recipe gives them. ``samples`` are drawn of each problem.
    """

    folder: Path = field(default_factory=Path)
    runtime: Runtime | None = None
    generator: Generator | None = None
    endpoints: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    samples: int = 1
    label_free: bool = False


@dataclass(frozen=True)
class Source:
    """A kind of judge: ``build(surroundings, **options) -> Judge``, its options keywords with annotations.

    ``says`` is what it can be asked for: rewards, critiques, or both. ``compares``: it sets samples of one problem
    beside each other, so a problem needs two or more. ``asks_policy``: it asks the policy that drew the samples.
    """

    name: str
    build: Callable[..., Judge]
    uses_reference: bool = False
    says: frozenset[str] = frozenset({"rewards"})
    compares: bool = False
    asks_policy: bool = False

    def make(self, surroundings: Surroundings, options: Mapping[str, Any]) -> Judge:
        """The judge with these options. Raises ConfigError naming one that is unknown, missing or wrong."""
        parameters = dict(list(inspect.signature(self.build).parameters.items())[1:])
        check_options(f'source "{self.name}"', parameters, options)
        return self.build(surroundings, **options)


def sources() -> Mapping[str, Source]:
    """Every source by name."""
    return _sources()


@cache
def _sources() -> dict[str, Source]:
    return {source.name: source for source in _each()}


def _each() -> Iterator[Source]:
    for name in MODULES:
        yield from importlib.import_module(f"loopwise.evaluate.{name}").SOURCES
