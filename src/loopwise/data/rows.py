"""Rows become problems (a prompt and its free columns), and the completions to learn of them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loopwise.config.blocks import RowFormat
from loopwise.data.formats import Row, read_rows
from loopwise.data.messages import Completion
from loopwise.data.shapes import Parts, Shape, shape_of
from loopwise.errors import ProblemFileError, nearest
from loopwise.types import Problem


@dataclass(frozen=True)
class Source:
    """The rows of one file as problems, in its order.

    ``rows`` are the file's own, by problem id; ``completions`` of the problems that have one to learn, likewise;
    ``left_out`` counts the rows whose label says that their completion is not to be learned.
    """

    path: str
    shape: Shape
    problems: tuple[Problem, ...]
    rows: dict[str, Row] = field(repr=False)
    completions: dict[str, Completion] = field(repr=False)
    left_out: int = 0


def problems_from_rows(
    path: str | Path,
    *,
    format: RowFormat = "auto",
    prompt_column: str | None = None,
    completion_column: str | None = None,
    reference_columns: Sequence[str] = (),
) -> list[Problem]:
    """Read a row file as problems.

    ``format`` is one of ``loopwise.data.shapes``; the columns default to the format's own, and every other column
    becomes a free column as it is. ``reference_columns`` are only required to be there. A problem's id depends on its
    prompt and on how many rows before it have the same one, not on its line.
    Raises ProblemFileError naming file, line, column and mend.
    """
    source = read_source(path, format, prompt_column, completion_column, supervised=False)
    check_columns(source, reference_columns)
    return list(source.problems)


def read_source(
    path: str | Path,
    format: RowFormat,
    prompt_column: str | None,
    completion_column: str | None,
    *,
    supervised: bool,
    seen: Counter[str] | None = None,
) -> Source:
    """Read a row file. ``supervised`` rows must have completions; those not to be learned are left out.

    ``seen`` counts the prompts of sources read before, so that no two problems of a mixture share an id.
    Raises ProblemFileError naming file, line, column and mend.
    """
    rows = read_rows(path)
    shape = shape_of(rows, format, prompt_column, completion_column)
    seen = Counter() if seen is None else seen
    problems, kept, completions = [], {}, {}
    for row in rows:
        parts = shape.read(row, supervised=supervised)
        if supervised and not parts.learnable:
            continue
        problem = Problem(_identity(parts, seen), parts.prompt, parts.columns, row.place)
        problems.append(problem)
        kept[problem.id] = row
        if parts.completion is not None:
            completions[problem.id] = parts.completion
    if not problems:
        raise ProblemFileError(f'{path}, column "label": no row of it is true, so there is nothing to learn. Add some.')
    return Source(str(path), shape, tuple(problems), kept, completions, len(rows) - len(problems))


def check_columns(source: Source, names: Sequence[str]) -> None:
    """Check that every problem has the columns. Raises ProblemFileError naming the first row that lacks one."""
    for problem in source.problems:
        for name in names:
            if name not in problem.columns:
                row = source.rows[problem.id]
                raise ProblemFileError(
                    f'{row.place}, column "{name}": missing. {nearest(name, {*row.columns, *problem.columns})} '
                    "Add it, or name other columns with data.reference_columns."
                )


def _identity(parts: Parts, seen: Counter[str]) -> str:
    """A problem's id: 16 hex digits of its prompt (of plain text, the text) and of how often it was seen before."""
    told: Any = parts.prompt or parts.completion
    content = json.dumps(told, ensure_ascii=False, sort_keys=True)
    identity = hashlib.sha256(json.dumps([content, seen[content]], ensure_ascii=False).encode()).hexdigest()[:16]
    seen[content] += 1
    return identity
