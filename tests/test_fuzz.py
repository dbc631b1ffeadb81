"""Ten thousand damaged rows and recipes: each is read, or refused by an error that names its place. Never a traceback.

Every case is a pure function of its number, so a failure is reproduced by its number alone.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import random
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import yaml
from pyarrow import parquet
from tests.encoded import labelled_from_rows

from loopwise.config.blocks import DataConfig
from loopwise.config.reading import load_recipe
from loopwise.config.recipes import ImproveRecipe, PretrainRecipe, TuneRecipe
from loopwise.data.rows import problems_from_rows
from loopwise.errors import LoopwiseError
from loopwise.tasks.row_files import row_file_streams

ROW_CASES, RECIPE_CASES, CHUNKS = 8000, 2000, 10

SAID = [{"role": "system", "content": "Add."}, {"role": "user", "content": "2+2?"}]
TOLD = [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]
ANSWER = [{"role": "assistant", "content": "4"}]
ROWS: dict[str, dict[str, Any]] = {
    "text": {"text": "To be, or not 2 be", "by": "W. S."},
    "messages": {"messages": [*SAID, *ANSWER, {"role": "user", "content": "sure?"}, *ANSWER], "n": 1},
    "prompt": {"prompt": SAID, "answer": "4", "level": 1.5},
    "prompt_completion": {"prompt": "2+2=", "completion": "4"},
    "preference": {"prompt": SAID, "chosen": ANSWER, "rejected": [{"role": "assistant", "content": "5"}]},
    "implicit": {"chosen": "sky 2 is blue", "rejected": "sky 2 is green"},
    "unpaired": {"prompt": "2+2=", "completion": "4", "label": True},
    "alpaca": {"instruction": "Add.", "input": "2, 2", "output": "4", "system": "Think.", "history": [["1+1?", "2"]]},
    "sharegpt": {"conversations": TOLD, "system": "Add.", "id": "x"},
    "verl": {
        "data_source": "sums",
        "prompt": SAID,
        "reward_model": {"style": "rule", "ground_truth": "4"},
        "extra_info": {"index": 3},
    },
    "question_answer": {"question": "2+2?", "answer": "4"},
}
NAMED = {"implicit": "preference"}
JUNK: list[Any] = [
    None, True, False, 0, -1, 1.5, 10**30, -(10**400), 1e308, float("nan"), float("inf"), "", " ", "\x00", "x" * 5000,
    "\u202e\ufeff\u2028", "é" * 3, "😀", "\ud800", "你好", [], [[]], [None], {}, {"": None}, {"role": "user"},
    [{"role": "user", "content": "x"}], [{"role": "assistant", "content": ""}], [{"from": "gpt", "value": 3}],
    [1, "2", [3]], {"a": {"b": [{"c": None}]}}, "true", "1e5", "null", "[]", "nan", "../..", "~", "a:b", "{{x}}", "%s",
]  # fmt: skip
BYTES = [
    b"\x00",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\r",
    b"\n",
    b'"',
    b"\\u12",
    b"{",
    b"]",
    b",",
    b"\xef\xbb\xbf",
    b"\t- ",
]


def mutated(value: Any, chance: random.Random) -> Any:
    """The value with one thing changed somewhere inside it."""
    if isinstance(value, dict) and value and chance.random() < 0.8:
        changed = dict(value)
        key = chance.choice(list(changed))
        act = chance.randrange(5)
        if act == 0:
            del changed[key]
        elif act == 1:
            changed[chance.choice([key + "s", key[:-1], key.upper(), "", "\u202e", "prompt"])] = changed.pop(key)
        elif act == 2:
            changed[chance.choice(["extra", "label", "messages", "tools", "weight"])] = chance.choice(JUNK)
        else:
            changed[key] = mutated(changed[key], chance)
        return changed
    if isinstance(value, list) and value and chance.random() < 0.8:
        changed, place = list(value), chance.randrange(len(value))
        if chance.random() < 0.3:
            del changed[place]
        else:
            changed[place] = mutated(changed[place], chance)
        return changed
    return copy.deepcopy(chance.choice(JUNK))


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The bytes with one thing changed: cut short, a byte turned, something put in between, or another encoding."""
    place = chance.randrange(len(content) + 1)
    act = chance.randrange(5)
    if act == 0:
        return content[:place]
    if act == 1:
        return content[:place] + chance.choice(BYTES) + content[place:]
    if act == 2 and place < len(content):
        return content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]
    if act == 3:
        return content.decode("utf-8", "replace").encode(chance.choice(["utf-16", "utf-32", "latin-1"]), "replace")
    return content[place:]


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def jsonl(rows: list[Any]) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def comma_separated(rows: list[Any]) -> bytes:
    rows = [row if isinstance(row, dict) else {"row": row} for row in rows]
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(rows[0])
    writer.writerows([as_text(value) for value in row.values()] for row in rows)
    return file.getvalue().encode("utf-8", "surrogatepass")


