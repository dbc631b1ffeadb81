"""Writes docs/recipes.md, every key of a recipe with default and meaning, from the models in loopwise/config.

Run from the repository: ``python scripts/recipe_docs.py``. ``tests/docs/`` fails where the page is out of date.
"""

from __future__ import annotations

import inspect
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic.fields import FieldInfo

from loopwise.config.blocks import Block
from loopwise.config.method import Method
from loopwise.config.methods import PolicyGradientConfig, SFTConfig
from loopwise.config.recipes import ImproveRecipe, TuneRecipe
from loopwise.evaluate.rules import RULES
from loopwise.evaluate.sources import sources

sys.path.insert(0, str(Path(__file__).resolve().parent))
from recipe_words import MEANINGS, NOTES, TITLES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "recipes.md"

HEAD = """\
# Every key of a recipe

Written by `scripts/recipe_docs.py` from the models in `src/loopwise/config/`. Change those.

A recipe is a YAML file. `loopwise pretrain`, `tune` and `improve` read one kind each; their blocks are shared.

- Unknown keys are refused, and the nearest known one is named.
- Any key can be changed on the command line by its dotted name, such as `update.optimizer.lr=1e-4`.
- Relative paths are taken from the recipe's own folder.
"""

METHODS_TITLE = "`update`: the methods"
METHODS_HEAD = f"""\
## {METHODS_TITLE}

`method` chooses the way of learning; [methods.md](methods.md) says which one when. `pretrain` has one and no such key.

Below stand the keys that several methods share, then of each its own and the defaults that differ.

| method | command | keys |
| --- | --- | --- |
"""

COLUMNS = "| key | type | default | meaning |\n| --- | --- | --- | --- |"

RULES_HEAD = """\
## Built-in rewards

The rules that `rewards` may name, and their `options`. None: not judged, masked, never counted as 0.

| rule | options | scores |
| --- | --- | --- |
"""

SOURCES_HEAD = """\
## Built-in judges and critics

The sources that `rewards` or `critics` may name, and their `options`; [feedback.md](feedback.md) says which one when.

| source | under | options | what it says |
| --- | --- | --- | --- |
"""


def page() -> str:
    """The text of docs/recipes.md. Raises ValueError where a key has no meaning, or has two."""
    methods = _methods()
    sections: list[str] = []
    for block in TITLES:
        if block is SFTConfig:
            sections.append(METHODS_HEAD + "\n".join(_overview(*method) for method in methods.items()) + "\n")
        sections.append(_section(block))
        sections += [_method(method) for method in methods if _family(method) is block]
    rules, judges = (
        head + "\n".join(rows) + "\n" for head, rows in ((RULES_HEAD, _rules()), (SOURCES_HEAD, _sources()))
    )
    return "\n".join([HEAD, *sections, rules, judges])


def _methods() -> dict[type[Block], list[str]]:
    """The block of each method, with the commands that take it."""
    found: dict[type[Block], list[str]] = {}
    for command, recipe in (("improve", ImproveRecipe), ("tune", TuneRecipe)):
        field = recipe.model_fields["update"]
        for choice in typing.get_args(field.annotation):
            block = typing.get_args(choice)[0]
            is_default = type(field.default) is block
            found.setdefault(block, []).append(f"{command} (its default)" if is_default else command)
    return found


def _family(block: type[Block]) -> type[Block]:
    """The block whose keys a method shares with others; one that shares none stands after the last."""
    return next((base for base in block.__mro__ if base in TITLES), PolicyGradientConfig)


def _overview(block: type[Block], commands: list[str]) -> str:
    families = [base for base in reversed(block.__mro__) if base in TITLES]
    keys = [f"[{TITLES[base].removeprefix('`update` ')}](#{_anchor(TITLES[base])})" for base in families]
    keys.append(f"[its own](#{_anchor(_heading(block))})")
    return f"| `{_name(block)}` | {', '.join(commands)} | {', '.join(keys)} |"


def _section(block: type[Block]) -> str:
    parent = next((base for base in block.__mro__[1:] if base in TITLES), None)
    note = f"{NOTES[block]}\n\n" if block in NOTES else ""
    return f"## {TITLES[block]}\n\n{_intro(block)}\n\n{note}{_table(_rows(block, parent))}"


