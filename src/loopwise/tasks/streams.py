"""The problem streams of a recipe: what is trained on, what is held out, what is labelled. Never overlapping."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from loopwise.config import DataConfig
from loopwise.data.formats import fingerprint
from loopwise.data.rows import labelled_from_rows, problems_from_rows
from loopwise.data.streams import check_disjoint, draw, problem_key, split
from loopwise.errors import ConfigError, DataError, nearest
from loopwise.runtime import seed_key
from loopwise.tasks.addition import addition, operands
from loopwise.types import Problem

WATCHED = 4
HELD_OUT_AT_MOST = 1000
SKILL = "skill:"
MOST_MISSES = 10_000
"""Known problems in a row after which a task counts as exhausted."""


@dataclass(frozen=True)
class Task:
    """A generator of problems, the columns that hold the truth, and the one that holds a completion to learn.

    Two problems with the same ``key`` are the same one.
    """

    generate: Callable[[np.random.Generator], Problem]
    reference_columns: tuple[str, ...]
    completion_column: str
    key: Callable[[Problem], str] = problem_key


TASKS: dict[str, Task] = {"addition": Task(addition, ("answer",), "answer", operands)}


@dataclass(frozen=True)
class Streams:
    """Problems by use. ``draw(round, count)`` is a pure function; ``watch`` are dev problems the report follows."""

    draw: Callable[[int, int], Sequence[Problem]]
    held_out: Mapping[str, Sequence[Problem]]
    labelled: Sequence[Problem]
    completion_column: str
    reference_columns: tuple[str, ...]
    train_count: int | None
    fingerprint: Mapping[str, str] = field(default_factory=dict)

    @property
    def watch(self) -> Sequence[Problem]:
        return self.held_out.get("dev", ())[:WATCHED]

    def completion(self, problem: Problem) -> str:
        """The completion to learn of a labelled problem, or the gold answer of one that has it."""
        if problem.columns.get(self.completion_column) is None:
            raise DataError(
                f'problem {str(problem.prompt)[:60]!r}, column "{self.completion_column}": no completion to learn or '
                "compare with. Add it, or name another column with data.completion_column."
            )
        value = problem.columns[self.completion_column]
        if isinstance(value, str):
            return value
        return str(value[-1]["content"]) if isinstance(value, list | tuple) else str(value)

    def without_references(self) -> Streams:
        """The same streams, whose drawn problems do not hold their references. Held-out ones do: reports need them.

        The completion to learn is a reference too: a gold answer, whatever its column is called.
        """
        hidden = tuple(dict.fromkeys((*self.reference_columns, self.completion_column)))

        def draw(round: int, count: int) -> list[Problem]:
            return [
                replace(problem, columns={name: v for name, v in problem.columns.items() if name not in hidden})
                for problem in self.draw(round, count)
            ]

        return replace(self, draw=draw, reference_columns=hidden)


def open_streams(data: DataConfig, seed: int, *, supervised: bool) -> Streams:
    """Read or generate all problems of a recipe and check that no held-out one is among the rest.

    ``supervised`` (``loopwise tune``) learns the train rows' completions. Raises DataError, OverlapError, ConfigError.
    """
    streams = _task_streams(data, seed) if data.task else _file_streams(data, seed, supervised)
    if supervised and not streams.labelled:
        raise ConfigError(
            "data.labelled: this task needs the number of labelled problems to learn from, for example 250."
        )
    held_out = {name: problems for name, problems in streams.held_out.items() if not name.startswith(SKILL)}
    key = TASKS[data.task].key if data.task else problem_key
    check_disjoint((), {"labelled": streams.labelled, **held_out}, key)
    # Old skills may share problems with each other and with dev, which the gate sees too; never with what is learned.
    for name in streams.held_out.keys() - held_out.keys():
        check_disjoint((), {"labelled": streams.labelled, name: streams.held_out[name]})
    return streams


def _task_streams(data: DataConfig, seed: int) -> Streams:
    name = str(data.task)
    if name not in TASKS:
        raise ConfigError(f'key "data.task": unknown task "{name}". {nearest(name, TASKS)}')
    for key in ("dev", "test", "labelled"):
        if isinstance(getattr(data, key), str):
            raise ConfigError(f'key "data.{key}": with a built-in task give a number of problems, not a file.')
    task = TASKS[name]
    taken: set[str] = set()
    held_out: dict[str, list[Problem]] = {}
    for stream in ("dev", "test"):
        count = getattr(data, stream)
        held_out[stream] = _generate(task, name, stream, seed, HELD_OUT_AT_MOST if count is None else count, taken)
        taken |= {task.key(problem) for problem in held_out[stream]}
    labelled = _generate(task, name, "labelled", seed, int(data.labelled or 0), taken)

    def draw_fresh(round: int, count: int) -> list[Problem]:
        return _generate(task, name, f"train-{round}", seed, count, taken)

    return Streams(
        draw=draw_fresh,
        held_out=_without_empty(held_out, data),
        labelled=labelled,
        completion_column=task.completion_column,
        reference_columns=tuple(dict.fromkeys((*task.reference_columns, *data.reference_columns))),
        train_count=None,
    )


def _generate(task: Task, name: str, stream: str, seed: int, count: int, exclude: set[str]) -> list[Problem]:
    """``count`` distinct problems of a stream, none of them excluded: a pure function of its arguments."""
    generator = np.random.Generator(np.random.Philox(key=seed_key("task", name, stream, seed)))
    problems: list[Problem] = []
    seen = set(exclude)
    misses = 0
    while len(problems) < count:
        problem = task.generate(generator)
        key = task.key(problem)
        misses = misses + 1 if key in seen else 0
        if misses > MOST_MISSES:
            raise ConfigError(
                f"task {name}: it has too few distinct problems: stream {stream} needs {count:,}, and after "
                f"{len(problems):,} no new one came up. Ask for fewer (data.dev, data.test, data.labelled, problems)."
            )
        if not misses:
            seen.add(key)
            problems.append(problem)
    return problems


def _file_streams(data: DataConfig, seed: int, supervised: bool) -> Streams:
    assert data.train is not None
    train = _read(data, data.train, supervised)
    files = {"train": data.train}
    held_out: dict[str, Sequence[Problem]] = {}
    sizes: dict[str, int] = {}
    for name in ("dev", "test"):
        source = getattr(data, name)
        if isinstance(source, str):
            held_out[name] = _read(data, source, supervised)
            files[name] = source
        else:
            sizes[name] = min(HELD_OUT_AT_MOST, len(train) // 10) if source is None else source
    _check_sizes(data.train, len(train), sizes)
    if any(sizes.values()):
        parts = split(train, {**sizes, "train": len(train) - sum(sizes.values())}, seed)
        train = parts["train"]
    held_out |= {name: parts[name] for name, size in sizes.items() if size}
    check_disjoint(train, held_out)
    for path in data.skills:
        name = f"{SKILL}{path.rsplit('/', 1)[-1]}"
        if name in held_out:
            raise ConfigError(f'key "data.skills": two files have the name of {path}. Rename one.')
        held_out[name] = _read(data, path, supervised)
        files[path] = path
    for name in (name for name in held_out if name.startswith(SKILL)):
        check_disjoint(train, {name: held_out[name]})
    labelled: Sequence[Problem] = train if supervised else ()
    if isinstance(data.labelled, str):
        labelled = _read(data, data.labelled, True)
        files["labelled"] = data.labelled
    elif data.labelled:
        raise ConfigError('key "data.labelled": with a row file name the file of labelled rows, not a number.')
    return Streams(
        draw=lambda round, count: draw(train, min(count, len(train)), seed, round - 1),
        held_out={name: held_out[name] for name in sorted(held_out, key=_split_order)},
        labelled=labelled,
        completion_column=data.completion_column,
        reference_columns=data.reference_columns,
        train_count=len(train),
        fingerprint={name: fingerprint(path) for name, path in files.items()},
    )


def _check_sizes(path: str, rows: int, sizes: Mapping[str, int]) -> None:
    """Refuse held-out splits that leave nothing to train on."""
    if sum(sizes.values()) >= rows:
        wanted = " + ".join(f"{name} {size}" for name, size in sizes.items())
        raise DataError(
            f"{path}: {wanted} held-out rows wanted of {rows}, which leaves none to train on. "
            "Lower data.dev and data.test, or add rows."
        )


def _read(data: DataConfig, path: str, supervised: bool) -> list[Problem]:
    if supervised:
        rows = labelled_from_rows(path, prompt_column=data.prompt_column, completion_column=data.completion_column)
        return [row.problem for row in rows]
    return problems_from_rows(path, prompt_column=data.prompt_column, reference_columns=data.reference_columns)


def _split_order(name: str) -> tuple[int, str]:
    return ({"dev": 0, "test": 1}.get(name, 2), name)


def _without_empty(held_out: Mapping[str, Any], data: DataConfig) -> dict[str, Sequence[Problem]]:
    if data.skills:
        raise ConfigError('key "data.skills": old skills are row files of their own; a built-in task takes none yet.')
    return {name: problems for name, problems in held_out.items() if problems}
