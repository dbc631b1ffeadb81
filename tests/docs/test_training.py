"""The examples of the page on pretraining and fine-tuning run in its order, on little text and for two steps."""

from __future__ import annotations

import csv
import json
import random
import re
import shlex
from pathlib import Path

import pytest
from tests.docs.documents import ROOT, code_blocks, named_files
from typer.testing import CliRunner

from loopwise.cli import app
from loopwise.data.shapes import FORMATS
from loopwise.models.presets import PRESETS

PAGE = ROOT / "docs/training.md"
SMALLER = {
    "pretrain": ["model.depth=1", "model.context=48", "rounds=1", "sampling.max_tokens=8", "update.steps=2"],
    "tune": ["update.steps=2"],
}


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the page's recipes name."""
    monkeypatch.chdir(tmp_path)
    letters = random.Random(0)

    def words(count: int) -> str:
        return " ".join("".join(letters.choices("etaoinshr", k=4)) for _ in range(count))

    (tmp_path / "notes").mkdir()
    for number in range(20):
        (tmp_path / f"notes/{number}.md").write_text(words(20))
    (tmp_path / "poems.txt").write_text("\n\n".join(words(20) for _ in range(20)))
    letter_rows = [{"subject": words(2), "body": words(20)} for _ in range(20)]
    question_rows = [{"question": f"{words(2)}?", "answer": words(1)} for _ in range(40)]
    for name, rows in (("letters", letter_rows), ("questions", question_rows)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (tmp_path / "intents.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "category"), *((words(2), "lost card") for _ in range(40))])
    for name, text in named_files(PAGE).items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_every_example_runs(texts: Path, no_report: None) -> None:
    lines = [line for block in code_blocks(PAGE, "bash") for line in block.commands]
    assert len(lines) == 4
    for line in lines:
        program, command, *arguments = shlex.split(line)
        assert program == "loopwise"
        result = CliRunner().invoke(app, [command, *arguments, *SMALLER[command], "runtime.threads=1"])
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
    corpus = json.loads((texts / "runs/notes/summary.json").read_text())["corpus"]
    assert corpus["sources"] == ["notes", "letters.jsonl", "poems.txt"]
    rows = json.loads((texts / "runs/support/summary.json").read_text())["rows"]
    assert rows.keys() == {"questions.jsonl", "intents.csv", "dev", "test"}
    assert (texts / "runs/adapters/model/adapter_model.safetensors").is_file()


def test_the_tables_name_every_format_with_its_columns_and_every_preset() -> None:
    formats = {name: names_in(cell.partition(", maybe")[0]) for name, cell in table("format").items()}
    assert formats == {name: list(kind.needs) for name, kind in FORMATS.items()}
    assert table("`create`").keys() == PRESETS.keys()


def table(head: str) -> dict[str, str]:
    """The second column of the table whose head begins so, by the name in the first."""
    lines = PAGE.read_text(encoding="utf-8").partition(f"\n| {head} |")[2].split("\n\n")[0].splitlines()[2:]
    rows = [line.split("|") for line in lines]
    return {names_in(row[1])[0]: row[2] for row in rows}


def names_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)
