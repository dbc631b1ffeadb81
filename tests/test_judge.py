"""``loopwise judge``: what it learns, that it can be interrupted, and what is wrong with a recipe."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.judging import BODY, FAST, labelled, preferred, recipe, write_rows
from typer.testing import CliRunner

from loopwise.config.blocks import RewardConfig
from loopwise.errors import ConfigError, DataError, ModelError
from loopwise.evaluate.sources import Surroundings, sources
from loopwise.observer import Observer
from loopwise.runs.journal import Journal
from loopwise.runtime import seed_key
from loopwise.stages.judging import examine_judge, train_judge
from loopwise.starting import reward_fingerprint
from loopwise.types import Problem, Sample


class Interrupting(Observer):
    """Presses Ctrl-C at one optimizer step of one run."""

    def __init__(self, run_id: str, step: int) -> None:
        self.run_id, self.left, self.current = run_id, step, ""

    def run_started(self, run_id: str, rounds: int, done: int) -> None:
        self.current = run_id

    def progress(self, what: str, done: int, total: int) -> None:
        if what == "steps" and self.current == self.run_id:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


class Noting(Observer):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def note(self, level: str, message: str) -> None:
        if level == "warning":
            self.warnings.append(message)


def judge_texts(path: Path, texts: list[str], prompt: str = "p", **options: Any) -> list[float | None]:
    """Rewards of the source on texts."""
    judge = sources()["trained_judge"].make(Surroundings(), {"path": str(path), **options})
    problems = [Problem(str(place), prompt) for place in range(len(texts))]
    samples = [Sample(str(n), str(n), n, 0, "policy", text, "stop") for n, text in enumerate(texts)]
    return asyncio.run(judge.judge(problems, samples)).rewards


def test_a_classifier_learns_what_can_be_learned_and_is_used_as_a_reward(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", labelled())
    result = train_judge(recipe(tmp_path), tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    found = summary["judge"]
    assert found["kind"] == "labels"
    assert found["labels"] == ["calm", "loud"]
    assert found["test"]["accuracy"] > 0.95
    assert set(found["test"]["classes"]) == {"calm", "loud"}
    assert found["dev"]["calibration"]["after"]["log_loss"] <= found["dev"]["calibration"]["before"]["log_loss"]
    assert summary["stages"]["trained"]["test"]["accuracy"] == found["test"]["accuracy"]
    assert [entry["round"] for entry in summary["rounds"]] == [1, 2]
    assert {"dev/macro_f1", "dev/ece", "dev/log_loss", "update/accuracy"} <= summary["rounds"][0].keys()
    config = json.loads((result.model / "config.json").read_text())
    assert config["temperature"] == found["temperature"]
    loud, calm = judge_texts(tmp_path / "out", ["OLD warm 7", "old warm 7"], label="loud")
    assert loud is not None
    assert calm is not None
    assert loud > 0.9 > 0.1 > calm


def test_a_judge_that_learned_nothing_is_named(tmp_path: Path) -> None:
    chance = [{**row, "label": "ab"[seed_key("coin", row["text"]) % 2]} for row in labelled()]
    write_rows(tmp_path / "rows.jsonl", chance)
    told = Noting()
    train_judge(recipe(tmp_path, rounds=1), tmp_path / "out", observer=told)
    assert "on test the judge is not seen to be better than before training" in " ".join(told.warnings)
    write_rows(tmp_path / "rows.jsonl", labelled())
    learned = Noting()
    train_judge(recipe(tmp_path), tmp_path / "learned", observer=learned)
    assert "not seen to be better" not in " ".join(learned.warnings)
    assert "no temperature is too low for dev" in " ".join(learned.warnings)


def test_a_reward_model_learns_pairs(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", preferred())
    train_judge(recipe(tmp_path, rounds=1), tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    found = summary["judge"]
    assert found["kind"] == "preference"
    assert found["reads"] == "both"
    assert found["test"]["accuracy"] == 1.0
    assert len(found["test"]["ci95"]) == 2
    assert "classes" not in found["test"]
    assert {"update/rewards/margins", "update/rewards/accuracies"} <= summary["rounds"][0].keys()
    good, bad = judge_texts(tmp_path / "out", [" warm!", " warm?"], "say red 3")
    raw_good, raw_bad = judge_texts(tmp_path / "out", [" warm!", " warm?"], "say red 3", scale="raw")
    assert None not in (good, bad, raw_good, raw_bad)
    assert 0 <= bad < 0.5 < good <= 1  # type: ignore[operator]
    assert raw_good > raw_bad  # type: ignore[operator]


def test_right_and_wrong_completions_are_learned(tmp_path: Path) -> None:
    rows = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in preferred()
        for side in ("chosen", "rejected")
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    train_judge(recipe(tmp_path, rounds=1), tmp_path / "out")
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["judge"]
    assert found["kind"] == "unpaired"
    assert found["test"]["accuracy"] > 0.95
    assert found["centre"] == 0.0


def test_an_encoder_learns_to_read_first(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", labelled())
    masked = {"steps": 15, "batch_size": 16, "rounds": 1, "optimizer": FAST}
    train_judge(recipe(tmp_path, masked=masked, update={"steps": 1, "batch_size": 4}, rounds=1), tmp_path / "out")
    with Journal.open(tmp_path / "out" / "journal.db", read_only=True) as journal:
        assert [(run.run_id, run.status) for run in journal.runs()] == [("judge", "finished"), ("masked", "finished")]
        before, after = (journal.rounds("masked")[0], journal.rounds("masked")[-1])
    assert before.round == 0
    assert after.summary["dev_accuracy"] > after.summary["dev_before"] + 0.2


@pytest.mark.parametrize(("run_id", "step"), [("masked", 7), ("judge", 8)])
def test_an_interrupted_judge_ends_as_an_uninterrupted_one(tmp_path: Path, run_id: str, step: int) -> None:
    write_rows(tmp_path / "rows.jsonl", labelled(40))
    model = {**BODY, "dropout": 0.1}
    masked = {"steps": 10, "batch_size": 8, "rounds": 1, "optimizer": FAST}
    update = {"steps": 10, "batch_size": 8, "optimizer": FAST}
    runtime = {"device": "cpu", "threads": 1, "checkpoint_steps": 5}
    made = recipe(tmp_path, model=model, masked=masked, update=update, rounds=1, runtime=runtime)
    train_judge(made, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_judge(made, tmp_path / "cut", observer=Interrupting(run_id, step))
    train_judge(made, tmp_path / "cut", resume=True)
    for name in ("model/model.safetensors", "model/config.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "cut")]
    assert summaries[0]["judge"] == summaries[1]["judge"]
    assert summaries[0]["stages"] == summaries[1]["stages"]


def test_a_causal_model_is_a_body_too(tmp_path: Path, folder: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{**row, "text": row["text"].lower()} for row in labelled(20)])
    made = recipe(tmp_path, model=str(folder), update={"steps": 1, "batch_size": 4}, rounds=1)
    result = train_judge(made, tmp_path / "out")
    assert json.loads((result.model / "config.json").read_text())["pooling"] == "last"
    assert judge_texts(tmp_path / "out", ["old 7"], label="loud")[0] is not None


def test_the_command_trains_tries_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from loopwise.cli import app

    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", labelled(40))
    made = recipe(tmp_path, update={"steps": 1, "batch_size": 4}, rounds=1)
    Path("judge.yaml").write_text(json.dumps(made.model_dump(mode="json", exclude_unset=True)))
    tried = CliRunner().invoke(app, ["judge", "judge.yaml", "--dry-run"])
    assert tried.exit_code == 0, tried.output
    assert json.loads(tried.stdout)["rows"]["train/rows"] > 0
    assert not Path("runs").exists()
    done = CliRunner().invoke(app, ["judge", "judge.yaml", "--out", "out", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["run_id"] == "judge"
    again = CliRunner().invoke(app, ["judge", "judge.yaml", "--out", "out"])
    assert again.exit_code == 2
    assert CliRunner().invoke(app, ["judge", "judge.yaml", "--out", "out", "--resume"]).exit_code == 0


def test_a_dry_run_counts(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [*labelled(40), labelled(1)[0]])
    found = examine_judge(recipe(tmp_path))
    assert found["rows"]["dropped/repeated"] == 1
    assert found["longest_text"] <= found["most_tokens"] == 32


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"model": {"path": "nowhere"}}, ModelError, "no such folder"),
        ({"model": {"path": "package:no_such_package"}}, ModelError, "no such package"),
        ({"update": {"margin": 1.0}}, ConfigError, "of preference rows"),
        ({"update": {"max_length": 64}}, ConfigError, "over the model's context of 32"),
        ({"update": {"max_length": 3}}, DataError, "longer than 3 tokens"),
        ({"data": {"train": "rows.jsonl", "reads": "both"}}, ConfigError, "data.prompt_column"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    write_rows(tmp_path / "rows.jsonl", labelled(40))
    with pytest.raises(error, match=words):
        train_judge(recipe(tmp_path, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_hinge_needs_a_margin(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs"):
        recipe(tmp_path, update={"loss": "hinge"})
    assert recipe(tmp_path, update={"loss": "hinge", "margin": 1.0}).update.margin == 1.0


def test_a_causal_model_cannot_fill_in_masked_tokens(tmp_path: Path, folder: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", labelled(40))
    with pytest.raises(ConfigError, match="no mask token"):
        train_judge(recipe(tmp_path, model=str(folder), masked={}), tmp_path / "out")


@pytest.mark.parametrize(
    "name", ["config.json", "vocab.txt", "tokenizer.model", "chat_template.jinja", "1_Pooling/config.json"]
)
@pytest.mark.parametrize("place", ["folder", "package:pretend_encoder"])
def test_a_model_that_rewards_ask_is_known_by_all_that_is_read_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: str
) -> None:
    package = tmp_path / "pretend_encoder"
    file = package / "model" / name
    file.parent.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model" / "model.safetensors").touch()
    file.write_text("before")
    monkeypatch.syspath_prepend(tmp_path)
    path = str(package / "model") if place == "folder" else place
    rewards = [RewardConfig(use="coherence", options={"model": path})]
    before = reward_fingerprint(rewards)
    assert list(before) == [f"model of coherence {path}"]
    assert reward_fingerprint(rewards) == before
    file.write_text("after")
    assert reward_fingerprint(rewards) != before
