"""Every command on the page of commands runs as it stands there, in an empty folder, on smaller numbers."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from tests.docs.documents import ROOT, code_blocks
from typer.testing import CliRunner

from loopwise.cli import app

PAGE = ROOT / "docs/commands.md"
SMALLER = {"tune": ["data.labelled=8", "data.dev=8", "data.test=8", "update.steps=2", "runtime.threads=1"]}
FEWER = ["--problems", "8"]


def test_every_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [line for block in code_blocks(PAGE, "bash") for line in block.commands]
    assert len(lines) > 15
    for line in lines:
        if "loopwise" not in line:
            subprocess.run(["bash", "-c", line], check=True)
            continue
        said, pipe, command = line.rpartition(" | ")
        program, *arguments = shlex.split(command)
        assert program == "loopwise"
        more = SMALLER.get(arguments[0], FEWER if "--task" in arguments else [])
        piped = said.removeprefix("echo ") + "\n" if pipe else "957+864=\n"
        result = CliRunner().invoke(app, [*arguments, *more], input=piped, env={"COLUMNS": "150"})
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
    written = {"mine.yaml", "sums.jsonl", "samples.jsonl", "figures.json", "few.csv", "few.parquet", "few-model"}
    assert written <= {path.name for path in tmp_path.iterdir()}


def test_the_sums_on_the_page_are_right(tmp_path: Path) -> None:
    from loopwise.tasks.addition import make

    page = PAGE.read_text(encoding="utf-8")
    for problem in (make(759, 468), make(12, 34)):
        assert f'{{"prompt": "{problem.prompt}", "answer": "{problem.columns["answer"]}"}}' in page
