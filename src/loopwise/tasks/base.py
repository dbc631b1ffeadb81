"""What a task is, and the problem streams that a recipe's data become."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from loopwise.config.blocks import RewardConfig
from loopwise.data.streams import problem_key
from loopwise.errors import DataError
from loopwise.runtime import seed_key
from loopwise.types import Completion, Problem, Prompt

WATCHED = 4
HELD_OUT_AT_MOST = 1000
SKILL = "skill:"
LEVEL = "level"
"""The column that names a generated problem's level of difficulty, where its task has several."""

ProblemSource = Callable[[int], Iterator[Problem]]
"""Problems without end: a pure function of a 64-bit key."""


def endless(generate: Callable[[np.random.Generator], Problem]) -> ProblemSource:
    """The source that calls ``generate`` over and over on the random numbers of its key."""

    def problems(key: int) -> Iterator[Problem]:
        generator = np.random.Generator(np.random.Philox(key=key))
        while True:
            yield generate(generator)

    return problems


@dataclass(frozen=True)
class Task:
    """Problems with what scores them.

    ``levels`` are the sources of its difficulties by name, the easiest first; most tasks have one, without a name.
    ``reference_columns`` hold the truth, ``completion_column`` a completion to learn. Two problems with the same
    ``key`` are the same one. ``rows`` are what is learned of a labelled problem, where that is more than its answer;
    they keep its key.
    """

    levels: Mapping[str, ProblemSource]
    reference_columns: tuple[str, ...] = ("answer",)
    completion_column: str = "answer"
    key: Callable[[Problem], str] = problem_key
    rewards: tuple[RewardConfig, ...] = (RewardConfig(use="exact_match"),)
    rows: Callable[[Problem], Sequence[Problem]] = lambda problem: (problem,)

    def problems(self, key: int, level: str | None = None) -> Iterator[Problem]:
        """The problems of one level, or of all levels mixed evenly: a pure function of ``key`` and ``level``.

        Where there are several levels, column ``level`` and the start of the id name a problem's own.
        """
        if level is not None:
            return self._of_level(level, key)
        if len(self.levels) == 1:
            (source,) = self.levels.values()
            return source(key)
        return self._mixed(key)

    def _of_level(self, level: str, key: int) -> Iterator[Problem]:
        for problem in self.levels[level](seed_key(LEVEL, level, key)):
            yield replace(problem, id=f"{level}/{problem.id}", columns={**problem.columns, LEVEL: level})

    def _mixed(self, key: int) -> Iterator[Problem]:
        sources = [self._of_level(level, key) for level in self.levels]
        choices = np.random.Generator(np.random.Philox(key=seed_key("levels", key)))
        while True:
            yield next(sources[int(choices.integers(len(sources)))])


@dataclass(frozen=True)
class SourceRows:
    """One source of ``Streams.labelled``, which holds ``count`` of its rows in a run, source after source.

    ``left_out`` counts its rows that are no example to learn: those labelled false, and those held out elsewhere.
    """

    name: str
    count: int
    weight: float
    left_out: int = 0


@dataclass(frozen=True)
class Streams:
    """Problems by use. ``draw(round, count)`` is a pure function; ``watch`` are dev problems the report follows.

    ``prompts(count)`` are those of the first round's problems, or fewer where there are not so many.

    For a curriculum: ``rows`` are all problems that ``draw`` draws from where these can be listed; a task of several
    ``levels`` has ``draw_level(level, round, count)`` instead.
    """

    draw: Callable[[int, int], Sequence[Problem]]
    held_out: Mapping[str, Sequence[Problem]]
    labelled: Sequence[Problem]
    completion_column: str
    reference_columns: tuple[str, ...]
    train_count: int | None
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    sources: tuple[SourceRows, ...] = ()
    augment: Callable[[Problem, int], Problem] | None = None
    key: Callable[[Problem], str] = problem_key
    rows: Sequence[Problem] = ()
    levels: tuple[str, ...] = ()
    draw_level: Callable[[str, int, int], Sequence[Problem]] | None = None
    prompts: Callable[[int], Sequence[Prompt]] = lambda count: ()

    @staticmethod
    def without_problems(splits: Iterable[str], fingerprint: Mapping[str, str]) -> Streams:
        """Those of a run that draws no problems and has none: it measures its ``splits`` by something else."""
        return Streams(
            draw=lambda round, count: (),
            held_out=dict.fromkeys(splits, ()),
            labelled=(),
            completion_column="",
            reference_columns=(),
            train_count=None,
            fingerprint=fingerprint,
        )

    @property
    def watch(self) -> Sequence[Problem]:
        return self.held_out.get("dev", ())[:WATCHED]

    def completion(self, problem: Problem) -> Completion:
        """The completion to learn of a labelled problem, or the gold answer of one that has it: text, or messages."""
        if problem.columns.get(self.completion_column) is None:
            raise DataError(
                f'problem {str(problem.prompt)[:60]!r}, column "{self.completion_column}": no completion to learn or '
                "compare with. Add it, or name another column with data.completion_column."
            )
        value = problem.columns[self.completion_column]
        if isinstance(value, str | int | float):
            return str(value)
        if not isinstance(value, list | tuple) or not value or not all(map(_is_message, value)):
            raise DataError(
                f'problem {str(problem.prompt)[:60]!r}, column "{self.completion_column}": expected text or a list of '
                f'messages, found {str(value)[:60]}. Write it as text or as {{"role": …, "content": …}}, or name '
                "another column with data.completion_column."
            )
        return str(value[0]["content"]) if len(value) == 1 else tuple(value)

    def without_references(self) -> Streams:
        """The same streams, whose drawn problems do not hold their references. Held-out ones do: reports need them.

        The completion to learn is a reference too: a gold answer, whatever its column is called.
        """
        hidden = tuple(dict.fromkeys((*self.reference_columns, self.completion_column)))

        def blind(problems: Sequence[Problem]) -> list[Problem]:
            return [
                replace(problem, columns={name: v for name, v in problem.columns.items() if name not in hidden})
                for problem in problems
            ]

        draw_level = self.draw_level
        return replace(
            self,
            draw=lambda round, count: blind(self.draw(round, count)),
            rows=blind(self.rows),
            draw_level=draw_level and (lambda level, round, count: blind(draw_level(level, round, count))),
            reference_columns=hidden,
        )


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(key), str) for key in ("role", "content"))