def table(rows: list[Any]) -> Any:
    """The rows as an Arrow table; what Arrow cannot hold side by side becomes text."""
    rows = [row if isinstance(row, dict) else {"row": row} for row in rows]
    try:
        return pyarrow.Table.from_pylist(rows)
    except (pyarrow.ArrowException, UnicodeError, OverflowError):
        return pyarrow.Table.from_pylist([{"prompt": json.dumps(row)} for row in rows])


def as_parquet(rows: list[Any]) -> bytes:
    file = io.BytesIO()
    try:
        parquet.write_table(table(rows), file)
    except (pyarrow.ArrowException, UnicodeError):  # columns of no type, or without fields, have no place in the format
        parquet.write_table(pyarrow.table({"prompt": [json.dumps(row) for row in rows]}), file)
    return file.getvalue()


def as_stream(rows: list[Any]) -> bytes:
    file = io.BytesIO()
    content = table(rows)
    with pyarrow.ipc.new_stream(file, content.schema) as stream:
        stream.write_table(content)
    return file.getvalue()


WRITERS: dict[str, Callable[[list[Any]], bytes]] = {
    "rows.jsonl": jsonl,
    "rows.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "rows.csv": comma_separated,
    "rows.parquet": as_parquet,
    "rows/data.arrow": as_stream,
}


