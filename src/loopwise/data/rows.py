"""Rows become problems (a prompt and its free columns) or labelled problems (with the completion to learn)."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loopwise.data.formats import Row, describe, read_rows
from loopwise.errors import ProblemFileError, nearest
from loopwise.types import Message, Problem, Prompt

_ROLES = ("system", "user", "assistant", "tool")
_OTHER_PROMPT = "name another column with data.prompt_column"
_OTHER_COMPLETION = "name another column with data.completion_column"


@dataclass(frozen=True)
class Labelled:
    """A problem and the completion to learn."""

    problem: Problem
    completion: str


def problems_from_rows(path: str | Path, *, prompt_column: str, reference_columns: Sequence[str] = ()) -> list[Problem]:
    """Read a row file as problems.

    ``prompt_column`` holds text or a list of messages ``{"role", "content"}``; every other column becomes a free
    column as it is. ``reference_columns`` are only required to be there. A problem's id depends on its prompt and on
    how many rows before it have the same one, not on its line.
    Raises ProblemFileError naming file, line, column and mend.
    """
    return _problems(read_rows(path), prompt_column, reference_columns)


def labelled_from_rows(path: str | Path, *, prompt_column: str, completion_column: str) -> list[Labelled]:
    """Read a row file as labelled problems.

    ``completion_column`` holds text, or messages that end with the assistant's; messages before it may only repeat the
    prompt. The problems are those of ``problems_from_rows``, with the completion's text under ``completion_column``.
    Raises ProblemFileError naming file, line, column and mend.
    """
    rows = read_rows(path)
    problems = _problems(rows, prompt_column)
    labelled = []
    for row, problem in zip(rows, problems, strict=True):
        completion = _completion(row, completion_column, problem.prompt)
        labelled.append(
            Labelled(replace(problem, columns={**problem.columns, completion_column: completion}), completion)
        )
    return labelled


def _problems(rows: Sequence[Row], prompt_column: str, reference_columns: Sequence[str] = ()) -> list[Problem]:
    seen: Counter[str] = Counter()
    problems = []
    for row in rows:
        prompt = _text_or_messages(row, prompt_column, _OTHER_PROMPT)
        for name in reference_columns:
            _value(row, name, "name other columns with data.reference_columns")
        content = json.dumps(prompt, ensure_ascii=False, sort_keys=True)
        identity = hashlib.sha256(json.dumps([content, seen[content]], ensure_ascii=False).encode()).hexdigest()[:16]
        seen[content] += 1
        columns = {name: value for name, value in row.columns.items() if name != prompt_column}
        problems.append(Problem(identity, prompt, columns))
    return problems


def _completion(row: Row, column: str, prompt: Prompt) -> str:
    completion = _text_or_messages(row, column, _OTHER_COMPLETION)
    if isinstance(completion, str):
        return completion
    *before, last = completion
    if last["role"] != "assistant":
        raise ProblemFileError(
            f'{row.place}, column "{column}": expected messages that end with the assistant\'s, '
            f'found role "{last["role"]}" last. Add the answer, or {_OTHER_COMPLETION}.'
        )
    if not last["content"].strip():
        raise _wrong(row, column, last["content"], "an answer in the last message", "Fill it in")
    asked = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
    if before and tuple(before) != asked:
        raise ProblemFileError(
            f'{row.place}, column "{column}": the messages before the last are not those of the prompt. '
            "Move them into the prompt, so that the completion is one message."
        )
    return last["content"]


def _value(row: Row, column: str, other: str) -> Any:
    if column not in row.columns:
        known = nearest(column, row.columns) if row.columns else "The row has no columns."
        raise ProblemFileError(f'{row.place}, column "{column}": missing. {known} Add it, or {other}.')
    return row.columns[column]


def _text_or_messages(row: Row, column: str, other: str) -> Prompt:
    """The column's text, or its messages as a tuple of plain dicts; ``other`` says how to name another column."""
    value = _value(row, column, other)
    if isinstance(value, list):
        messages = tuple(_message(row, column, number, entry) for number, entry in enumerate(value, start=1))
        if not any(message["content"].strip() for message in messages):
            found = "messages without content" if messages else "an empty list"
            raise ProblemFileError(
                f'{row.place}, column "{column}": expected text or a list of messages, found {found}. '
                f"Fill it in, or {other}."
            )
        return messages
    if isinstance(value, str) and value.strip():
        return value
    fill = value is None or isinstance(value, str)
    mend = "Fill it in or remove the row" if fill else "Put quotes around it"
    raise _wrong(row, column, value, "text or a list of messages", f"{mend}, or {other}")


def _message(row: Row, column: str, number: int, entry: Any) -> Message:
    place = f'{row.place}, column "{column}", message {number}'
    if not isinstance(entry, dict):
        raise ProblemFileError(
            f'{place}: expected {{"role": …, "content": …}}, found {describe(entry)}. Write it as an object.'
        )
    # Parquet fills the keys that a message lacks with null.
    given = {key: value for key, value in entry.items() if value is not None}
    for key in ("role", "content"):
        if not isinstance(given.get(key), str):
            found = describe(entry[key]) if key in entry else "no such key"
            raise ProblemFileError(f'{place}: expected text under "{key}", found {found}. Write it as text.')
    if given["role"] not in _ROLES:
        raise ProblemFileError(f'{place}: unknown role "{given["role"]}". {nearest(given["role"], _ROLES)}')
    extra = sorted(given.keys() - {"role", "content"})
    if extra:
        raise ProblemFileError(
            f'{place}: key "{extra[0]}" would be ignored. Remove it, or make it part of the content.'
        )
    return {"role": given["role"], "content": given["content"]}


def _wrong(row: Row, column: str, value: Any, expected: str, mend: str) -> ProblemFileError:
    return ProblemFileError(f'{row.place}, column "{column}": expected {expected}, found {describe(value)}. {mend}.')
