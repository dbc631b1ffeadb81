"""The shapes that rows come in, told by their columns: TRL's, and alpaca, sharegpt, verl and question-answer rows.

| format | columns | prompt | completion |
| --- | --- | --- | --- |
| text | text | empty | the text |
| messages | messages | messages before the assistant's first | the rest |
| prompt | prompt | prompt | none |
| prompt_completion | prompt, completion | prompt | completion |
| preference | chosen, rejected, maybe prompt | prompt, or what both begin with | chosen |
| unpaired | prompt, completion, label | prompt | completion, where the label is true |
| alpaca | instruction, output, maybe input, system, history | instruction and input, a line each | output |
| sharegpt | conversations, maybe system | as messages | as messages |
| verl | prompt, reward_model, maybe data_source, extra_info | prompt | none |
| question_answer | question, answer | question | answer |
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from loopwise.data.messages import (
    OTHER_COMPLETION,
    OTHER_PROMPT,
    Completion,
    Messages,
    completion_after,
    completion_of,
    conversation_parts,
    messages,
    text_or_messages,
    value_of,
    wrong,
)
from loopwise.data.row import Row
from loopwise.errors import ConfigError, ProblemFileError
from loopwise.types import Prompt

_TRUTH = {"true": True, "1": True, "false": False, "0": False}


class Parts(NamedTuple):
    """What a row is made of. ``completion`` is None where it has none, or one that was not asked for.

    ``columns`` are the free ones, JSON as they were, and the completion among them under the shape's own name.
    ``learnable`` is False for a row that says what not to answer.
    """

    prompt: Prompt
    completion: Completion | None
    columns: dict[str, Any]
    learnable: bool = True


@dataclass(frozen=True)
class Format:
    """A shape of rows: the columns it ``needs``, and those that hold prompt and completion (None where none does).

    Of the formats that fit a row, the one of the lowest ``rank`` is meant. A problem keeps its completion under
    ``stored`` (by default the completion's own column); ``references`` name what gives an answer away besides. Where
    a recipe names another column than ``anchor``, the remaining needs do not tell the format.
    """

    rank: int
    needs: tuple[str, ...]
    prompt: str | None
    completion: str | None
    read: Callable[[Row, Shape, bool], Parts]
    stored: str | None = None
    references: tuple[str, ...] = ()
    anchor: str = ""


@dataclass(frozen=True)
class Shape:
    """A format with the columns that a recipe named instead of the format's own.

    ``stored`` is the column under which a problem keeps its completion, ``references`` are those that give an answer
    away besides. ``chat``: alpaca rows with system prompts or histories are conversations.
    """

    name: str
    prompt: str
    completion: str
    stored: str
    references: tuple[str, ...]
    chat: bool = False

    def read(self, row: Row, *, supervised: bool) -> Parts:
        """The row's prompt, completion and free columns. ``supervised`` rows must have a completion.

        Raises ProblemFileError naming file, line, column and mend.
        """
        return FORMATS[self.name].read(row, self, supervised)


def shape_of(rows: Sequence[Row], name: str, prompt_column: str | None, completion_column: str | None) -> Shape:
    """The shape of ``rows`` (at least one): the format ``name``, or for ``auto`` what the first row's columns tell.

    A named column takes the place of the format's own. Where columns are named and no format fits, rows are prompts
    with completions. Raises ProblemFileError where the columns fit no format or several, ConfigError where a format
    has no such column.
    """
    first = rows[0]
    name = _detected(first, prompt_column, completion_column) if name == "auto" else name
    kind = FORMATS[name]
    # A conversation's completion is no column of the file, but the name that problems keep it under is known.
    kept = completion_column == kind.stored and completion_column not in first.columns
    for key, column, known in (
        ("prompt_column", prompt_column, kind.prompt is not None),
        ("completion_column", completion_column, kind.completion is not None or kept),
    ):
        if column and not known:
            raise ConfigError(f'key "data.{key}": rows of format {name} have no such column. Leave it out.')
    prompt, completion = prompt_column or kind.prompt or "", completion_column or kind.completion or ""
    own = kind.completion or ""
    passed_over = own not in (prompt, completion) and any(own in row.columns for row in rows)
    references = (*kind.references, own) if passed_over else kind.references
    # Only a conversation can hold a system prompt or earlier turns; a file is one or the other throughout.
    chat = name == "alpaca" and any(map(_is_chat, rows))
    return Shape(name, prompt, completion, kind.stored or completion, references, chat)


def _fits(kind: Format, columns: Collection[str], prompt_column: str | None, completion_column: str | None) -> bool:
    """Whether the columns tell the format by what is left of its needs once named columns replace its own."""
    if (prompt_column and kind.prompt is None) or (completion_column in columns and kind.completion is None):
        return False
    named = ((kind.prompt, prompt_column), (kind.completion, completion_column))
    replaced = {own for own, column in named if column not in (None, own)}
    telling = [column for column in kind.needs if column not in replaced]
    return bool(telling) and kind.anchor not in replaced and all(column in columns for column in telling)


def _detected(first: Row, prompt_column: str | None, completion_column: str | None) -> str:
    fitting = [name for name, kind in FORMATS.items() if _fits(kind, first.columns, prompt_column, completion_column)]
    if not fitting and (prompt_column or completion_column):
        return "prompt_completion"
    rank = min((FORMATS[name].rank for name in fitting), default=0)
    best = [name for name in fitting if FORMATS[name].rank == rank]
    if len(best) == 1:
        return best[0]
    columns = ", ".join(first.columns) or "none"
    if best:
        raise ProblemFileError(
            f"{first.place}: its columns ({columns}) fit several formats: {', '.join(best)}. Name one with data.format."
        )
    known = "; ".join(f"{name}: {', '.join(kind.needs)}" for name, kind in FORMATS.items())
    raise ProblemFileError(
        f"{first.place}: its columns ({columns}) fit no format. Name them with data.prompt_column and "
        f"data.completion_column, or rename them. Formats need: {known}."
    )


def _read_text(row: Row, shape: Shape, supervised: bool) -> Parts:
    text = _text(row, shape.completion, OTHER_COMPLETION)
    return Parts("", text, {**_free(row, shape.completion), shape.stored: text})


def _read_messages(row: Row, shape: Shape, supervised: bool) -> Parts:
    said = messages(row, shape.prompt, OTHER_PROMPT)
    return _conversation(row, shape, said, supervised, (shape.prompt,))


def _read_sharegpt(row: Row, shape: Shape, supervised: bool) -> Parts:
    said = messages(row, shape.prompt, OTHER_PROMPT, sharegpt=True)
    return _conversation(row, shape, _with_system(row, said), supervised, (shape.prompt, "system"))


def _conversation(row: Row, shape: Shape, said: Messages, supervised: bool, used: Sequence[str]) -> Parts:
    if row.columns.get("tools") not in (None, "", "[]", []):
        raise ProblemFileError(
            f'{row.place}, column "tools": would be ignored. Describe the tools in the system message, '
            "and remove the column."
        )
    prompt, completion = conversation_parts(f'{row.place}, column "{shape.prompt}"', said, required=supervised)
    return Parts(prompt, completion, {**_free(row, *used), **_stored(shape, completion)})


def _read_prompt(row: Row, shape: Shape, supervised: bool) -> Parts:
    prompt = text_or_messages(row, shape.prompt, OTHER_PROMPT)
    columns = _free(row, shape.prompt)
    if not supervised:
        return Parts(prompt, None, columns)
    prompt, completion = completion_after(row, shape.completion, prompt)
    return Parts(prompt, completion, {**columns, **_stored(shape, completion)})


def _read_preference(row: Row, shape: Shape, supervised: bool) -> Parts:
    sides = (shape.completion, "rejected")
    if shape.prompt in row.columns or shape.prompt != FORMATS["preference"].prompt:
        prompt = text_or_messages(row, shape.prompt, OTHER_PROMPT)
        (asked, chosen), (_, rejected) = (completion_after(row, column, prompt) for column in sides)
    else:
        asked, chosen, rejected = _implicit_prompt(row, sides)
    answers = {shape.stored: _json(chosen), "rejected": _json(rejected)}
    return Parts(asked, chosen, {**_free(row, shape.prompt, *sides), **answers})


def _read_unpaired(row: Row, shape: Shape, supervised: bool) -> Parts:
    label = _label(row)
    prompt, completion = completion_after(row, shape.completion, text_or_messages(row, shape.prompt, OTHER_PROMPT))
    columns = _free(row, shape.prompt, shape.completion) | {"label": label}
    if not label:
        return Parts(prompt, None, columns, learnable=False)
    return Parts(prompt, completion, {**columns, shape.stored: _json(completion)})


def _read_alpaca(row: Row, shape: Shape, supervised: bool) -> Parts:
    value_of(row, shape.prompt, OTHER_PROMPT)
    asked = "\n".join(filter(str.strip, (_optional_text(row, shape.prompt), _optional_text(row, "input"))))
    if not asked:
        raise wrong(row, shape.prompt, row.columns[shape.prompt], "text", f"Fill it in, or {OTHER_PROMPT}")
    columns = _free(row, shape.prompt, "input", "system", "history")
    chat = shape.chat or _is_chat(row)
    if not chat and not supervised:
        return Parts(asked, None, columns)
    answer = _text(row, shape.completion, OTHER_COMPLETION)
    prompt: Prompt = asked
    completion: Completion | None = answer
    if chat:
        said = (*_opening(_optional_text(row, "system")), *_history(row), *_turn(asked, answer))
        prompt, completion = conversation_parts(row.place, said, required=True)
    return Parts(prompt, completion, {**columns, **_stored(shape, completion)})


def _read_verl(row: Row, shape: Shape, supervised: bool) -> Parts:
    model = value_of(row, "reward_model", "name another format with data.format")
    if not isinstance(model, dict) or "ground_truth" not in model:
        raise wrong(row, "reward_model", model, 'an object with "ground_truth"', "Add the reference answer to it")
    parts = _read_prompt(row, shape, supervised)
    return parts._replace(columns={**parts.columns, "ground_truth": model["ground_truth"]})


def _text(row: Row, column: str, other: str) -> str:
    value = value_of(row, column, other)
    if not isinstance(value, str) or not value.strip():
        fill = value is None or isinstance(value, str)
        mend = "Fill it in or remove the row" if fill else "Put quotes around it"
        raise wrong(row, column, value, "text", f"{mend}, or {other}")
    return value


def _optional_text(row: Row, column: str) -> str:
    value = row.columns.get(column)
    if value is None or isinstance(value, str):
        return value or ""
    raise wrong(row, column, value, "text", "Put quotes around it, or remove the column")


def _label(row: Row) -> bool:
    label = value_of(row, "label", "name another format with data.format")
    # CSV knows no truth values, only text.
    judged = _TRUTH.get(label.strip().lower()) if isinstance(label, str) else label
    if not isinstance(judged, bool):
        raise wrong(row, "label", label, "true or false", "Write one of these, or set data.format: prompt_completion")
    return judged


def _is_chat(row: Row) -> bool:
    """Whether an alpaca row is a conversation. An empty list that went through CSV is text."""
    return bool(row.columns.get("system")) or row.columns.get("history") not in (None, [], "", "[]")


def _history(row: Row) -> Messages:
    """The earlier turns of an alpaca row: pairs of question and answer."""
    history = row.columns.get("history")
    if history in (None, [], "", "[]"):
        return ()
    pairs = isinstance(history, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in history)
    if not pairs or not all(isinstance(text, str) and text.strip() for pair in history for text in pair):
        mend = "Write each earlier turn as [question, answer]"
        raise wrong(row, "history", history, "a list of pairs of text", mend)
    return tuple(message for question, answer in history for message in _turn(question, answer))


def _turn(question: str, answer: str) -> Messages:
    return {"role": "user", "content": question}, {"role": "assistant", "content": answer}


def _opening(system: str) -> Messages:
    return ({"role": "system", "content": system},) if system.strip() else ()


def _with_system(row: Row, said: Messages) -> Messages:
    """A sharegpt conversation with the system prompt that may stand in a column of its own."""
    opening = _opening(_optional_text(row, "system"))
    if opening and said[0]["role"] == "system":
        raise ProblemFileError(
            f'{row.place}, column "system": the conversation has a system message already. Remove one of the two.'
        )
    return (*opening, *said)


def _implicit_prompt(row: Row, sides: Sequence[str]) -> tuple[Prompt, Completion, Completion]:
    """What the chosen and the rejected side both begin with, and how each goes on (TRL's ``extract_prompt``)."""
    chosen, rejected = (text_or_messages(row, side, OTHER_COMPLETION) for side in sides)
    place = f'{row.place}, column "{sides[0]}"'
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise ProblemFileError(f'{place}: one of it and "{sides[1]}" is text, the other messages. Write both alike.')
    shorter = min(len(chosen), len(rejected))
    same = next((index for index in range(shorter) if chosen[index] != rejected[index]), shorter)
    if same == shorter:
        raise ProblemFileError(
            f'{place}: it and "{sides[1]}" are the same, or one is the beginning of the other. Mend or remove the row.'
        )
    if isinstance(chosen, str) and chosen[same - 1 : same] == " ":
        # Completions begin with the space, as most tokenizers write words.
        same -= 1
    if not same or (isinstance(chosen, str) and not chosen[:same].strip()):
        raise ProblemFileError(
            f'{place}: it and "{sides[1]}" have no beginning in common to be the prompt. Add a column "prompt".'
        )
    if isinstance(chosen, str) or isinstance(rejected, str):
        return chosen[:same], chosen[same:], rejected[same:]
    return chosen[:same], completion_of(place, chosen[same:]), completion_of(place, rejected[same:])


def _free(row: Row, *used: str) -> dict[str, Any]:
    return {name: value for name, value in row.columns.items() if name not in used}


def _stored(shape: Shape, completion: Completion | None) -> dict[str, Any]:
    return {} if completion is None else {shape.stored: _json(completion)}


def _json(completion: Completion) -> Any:
    return completion if isinstance(completion, str) else [dict(message) for message in completion]


_VERL_REFERENCES = ("ground_truth", "reward_model", "extra_info")
_PLAIN = ("prompt", "completion")
FORMATS: Mapping[str, Format] = {
    "text": Format(4, ("text",), None, "text", _read_text, stored="text"),
    "messages": Format(0, ("messages",), "messages", None, _read_messages, stored="completion"),
    "prompt": Format(2, ("prompt",), *_PLAIN, _read_prompt),
    "prompt_completion": Format(1, _PLAIN, *_PLAIN, _read_prompt),
    "preference": Format(0, ("chosen", "rejected"), "prompt", "chosen", _read_preference, references=("rejected",)),
    "unpaired": Format(0, (*_PLAIN, "label"), *_PLAIN, _read_unpaired, references=("label",), anchor="completion"),
    "alpaca": Format(3, ("instruction", "output"), "instruction", "output", _read_alpaca, anchor="instruction"),
    "sharegpt": Format(0, ("conversations",), "conversations", None, _read_sharegpt, stored="completion"),
    "verl": Format(0, ("prompt", "reward_model"), *_PLAIN, _read_verl, references=_VERL_REFERENCES),
    "question_answer": Format(3, ("question", "answer"), "question", "answer", _read_prompt),
}
"""How each format of ``data.format`` is told and read."""
