"""The command line on several ranks: the first speaks and writes, the others help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.ranks.conftest import Launch
from tests.resume.harness import content
from tests.resume.test_kill import content as contents


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A run of a second."""
    path = tmp_path / "recipe.yaml"
    small = {"create": "gpt2", "depth": 1, "width": 32, "heads": 2, "context": 24, "tokenizer": "char"}
    runtime = {"device": "cpu", "threads": 1, "generate_batch": 8}
    found = {**content("tune", tmp_path), "model": small, "rounds": 1, "runtime": runtime}
    path.write_text(yaml.safe_dump(found))
    return path


def test_only_the_first_rank_speaks(recipe: Path, launch: Launch, tmp_path: Path) -> None:
    out, said = tmp_path / "out", tmp_path / "said"
    launch("command", 2, arguments=["tune", str(recipe), "--out", str(out), "--json"], out=str(said))
    summary = json.loads((tmp_path / "said.0").read_text())
    assert summary == json.loads((out / "summary.json").read_text())
    assert (tmp_path / "said.1").read_text() == ""


def test_an_error_is_one_line_of_one_rank(recipe: Path, launch: Launch, tmp_path: Path) -> None:
    arguments = ["tune", str(recipe), "--out", str(tmp_path / "out"), "runtime.processes=2"]
    refused = launch("command", 3, fails=True, arguments=arguments, out=str(tmp_path / "said"))
    assert sorted(refused.codes) == [1, 1, 2]
    assert refused.errors.count("error: ") == 1
    assert "Traceback" not in refused.errors
    assert not (tmp_path / "out").exists()


def test_a_dry_run_is_the_first_ranks(recipe: Path, launch: Launch, tmp_path: Path) -> None:
    launch("command", 2, arguments=["tune", str(recipe), "--dry-run"], out=str(tmp_path / "said"))
    assert "each round" in (tmp_path / "said.0").read_text()
    assert (tmp_path / "said.1").read_text() == ""


def test_the_demo_is_for_one_process(launch: Launch, tmp_path: Path) -> None:
    refused = launch("command", 2, fails=True, arguments=["demo"], out=str(tmp_path / "said"))
    assert refused.errors.count("error: ") == 1


@pytest.mark.slow
def test_torchrun_ends_as_one_process_does(recipe: Path, tmp_path: Path) -> None:
    start = {"two": ["torch.distributed.run", "--nproc-per-node=2", "-m"], "one": []}
    for name, launcher in start.items():
        command = [sys.executable, *(["-m", *launcher] if launcher else ["-m"]), "loopwise", "tune", str(recipe)]
        done = subprocess.run(
            [*command, "--out", str(tmp_path / name)],
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "150"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("Report: ") == 1
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
