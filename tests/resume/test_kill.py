"""A run stopped with SIGKILL at any instant resumes to bit-identical weights, no sample lost or doubled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loopwise.runs.journal import Journal

HARNESS = Path(__file__).with_name("harness.py")
IGNORED = {"seconds", "wall_seconds"}


def run_harness(kind: str, out: Path, kills: int, seed: int) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    finished = subprocess.run(
        [sys.executable, str(HARNESS), kind, str(out), str(kills), str(seed)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout.splitlines()[-1])


def content(out: Path) -> dict[str, Any]:
    """All of a run that must not depend on interruptions."""
    with Journal.open(out / "journal.db", read_only=True) as journal:
        found: dict[str, Any] = {}
        for run in journal.runs():
            samples = {row.sample.id: row for row in journal.all_samples(run.run_id)}
            found[run.run_id] = {
                "samples": {key: (row.sample, row.parts, row.kept) for key, row in samples.items()},
                "count": sum(1 for _ in journal.all_samples(run.run_id)),
                "rounds": [_timeless(dict(row.summary)) for row in journal.rounds(run.run_id)],
                "budget": [_timeless(vars(row.budget)) for row in journal.rounds(run.run_id)],
                "decisions": [
                    (row.round, row.decision.accepted, row.decision.reason) for row in journal.decisions(run.run_id)
                ],
                "steps": [(row.round, row.step, row.metrics) for row in journal.steps(run.run_id)],
                "status": run.status,
            }
            assert found[run.run_id]["count"] == len(samples)
    weights = (out / "model" / "model.safetensors").read_bytes()
    summary = json.loads((out / "summary.json").read_text())
    return {"runs": found, "weights": weights, "stages": summary["stages"]}


def check(kind: str, out: Path, kills: int, seed: int) -> dict[str, Any]:
    figures = run_harness(kind, out, kills, seed)
    assert sum(figures["kills"].values()) == kills
    whole = content(out / "whole")
    assert whole["runs"]
    for number in range(figures["runs"]):
        killed = content(out / f"killed-{number}")
        assert killed["weights"] == whole["weights"]
        for run_id, expected in whole["runs"].items():
            for name, value in expected.items():
                assert killed["runs"][run_id][name] == value, (run_id, name)
        assert killed == whole
    return figures


def _timeless(mapping: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in IGNORED}


@pytest.mark.parametrize("kind", ["pretrain", "tune", "improve"])
def test_killed_runs_end_the_same(kind: str, tmp_path: Path) -> None:
    check(kind, tmp_path, kills=3, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["pretrain", "tune", "improve"])
def test_twenty_kills_end_the_same(kind: str, tmp_path: Path) -> None:
    figures = check(kind, tmp_path, kills=20, seed=2)
    assert min(figures["kills"].values()) >= 5
    assert figures["killed_again"] >= 1
