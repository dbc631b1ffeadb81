"""What pydantic found wrong with a recipe, in words that name the key and the mend and no Python type."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    "union_tag_not_found": "keys with values",
    "too_long": "at most {max_length} entries",
    "too_short": "at least {min_length} entry",
    "tuple_type": "a list in [ ]",
}
"""Pydantic's kinds of error, in words that name no Python type."""


def explain(kind: type[BaseModel], place: str, error: ValidationError, content: Mapping[str, Any]) -> str:
    """A line for each key of ``content`` that is wrong; ``kind`` is the model that it was validated by, ``place`` the
    recipe's name.
    """
    found_at: dict[tuple[str, ...], list[Any]] = {}
    for detail in error.errors():
        found_at.setdefault(_walk(kind, detail["loc"])[0], []).append(detail)
    return "\n".join(
        _explain(kind, place, location, details, content)
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


def _explain(
    kind: type[BaseModel], place: str, location: Sequence[str], details: Sequence[Any], content: Mapping[str, Any]
) -> str:
    detail = details[0]
    key = ".".join(location)
    if detail["type"] == "extra_forbidden":
        return f'{place}: unknown key "{key}"{_unknown(kind, location, detail, content)}'
    if detail["type"] == "union_tag_not_found" and isinstance(detail["input"], Mapping):
        known = ", ".join(map(str, map(_method, _choices(kind, location))))
        return f'{place}: key "{key}.method": expected one of {known}, found {found(detail["input"]["method"])}.'
    if detail["type"] == "union_tag_invalid":
        tag, known = detail["ctx"]["tag"], detail["ctx"]["expected_tags"]
        mend = nearest(tag, [name.strip(" '") for name in known.split(",")])
        return f'{place}: key "{key}.method": unknown method "{tag}". {mend}'
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


def _unknown(kind: type[BaseModel], location: Sequence[str], detail: Any, content: Mapping[str, Any]) -> str:
    """Of which method a key is unknown, and the mend: a key that is near, or a method that has this one."""
    *above, name = location
    _, owner = _walk(kind, detail["loc"])
    method = _method(owner) if owner else None
    if method is None:
        return f". {nearest(name, owner.model_fields if owner else ())}"
    block: Any = content
    for part in above:
        block = block[part]
    others = [str(_method(other)) for other in _choices(kind, above) if name in other.model_fields]
    if others and "method" not in block:
        belongs = ", ".join(others)
        return f" of method {method} (the default); it belongs to {belongs}. Name the method with {above[-1]}.method."
    return f" of method {method}. {nearest(name, owner.model_fields if owner else ())}"


def _choices(kind: type[BaseModel], location: Sequence[str]) -> list[type[BaseModel]]:
    """The blocks that a key may hold."""
    blocks = [kind]
    for part in location:
        field = next((block.model_fields[part] for block in blocks if part in block.model_fields), None)
        blocks = _blocks(field.annotation) if field else []
    return blocks


def _follows(location: tuple[str, ...], others: Iterable[tuple[str, ...]]) -> bool:
    """Whether an error only says that something inside its key is wrong, which has an error of its own."""
    return any(len(other) > len(location) and other[: len(location)] == location for other in others)


def _walk(kind: type[BaseModel], parts: Sequence[Any]) -> tuple[tuple[str, ...], type[BaseModel] | None]:
    """The keys on the way to an error, and the block that the last one is in.

    Where a key takes several kinds of value, pydantic names the tried one too.
    """
    location: list[str] = []
    block: type[BaseModel] | None = kind
    owner = block
    tried: list[type[BaseModel]] | None = None
    for part in parts:
        if tried is not None:
            block = next((one for one in tried if _method(one) == part), block)
            tried = None
            continue
        location.append(str(part))
        owner = block
        field = block.model_fields.get(part) if block and isinstance(part, str) else None
        if field:
            blocks = _blocks(field.annotation)
            tried = blocks if _takes_several_kinds(field.annotation) else None
            block = next(iter(blocks), None)
    return tuple(location), owner


def _method(block: type[BaseModel]) -> str | None:
    """The ``method`` that chooses a block among several."""
    field = block.model_fields.get("method")
    return str(field.default) if field else None


def _takes_several_kinds(annotation: Any) -> bool:
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
    return get_origin(annotation) in (Union, UnionType) and len(kinds) > 1


def _blocks(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [block for part in getattr(annotation, "__args__", ()) for block in _blocks(part)]
