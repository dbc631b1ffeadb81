"""Whole runs whose judge is remote: stopped half-way and resumed, no answer is paid for twice; and ``evaluate``."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from tests.evaluate.test_remote_judges import answer_of
from tests.remote.server import Answer, Asked, FakeServer, completion, error
from typer.testing import CliRunner

import loopwise as lw
from loopwise.cli import app
from loopwise.cli.training import close
from loopwise.config.reading import parse_recipe
from loopwise.config.recipes import ImproveRecipe, TuneRecipe
from loopwise.errors import RemoteError
from loopwise.models.policy import Policy
from loopwise.results import Result


def test_a_run_stopped_by_its_judge_is_resumed_without_paying_twice(
    server: FakeServer, model: Path, tmp_path: Path, no_report: None
) -> None:
    recipe = parse_recipe(
        ImproveRecipe,
        {
            "model": str(model),
            "data": {"task": "addition", "labelled": 4, "dev": 4, "test": 0},
            "endpoints": {"judge": {"url": server.url, "model": "tiny", "concurrency": 2}},
            "rewards": [{"use": "remote_judge", "options": {"endpoint": "judge"}}],
            "rounds": 1,
            "problems": 4,
            "samples": 2,
            "sampling": {"max_tokens": 4},
            "monitors": {"problems": 0},
            "update": {"method": "rft", "steps": 1, "batch_size": 2, "threshold": 0.1},
            "runtime": {"threads": 1, "generate_batch": 2},
        },
        "the test",
    )

    def score(asked: Asked) -> Answer:
        return completion(f"score: {len(set(answer_of(asked)))}")

    revoked = 10
    server.reply = lambda asked, number: score(asked) if number < revoked else error(401, "the key was revoked")
    with pytest.raises(RemoteError, match="the key was revoked"):
        lw.improve(recipe, tmp_path / "run")
    ledger = tmp_path / "run" / "remote.jsonl"
    assert len(ledger.read_text().splitlines()) == revoked - 1
    server.reply = lambda asked, number: score(asked)
    refused = len(server.asked) - (revoked - 1)
    lw.improve(recipe, tmp_path / "run", resume=True)
    places = [json.loads(line)["place"] for line in ledger.read_text().splitlines()]
    assert len(places) == len(set(places)) == len(server.asked) - refused
    server.reply = lambda asked, number: error(500, "asked again")
    asked = len(server.asked)
    lw.improve(recipe, tmp_path / "run", resume=True)
    assert len(server.asked) == asked


JUDGED = {"use": "remote_judge", "options": {"endpoint": "judge"}}


def test_the_gate_of_tune_asks_a_remote_judge_and_a_resumed_run_pays_nothing(
    server: FakeServer, model: Path, tmp_path: Path, no_report: None
) -> None:
    server.reply = lambda asked, number: completion("score: 7")
    content = {
        "model": str(model),
        "data": {"task": "addition", "labelled": 4, "dev": 4, "test": 0},
        "endpoints": {"judge": {"url": server.url, "model": "tiny"}},
        "rewards": [JUDGED],
        "gate": {"metric": "reward"},
        "sampling": {"max_tokens": 4, "temperature": 0},
        "update": {"steps": 1, "batch_size": 2},
        "runtime": {"threads": 1},
    }
    recipe = parse_recipe(TuneRecipe, content, "the test")
    result = lw.tune(recipe, tmp_path / "run")
    assert result.summary["stages"]["tuned"]["dev"]["n"] == 4
    paid = (tmp_path / "run" / "remote.jsonl").read_text().splitlines()
    assert result.summary["endpoints"]["judge"]["calls"] >= len(paid) > 0
    asked = len(server.asked)
    lw.tune(recipe, tmp_path / "run", resume=True)
    assert len(server.asked) == asked
    spent = parse_recipe(TuneRecipe, content | {"rounds": 5}, "the test", foreign=False)
    endpoint = spent.endpoints["judge"].model_copy(update={"most_tokens": 1})
    short = lw.tune(spent.model_copy(update={"endpoints": {"judge": endpoint}}), tmp_path / "short")
    assert len(short.summary["rounds"]) < 5


def test_evaluate_asks_a_remote_judge_and_tells_what_it_cost(server: FakeServer, model: Path, tmp_path: Path) -> None:
    server.reply = lambda asked, number: completion("score: 7")
    block = tmp_path / "endpoints.yaml"
    block.write_text(f"endpoints: {{judge: {{url: '{server.url}', model: tiny, price: {{read: 1000, written: 0}}}}}}")
    command = ["evaluate", str(model), "--task", "addition", "--problems", "4", "--max-tokens", "4"]
    reward = ["--reward", "{use: remote_judge, options: {endpoint: judge}}"]
    done = CliRunner().invoke(app, [*command, *reward, "--endpoints", str(block), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["results"][0]["figures"]["reward"]["value"] == pytest.approx(0.7)
    assert found["endpoints"]["judge"]["calls"] == len(server.asked)
    assert f'endpoint "judge": {len(server.asked)} answers' in " ".join(done.stderr.split())
    for wrong, words in (
        ([*command, *reward], "--endpoints"),
        ([*command, "--endpoints", str(block)], "leave --endpoints out"),
        ([*command, *reward, "--endpoints", str(tmp_path / "none.yaml")], "no such file"),
    ):
        refused = CliRunner().invoke(app, wrong)
        assert refused.exit_code == 2
        assert words in " ".join(refused.stderr.split())
    block.write_text("endpoints: {judge: {url: x, modle: tiny}}")
    refused = CliRunner().invoke(app, [*command, *reward, "--endpoints", str(block)])
    assert 'Did you mean "model"' in " ".join(refused.stderr.split())


def test_a_run_without_weights_is_not_said_to_open_as_a_model(tmp_path: Path) -> None:
    shown = StringIO()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "prompt_state.json").write_text("{}")
    summary = {"stages": {}, "run_id": "improve", "wall_seconds": 1.0}
    close(Console(file=shown, width=200), Result(tmp_path, Policy(), summary), as_json=False)
    assert "AutoModel" not in shown.getvalue()
    assert str(tmp_path / "model" / "prompt_state.json") in shown.getvalue()
    (tmp_path / "model" / "config.json").write_text("{}")
    close(Console(file=shown, width=200), Result(tmp_path, Policy(), summary), as_json=False)
    assert "AutoModel" in shown.getvalue()
