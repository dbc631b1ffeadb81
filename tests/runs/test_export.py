"""What other tools read: strict JSON lines, and Parquet with a column a reward."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet
import pytest

from loopwise.runs import export
from loopwise.runs.journal import Place
from loopwise.types import Budget, Decision, Feedback, Problem


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(export, "_BATCH", 3)


def test_metrics(journal, tmp_path):
    decision = Decision(False, "lost", 0.1, 0.2, -0.1, -0.01, 9, False)
    for round, gate in enumerate([decision, None]):
        journal.commit_round(
            "run",
            round=round,
            summary={"reward": float("nan"), "pass_at_k": [1.0, float("inf")]},
            decision=gate,
            checkpoint=("a", "b"),
            step_metrics=[(2, {"loss": 2.0}), (1, {"loss": 1.0})],
            kept=[],
            budget=Budget(tokens_generated=7),
        )
    path = tmp_path / "metrics.jsonl"
    journal.export_metrics("run", path)
    lines = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
    assert [(line["kind"], line["round"], line.get("step")) for line in lines] == [
        ("step", 0, 1),
        ("step", 0, 2),
        ("round", 0, None),
        ("step", 1, 1),
        ("step", 1, 2),
        ("round", 1, None),
    ]
    assert lines[1]["loss"] == 2.0
    assert lines[2]["reward"] is None
    assert lines[2]["pass_at_k"] == [1.0, None]
    assert lines[2]["decision"]["reason"] == "lost"
    assert lines[2]["budget"]["tokens_generated"] == 7
    assert lines[5]["decision"] is None
    assert [file.name for file in tmp_path.iterdir() if "tmp" in file.name] == []


def test_samples(journal, make_sample, place, tmp_path):
    chat = ({"role": "user", "content": "你好"},)
    journal.add_problems("run", [Problem("chat", chat)])
    samples = [make_sample(number) for number in range(8)]
    samples[1] = make_sample(1, text="\ud800\0", problem_id="chat")
    journal.add_samples(place, samples)
    rewards = np.full((8, 2), 0.5)
    rewards[0] = np.nan
    given = Feedback(("reward", "short"), (1.0, 2.0), rewards, ~np.isnan(rewards))
    journal.add_feedback(place, samples, given)
    journal.add_samples(Place("run", 1, 4, "dev"), [make_sample(8)])
    path = tmp_path / "samples.parquet"
    journal.export_samples("run", path)
    rows = pyarrow.parquet.read_table(path).to_pylist()
    assert len(rows) == 9
    assert list(rows[0]) == [
        *("run_id", "round", "step", "phase", "problem_id", "index", "prompt", "completion"),
        *("rewards/reward", "short", "reward", "kept", "finish_reason", "policy_id"),
    ]
    dev, unjudged, odd = rows[:3]
    assert (dev["phase"], dev["round"], dev["step"], dev["reward"], dev["short"]) == ("dev", 1, 4, None, None)
    assert (unjudged["reward"], unjudged["short"]) == (None, None)
    assert (odd["rewards/reward"], odd["short"], odd["reward"]) == (0.5, 0.5, 1.5)
    assert odd["completion"] == "\\ud800\0"
    assert json.loads(odd["prompt"]) == list(chat)


def test_a_run_without_samples(journal, tmp_path):
    journal.export_samples("run", tmp_path / "samples.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "samples.parquet").num_rows == 0


def test_a_failing_export_leaves_the_old_file(journal, tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text("old")
    monkeypatch.setattr("loopwise.runs.files.os.replace", lambda *paths: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        journal.export_metrics("run", path)
    assert path.read_text() == "old"
    assert not (tmp_path / ".tmp-metrics.jsonl").exists()