def _method(block: type[Block]) -> str:
    """What a method has beside the keys of the block it stands on; of those keys, defaults that are others here."""
    base = block.__mro__[1]
    if base is Method:
        return f"### {_heading(block)}\n\n{_intro(block)}\n\n{_table(_rows(block, None))}"
    rows = list(_rows(block, base))
    name = _heading(base) if base not in TITLES else TITLES[base]
    known = f"[{name}](#{_anchor(name)})"
    table = f"Beside {known}:\n\n{_table(rows)}" if rows else f"Its keys are those of {known}.\n"
    return f"### {_heading(block)}\n\n{_intro(block)}\n\n{table}"


def _table(rows: Iterable[str]) -> str:
    return "\n".join([COLUMNS, *rows, ""])


def _rows(block: type[Block], parent: type[Block] | None) -> Iterator[str]:
    known = parent.model_fields if parent else {}
    for name, field in block.model_fields.items():
        if name != "method" and (name not in known or known[name].default != field.default):
            yield _row(block, name, field)


def _intro(block: type[Block]) -> str:
    paragraph = inspect.cleandoc(block.__doc__ or "").partition("\n\n")[0]
    return " ".join(paragraph.split()).replace("``", "`")


def _name(block: type[Block]) -> str:
    return str(block.model_fields["method"].default)


def _heading(block: type[Block]) -> str:
    return f"`update.method: {_name(block)}`"


def _row(block: type[Block], name: str, field: FieldInfo) -> str:
    cells = (f"`{name}`", _type(field), _default(field), _meaning(block, name, field))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _meaning(block: type[Block], name: str, field: FieldInfo) -> str:
    owners = [base for base in block.__mro__ if name in MEANINGS.get(base, {})]
    if bool(owners) == bool(field.description):
        found = "two meanings: remove the one here" if owners else "no meaning: describe it in loopwise/config or here"
        raise ValueError(f"{block.__name__}.{name} has {found}")
    return MEANINGS[owners[0]][name] if owners else str(field.description)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**needed**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Block):
        changed = ", ".join(f"{name}: {_plain(getattr(value, name))}" for name in sorted(value.model_fields_set))
        return f"its own, with `{changed}`" if changed else "its own"
    if value is None or value == () or value == {}:
        return "none"
    return f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    """A value as YAML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value) if isinstance(value, tuple) else value).replace("\n", "\\n")


def _type(field: FieldInfo) -> str:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = [
        f"{sign} {getattr(limit, name)}"
        for limit in field.metadata
        for name, sign in signs.items()
        if getattr(limit, name, None) is not None
    ]
    return ", ".join([_words(field.annotation), *limits])


def _words(annotation: Any) -> str:
    """A type in words a reader of YAML knows."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _words(arguments[0])
    if origin in (typing.Union, types.UnionType):
        if all(typing.get_origin(part) is typing.Annotated for part in arguments):  # the methods, with their tags
            return f"[block](#{_anchor(METHODS_TITLE)})"
        return " or ".join(_words(part) for part in arguments if part is not type(None))
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin is tuple:
        inner = _words(arguments[0])
        return f"list of {inner}" if arguments[-1] is Ellipsis else f"list of {len(arguments)} {inner}s"
    if isinstance(annotation, type) and issubclass(annotation, Block):
        return f"[block](#{_anchor(TITLES[annotation])})"
    if origin in (Mapping, dict) and isinstance(arguments[1], type) and issubclass(arguments[1], Block):
        return f"name: [block](#{_anchor(TITLES[arguments[1]])})"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    return names.get(annotation, "keys and values")


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9_ -]", "", title.lower()).replace(" ", "-")


def _rules() -> Iterator[str]:
    for name, rule in RULES.items():
        parameters = inspect.signature(rule.build).parameters.values()
        options = ", ".join(f"`{p.name}`" + ("" if p.default is p.empty else f" = `{p.default}`") for p in parameters)
        meaning = " ".join((rule.build.__doc__ or "").split()).removeprefix("1.0 where ").replace("``", "`")
        yield f"| `{name}` | {options} | {meaning} |"


def _sources() -> Iterator[str]:
    for name, source in sources().items():
        parameters = list(inspect.signature(source.build).parameters.values())[1:]
        options = ", ".join(f"`{p.name}`" + ("" if p.default is p.empty else f" = `{p.default}`") for p in parameters)
        under = ", ".join(
            key for key, what in (("rewards", "rewards"), ("critics", "critiques")) if what in source.says
        )
        meaning = " ".join((source.build.__doc__ or "").split("\n\n")[0].split()).replace("``", "`")
        cells = (f"`{name}`", under, options, meaning)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