def furnish(folder: Path) -> None:
    (folder / "rows").mkdir(exist_ok=True)
    (folder / "rows" / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')


def write_rows(case: int, folder: Path) -> tuple[Path, str]:
    """The file of a case, and its format."""
    chance = random.Random(f"rows {case}")
    format = chance.choice(list(ROWS))
    name = chance.choice(list(WRITERS))
    rows: list[Any] = [json.loads(json.dumps(ROWS[format]).replace("2", str(n))) for n in range(2, 6)]
    bad = chance.randrange(len(rows))
    for _ in range(chance.choice([1, 1, 2])):
        rows[bad] = mutated(rows[bad], chance)
    content = WRITERS[name](rows)
    path = folder / name
    path.write_bytes(damaged(content, chance) if chance.random() < 0.35 else content)
    return (path if path.parent == folder else path.parent), NAMED.get(format, format)


def complaint(case: str, work: Callable[[], object]) -> str | None:
    """What an error says that was raised on purpose; None where there was none. Any other fails the test."""
    try:
        work()
    except LoopwiseError as error:
        return str(error)
    except Exception as error:
        pytest.fail(f"{case}: {type(error).__name__}: {error}")
    return None


def read_rows_of(case: int, path: Path, format: Any) -> None:
    if case % 4 == 0:
        problems_from_rows(path)
    elif case % 4 == 1:
        labelled_from_rows(path, format=format)
    else:
        data = DataConfig(train=str(path), format=format if case % 8 < 4 else "auto", dev=1, test=0)
        row_file_streams(data, case, supervised=case % 4 == 2)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_damaged_rows(chunk: int, tmp_path: Path) -> None:
    furnish(tmp_path)
    refused = 0
    cases = range(chunk, ROW_CASES, CHUNKS)
    for case in cases:
        path, format = write_rows(case, tmp_path)
        message = complaint(f"case {case} ({path.name}, {format})", partial(read_rows_of, case, path, format))
        refused += message is not None
        assert message is None or names_its_rows(message, path), f"case {case}: {message}"
    assert len(cases) * 0.4 < refused < len(cases) * 0.95, "mutations that never, or always, hurt test nothing"


def names_its_rows(message: str, path: Path) -> bool:
    """Whether an error names the file, and line, row or column where it is not the whole file's."""
    places = re.compile(r"(/state\.json|/data\.arrow)?( line \d+| row \d+|, column \")")
    whole = re.compile(r"(/data\.arrow)?: (no rows|not a readable|not readable JSON|dev \d+ held-out rows wanted)")
    place = message.removeprefix(str(path))
    # Problems that fill no split of their own, or are in two, are named by what they ask.
    splits = re.compile(r"split \"dev\": |dev: \d+ of \d+ different problems")
    return bool(places.match(place) or whole.match(place) or splits.match(message))


MODEL = {"create": "llama", "depth": 2, "width": 64, "tokenizer": {"kind": "bpe", "vocabulary": 512}}
UPDATE = {"steps": 3, "batch_size": 2, "optimizer": {"name": "muon", "lr": 1e-3, "betas": [0.9, 0.99], "clip": 1.0}}
RECIPES: list[tuple[Any, dict[str, Any]]] = [
    (
        PretrainRecipe,
        {
            "model": MODEL,
            "data": {"train": [{"path": "a.txt", "weight": 2}, "b.jsonl"], "dev": 0.1, "deduplicate": "near"},
            "update": {**UPDATE, "window": 64},
            "rounds": 2,
            "prompts": ["", "To be"],
            "runtime": {"threads": 1, "dtype": "float32"},
        },
    ),
    (
        TuneRecipe,
        {
            "model": {"path": "model", "lora": {"rank": 4, "targets": ["q_proj"]}},
            "data": {
                "train": [
                    {"path": "a.jsonl", "format": "alpaca"},
                    {"path": "b.csv", "weight": 2, "prompt_column": "text"},
                ],
                "dev": 8,
                "test": "test.jsonl",
                "augment": "noise.py:swap",
            },
            "update": {**UPDATE, "too_long": "truncate"},
            "budget": {"seconds": 60.0},
            "seed": 3,
        },
    ),
    (
        ImproveRecipe,
        {
            "model": "model",
            "data": {"task": "addition", "task_options": {"digits": 3}, "labelled": 250, "dev": 8, "test": 8},
            "rewards": ["number", {"use": "mine.py:f", "weight": 0.5, "options": {}}],
            "report_rewards": [{"use": "regex", "options": {"pattern": "x"}}],
            "update": {"method": "rft", **UPDATE, "threshold": 1.0, "keep": "verified"},
            "controls": ["labelled", "gold"],
            "curriculum": {"target": 0.5},
            "sampling": {"max_tokens": 3, "temperature": 1.0, "stop": ["\n"]},
            "gate": {"metric": "reward", "confidence": 0.95},
        },
    ),
]
SPOILERS = [
    "\t",
    ": ",
    "- ",
    "[",
    "}",
    "'",
    '"',
    "&a *a",
    "!!python/object:os.system x",
    "? ",
    "| ",
    "#",
    "\u2028",
    "0x",
    "~",
]
OVERRIDES = [
    "rounds=0",
    "data.train=",
    "model.path=x",
    "a.b.c=1",
    "=",
    "rounds",
    "data=[",
    "seed=1e3",
    "update..x=1",
    "data.dev.x=2",
]


def write_recipe(case: int, folder: Path) -> tuple[Path, Any, list[str]]:
    """The recipe of a case, its kind, and overrides from a command line."""
    chance = random.Random(f"recipe {case}")
    kind, content = chance.choice(RECIPES)
    changed: Any = copy.deepcopy(content)
    for _ in range(chance.choice([0, 1, 1, 2])):
        changed = mutated(changed, chance)
    try:
        text = yaml.dump(changed, allow_unicode=True, sort_keys=False)
    except UnicodeError:
        text = json.dumps(changed)
    if chance.random() < 0.3:
        place = chance.randrange(len(text) + 1)
        text = text[:place] + chance.choice(SPOILERS) + text[place:]
    path = folder / "mine.yaml"
    written = text.encode("utf-8", "surrogatepass")
    path.write_bytes(damaged(written, chance) if chance.random() < 0.2 else written)
    return path, kind, chance.sample(OVERRIDES, 1) if chance.random() < 0.2 else []


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_damaged_recipes(chunk: int, tmp_path: Path) -> None:
    refused = 0
    cases = range(chunk, RECIPE_CASES, CHUNKS)
    for case in cases:
        path, kind, overrides = write_recipe(case, tmp_path)
        message = complaint(f"case {case} ({kind.__name__})", partial(load_recipe, kind, path, overrides))
        refused += message is not None
        assert message is None or names_its_key(message, path, overrides), f"case {case}: {message}"
    assert len(cases) * 0.4 < refused < len(cases) * 0.98


def names_its_key(message: str, path: Path, overrides: list[str]) -> bool:
    """Whether every line of an error names the recipe or the override, and key or line where it is not the whole's."""
    own = re.compile(
        re.escape(str(path))
        + r"( line \d+: |: (unknown )?key \".|: (expected keys|not UTF-8|nested too|this is a recipe|not YAML))"
    )
    return all(own.match(line) or any(line.startswith(f'"{o}"') for o in overrides) for line in message.split("\n"))
