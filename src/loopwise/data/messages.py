"""Chat messages in a row: read in every spelling, checked, and parted into a prompt and what is to be learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loopwise.data.row import Row, describe
from loopwise.errors import ProblemFileError, nearest
from loopwise.types import Message, Prompt

Messages = tuple[Message, ...]
Completion = str | Messages
"""What is to be learned: text, or the rest of a conversation (assistant, user, assistant, ...)."""

OTHER_PROMPT = "name another column with data.prompt_column"
OTHER_COMPLETION = "name another column with data.completion_column"

_ROLES = dict.fromkeys(("system", "user", "assistant", "tool"))
_KEYS = (("role",), ("content",))
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
_SHAREGPT_KEYS = (("from", "role", "user"), ("value", "content", "text"))


def value_of(row: Row, column: str, other: str) -> Any:
    """The column's value. ``other`` says how to name another column. Raises ProblemFileError where it is missing."""
    if column not in row.columns:
        known = nearest(column, row.columns) if row.columns else "The row has no columns."
        raise ProblemFileError(f'{row.place}, column "{column}": missing. {known} Add it, or {other}.')
    return row.columns[column]


def wrong(row: Row, column: str, value: Any, expected: str, mend: str) -> ProblemFileError:
    """The error of a column that holds something else than ``expected``."""
    return ProblemFileError(f'{row.place}, column "{column}": expected {expected}, found {describe(value)}. {mend}.')


def text_or_messages(row: Row, column: str, other: str) -> Prompt:
    """The column's text, or its messages as a tuple of plain dicts. Raises ProblemFileError."""
    value = value_of(row, column, other)
    if isinstance(value, list):
        return messages(row, column, other)
    if isinstance(value, str) and value.strip():
        return value
    fill = value is None or isinstance(value, str)
    mend = "Fill it in or remove the row" if fill else "Put quotes around it"
    raise wrong(row, column, value, "text or a list of messages", f"{mend}, or {other}")


def messages(row: Row, column: str, other: str, *, sharegpt: bool = False) -> Messages:
    """The column's messages as a tuple of ``{"role", "content"}``; ``sharegpt`` reads its many spellings too.

    Raises ProblemFileError naming the message at fault.
    """
    value = value_of(row, column, other)
    if not isinstance(value, list):
        mend = "CSV holds text alone: use JSONL or Parquet" if isinstance(value, str) else "Write it as a list"
        raise wrong(row, column, value, "a list of messages", f"{mend}, or {other}")
    keys, roles = (_SHAREGPT_KEYS, _SHAREGPT_ROLES) if sharegpt else (_KEYS, _ROLES)
    found = tuple(
        _message(f'{row.place}, column "{column}", message {number}', entry, keys, roles)
        for number, entry in enumerate(value, start=1)
    )
    if not any(message["content"].strip() for message in found):
        what = "messages without content" if found else "an empty list"
        raise ProblemFileError(
            f'{row.place}, column "{column}": expected text or a list of messages, found {what}. '
            f"Fill it in, or {other}."
        )
    return found


def conversation_parts(place: str, said: Messages, *, required: bool) -> tuple[Messages, Completion | None]:
    """A conversation as its prompt (all before the assistant first speaks) and the completion to learn (the rest).

    Without an assistant's message the completion is None, an error where it is ``required``. ``place`` names row and
    column. Raises ProblemFileError.
    """
    first = next((n for n, message in enumerate(said) if message["role"] == "assistant"), len(said))
    if not first:
        raise ProblemFileError(f"{place}: begins with the assistant's message. Add the user's before it, or remove it.")
    if first == len(said):
        if required:
            raise ProblemFileError(f"{place}: no message is the assistant's, so there is nothing to learn. Add one.")
        return said, None
    return said[:first], completion_of(place, said[first:])


def completion_of(place: str, said: Messages) -> Completion:
    """The completion that messages after a prompt are: text if only the assistant speaks, once.

    Raises ProblemFileError unless they end with an answer of the assistant.
    """
    last = said[-1]
    if last["role"] != "assistant":
        raise ProblemFileError(
            f'{place}: expected messages that end with the assistant\'s, found role "{last["role"]}" last. '
            f"Add the answer, or {OTHER_COMPLETION}."
        )
    if not last["content"].strip():
        raise ProblemFileError(f"{place}: expected an answer in the last message, found empty text. Fill it in.")
    return said if len(said) > 1 else last["content"]


def completion_after(row: Row, column: str, prompt: Prompt) -> tuple[Prompt, Completion]:
    """The column as what follows ``prompt``; messages may begin by repeating it, and are what is left of them then.

    A text prompt of a conversation that goes on becomes a message, so both sides are messages: hence the prompt, too.
    """
    found = text_or_messages(row, column, OTHER_COMPLETION)
    if isinstance(found, str):
        return prompt, found
    place = f'{row.place}, column "{column}"'
    asked: Messages = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
    rest = found[len(asked) :] if found[: len(asked)] == asked else found
    if not rest:
        raise ProblemFileError(f"{place}: repeats the prompt and nothing more. Add the answer, or {OTHER_COMPLETION}.")
    completion = completion_of(place, rest)
    if rest[0]["role"] != "assistant":
        raise ProblemFileError(
            f"{place}: the messages before the last are not those of the prompt. "
            "Move them into the prompt, so that the completion begins with the assistant's."
        )
    return (prompt if isinstance(completion, str) else asked), completion


def _message(place: str, entry: Any, keys: Sequence[Sequence[str]], roles: Mapping[str, str | None]) -> dict[str, str]:
    names = [spellings[0] for spellings in keys]
    if not isinstance(entry, dict):
        shape = ", ".join(f'"{name}": …' for name in names)
        raise ProblemFileError(f"{place}: expected {{{shape}}}, found {describe(entry)}. Write it as an object.")
    # Parquet fills the keys that a message lacks with null.
    given = {key: value for key, value in entry.items() if value is not None}
    used = [next((name for name in spellings if name in given), spellings[0]) for spellings in keys]
    for key in used:
        if not isinstance(given.get(key), str):
            found = describe(entry[key]) if key in entry else "no such key"
            raise ProblemFileError(f'{place}: expected text under "{key}", found {found}. Write it as text.')
    role, content = (given[key] for key in used)
    if role not in roles:
        raise ProblemFileError(f'{place}: unknown role "{role}". {nearest(role, roles)}')
    extra = sorted(given.keys() - set(used))
    if extra:
        raise ProblemFileError(
            f'{place}: key "{extra[0]}" would be ignored. Remove it, or make it part of the content.'
        )
    return {"role": roles[role] or role, "content": content}
