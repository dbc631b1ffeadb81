"""What pydantic found wrong with a recipe, in words that name the key and the mend and no Python type."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from loopwise.errors import nearest

_EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "keys with values",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "mapping_type": "keys with values",
    "model_type": "keys with values",
    "string_too_short": "text that is not empty",
    "string_type": "text",
    "too_long": "at most {max_length} entries",
    "too_short": "at least {min_length} entry",
    "tuple_type": "a list in [ ]",
}
"""Pydantic's kinds of error, in words that name no Python type."""


def explain(kind: type[BaseModel], place: str, error: ValidationError) -> str:
    """A line for each key that is wrong; ``kind`` is the model that was validated, ``place`` the recipe's name."""
    found_at: dict[tuple[str, ...], list[Any]] = {}
    for detail in error.errors():
        found_at.setdefault(_location(kind, detail["loc"]), []).append(detail)
    return "\n".join(
        _explain(kind, place, location, details)
        for location, details in found_at.items()
        if not _follows(location, found_at)
    )


def found(value: Any) -> str:
    """A value of a recipe in words, for an error."""
    if value is None or value == {} or value == []:
        return "nothing"
    if isinstance(value, bool):
        return "true or yes" if value else "false or no"
    if isinstance(value, dict | list):
        return "a list" if isinstance(value, list) else "keys with values"
    return repr(value)


def _explain(kind: type[BaseModel], place: str, location: Sequence[str], details: Sequence[Any]) -> str:
    detail = details[0]
    key = ".".join(location)
    if detail["type"] == "extra_forbidden":
        known = _fields_at(kind, location[:-1])
        return f'{place}: unknown key "{key}". {nearest(location[-1], known)}'
    if detail["type"] == "missing":
        return f'{place}: key "{key}" is missing. Add it.'
    if detail["type"] in _EXPECTED:
        # Several where a key takes several kinds of value.
        kinds = [_EXPECTED[d["type"]].format(**d.get("ctx", {})) for d in details if d["type"] in _EXPECTED]
        message = "expected " + " or ".join(dict.fromkeys(kinds))
    else:
        message = detail["msg"].removeprefix("Value error, ").removesuffix(".")
        message = message[0].lower() + message[1:]
        if isinstance(detail["input"], dict):
            return f'{place}: key "{key}": {message}.'
    return f'{place}: key "{key}": {message}, found {found(detail["input"])}.'


def _follows(location: tuple[str, ...], others: Iterable[tuple[str, ...]]) -> bool:
    """Whether an error only says that something inside its key is wrong, which has an error of its own."""
    return any(len(other) > len(location) and other[: len(location)] == location for other in others)


def _location(kind: type[BaseModel], parts: Sequence[Any]) -> tuple[str, ...]:
    """The keys on the way to an error. Where a key takes several kinds of value, pydantic names the tried one too."""
    location: list[str] = []
    block: type[BaseModel] | None = kind
    tried = False
    for part in parts:
        if not tried:
            location.append(str(part))
        field = block.model_fields.get(part) if block and not tried and isinstance(part, str) else None
        tried = False
        if field:
            tried = _takes_several_kinds(field.annotation)
            block = next(iter(_blocks(field.annotation)), None)
    return tuple(location)


def _takes_several_kinds(annotation: Any) -> bool:
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
    return get_origin(annotation) in (Union, UnionType) and len(kinds) > 1


def _fields_at(kind: type[BaseModel], location: Sequence[str]) -> list[str]:
    block: Any = kind
    for name in location:
        if name.isdigit():
            continue
        annotation = block.model_fields[name].annotation
        blocks = _blocks(annotation)
        if not blocks:
            return []
        block = blocks[0]
    return list(block.model_fields)


def _blocks(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [block for part in getattr(annotation, "__args__", ()) for block in _blocks(part)]
