"""The page of methods: its table names every method as it is, and its examples run on a few small problems."""

from __future__ import annotations

import json
import re
import shlex
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.docs.documents import ROOT, code_blocks, named_files
from typer.testing import CliRunner

from loopwise.cli import app
from loopwise.config.recipes import ImproveRecipe, TuneRecipe
from loopwise.report.lessons import NAMES

PAGE = ROOT / "docs/methods.md"


def test_every_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None) -> None:
    monkeypatch.chdir(tmp_path)
    base = {"model": {"create": "demo"}, "data": {"task": "addition", "labelled": 4, "dev": 4, "test": 0}}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**base, "update": {"steps": 1}, "runtime": {"threads": 1}}))
    assert run("loopwise tune base.yaml --out base").exit_code == 0
    rows = [{"prompt": f"{n}+1=", "chosen": str(n + 1), "rejected": "0"} for n in range(16)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in named_files(PAGE).items():
        (tmp_path / name).write_text(yaml.safe_dump(smaller(yaml.safe_load(text))))
    lines = [line for block in code_blocks(PAGE, "bash") for line in block.commands]
    lines = [line.replace("steps: 20", "steps: 2") for line in lines if line.startswith("loopwise")]
    for line in [*lines, "loopwise improve star.yaml --out runs/star"]:
        result = run(line)
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"dr-grpo", "dpo", "rft", "preferences", "star"}


def test_the_table_names_every_method_with_its_own_defaults() -> None:
    methods = blocks()
    assert table().keys() == methods.keys() - {"sft"}
    assert NAMES.keys() == methods.keys() - {"sft", "rft", "ilf"}
    for name, cells in table().items():
        told = dict(entry.split(": ") for entry in re.findall(r"`([\w.]+: [\w.]+)`", cells[4]))
        for key, value in told.items():
            assert default(methods[name], key) == yaml.safe_load(value), f"{name}: {key}"


def run(line: str) -> Any:
    program, *arguments = shlex.split(line)
    assert program == "loopwise"
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "150"})


def smaller(recipe: dict[str, Any]) -> dict[str, Any]:
    data = {**recipe["data"], "dev": 4, "test": 0}
    changed = {**recipe, "data": data, "rounds": 1, "runtime": {"threads": 1}}
    if "task" in data:
        return {**changed, "problems": 4, "samples": 2, "update": {**recipe["update"], **steps(recipe["update"])}}
    return {**changed, "update": {**recipe["update"], "steps": 2, "batch_size": 2}}


def steps(update: dict[str, Any]) -> dict[str, Any]:
    return {"steps": 2, "batch_size": 2} if "steps" in update else {"problems_per_step": 2}


def blocks() -> dict[str, Any]:
    """The block of each method."""
    unions = [recipe.model_fields["update"].annotation for recipe in (ImproveRecipe, TuneRecipe)]
    found = [typing.get_args(choice)[0] for union in unions for choice in typing.get_args(union)]
    return {block.model_fields["method"].default: block for block in found}


def table() -> dict[str, list[str]]:
    """The cells of the table of methods by method."""
    section = PAGE.read_text(encoding="utf-8").partition("\n## The methods\n")[2].partition("\n**A step**")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): [cell.strip() for cell in row] for row in rows}


def default(block: Any, key: str) -> Any:
    first, _, rest = key.partition(".")
    value = block.model_fields[first].default
    return getattr(value, rest) if rest else value
