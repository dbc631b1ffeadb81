"""Rows that a tiny judge learns in seconds, and recipes over them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from loopwise.config.paths import resolve_paths
from loopwise.config.reading import parse_recipe
from loopwise.config.recipes import JudgeRecipe

WORDS = ("red", "green", "blue", "cold", "warm", "soft", "hard", "old", "new", "long")
BODY = {"create": "bert", "depth": 1, "width": 16, "heads": 2, "context": 32, "tokenizer": "byte", "dropout": 0.0}
FAST = {"lr": 1e-2, "schedule": "constant"}


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def labelled(count: int = 120) -> list[dict[str, str]]:
    """Texts whose label is told by one letter: the first word's case."""
    rows = []
    for number in range(count):
        words = [WORDS[(number // base) % 10] for base in (1, 10)]
        shout = number % 2 == 0
        text = f"{words[0].upper() if shout else words[0]} {words[1]} {number}"
        rows.append({"text": text, "label": "loud" if shout else "calm"})
    return rows


def preferred(count: int = 80) -> list[dict[str, str]]:
    """Pairs in which the better answer ends with an exclamation mark."""
    return [
        {
            "prompt": f"say {WORDS[number % 10]} {number}",
            "chosen": f" {WORDS[number // 10]}!",
            "rejected": f" {WORDS[number // 10]}?",
        }
        for number in range(count)
    ]


def recipe(folder: Path, **changes: Any) -> JudgeRecipe:
    """A recipe over ``folder/rows.jsonl`` of a tiny encoder."""
    content: dict[str, Any] = {
        "model": BODY,
        "data": {"train": "rows.jsonl", "dev": 0.2, "test": 0.2},
        "update": {"steps": 20, "batch_size": 16, "optimizer": FAST},
        "rounds": 2,
        "runtime": {"device": "cpu", "threads": 1, "checkpoint_steps": 50},
    }
    return resolve_paths(parse_recipe(JudgeRecipe, content | changes), folder)
