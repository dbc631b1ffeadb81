"""Every command on the page of commands runs as it stands there, on smaller numbers."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from tests.docs.documents import ROOT, code_blocks
from typer.testing import CliRunner

from loopwise.cli import app
from loopwise.tasks.addition import make

PAGE = ROOT / "docs/commands.md"
SMALLER = {"tune": ["data.labelled=8", "data.dev=8", "data.test=8", "update.steps=2", "runtime.threads=1"]}
FEWER = ["--problems", "8"]


def test_every_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None) -> None:
    monkeypatch.chdir(tmp_path)
    problems = [make(first, 3 * first) for first in range(5)]
    rows = [json.dumps({"prompt": problem.prompt, **problem.columns}) for problem in problems]
    (tmp_path / "sums.jsonl").write_text("\n".join(rows))
    (tmp_path / "notes.txt").write_text("12+34=46\n")
    lines = [line for block in code_blocks(PAGE, "bash") for line in block.commands]
    assert len(lines) > 15
    for line in lines:
        said, pipe, command = line.rpartition(" | ")
        program, *arguments = shlex.split(command)
        assert program == "loopwise"
        more = SMALLER.get(arguments[0], FEWER if "--task" in arguments else [])
        piped = said.removeprefix("echo ") + "\n" if pipe else "957+864=\n"
        result = CliRunner().invoke(app, [*arguments, *more], input=piped, env={"COLUMNS": "150"})
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
    written = {"mine.yaml", "samples.jsonl", "figures.json", "few.csv", "few.parquet", "few-model"}
    assert written <= {path.name for path in tmp_path.iterdir()}
