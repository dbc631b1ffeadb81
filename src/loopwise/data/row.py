"""A row of a file and the words that errors about rows share."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loopwise.errors import ProblemFileError


@dataclass(frozen=True)
class Row:
    """One row of a file.

    ``place`` says where it stands, ready for an error (``prompts.jsonl line 17``, of a Parquet file ``row 17``);
    ``line`` is that number: the line on which the row begins, from 1 (Parquet and datasets: the row's number).
    """

    place: str
    line: int
    columns: dict[str, Any]


def describe(value: Any) -> str:
    """A value found in a row, in words for an error: ``number 3``, ``null``, ``a list``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"number {str(value)[:40]}"
    if isinstance(value, str):
        shown = json.dumps(value[:40], ensure_ascii=False)
        return f"text {shown}" if value.strip() else "empty text"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return "an object" if isinstance(value, dict) else type(value).__name__


def refuse_twins(place: str, names: Sequence[str]) -> None:
    """Raise ProblemFileError where a column's name stands in the header twice."""
    twins = [name for name, count in Counter(names).items() if count > 1]
    if twins:
        raise ProblemFileError(f'{place}, column "{twins[0]}": stands in the header twice. Rename one of the two.')


def unreadable(path: object, error: OSError) -> ProblemFileError:
    """The error of a file that the system will not hand over."""
    return ProblemFileError(f"{path}: cannot be read ({error.strerror or error}). Check the file and its permissions.")
