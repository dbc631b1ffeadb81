"""A remote model and its lessons: a dry run asks for no more than the trial, a run lifts held-out answers."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.remote.server import Answer, Asked, FakeServer, completion

import loopwise as lw
from loopwise.config.reading import parse_recipe
from loopwise.config.recipes import ImproveRecipe
from loopwise.errors import ConfigError
from loopwise.stages.improve import prepare
from loopwise.stages.plan import examine

CRITIC = """\
def critique(prompts, completions, **columns):
    return [None if completion == "4" else "Say 4." for completion in completions]
"""


def obeys(asked: Asked, number: int) -> Answer:
    """Says 4 where it is told to."""
    told = any("Say 4." in message["content"] for message in asked.body["messages"])
    return completion("4" if told else "5")


@pytest.fixture
def recipe(server: FakeServer, tmp_path: Path) -> ImproveRecipe:
    server.reply = obeys
    (tmp_path / "critic.py").write_text(CRITIC)
    rows = "".join(f'{{"prompt": "{n} of four?", "answer": "4", "task": "four"}}\n' for n in range(12))
    (tmp_path / "rows.jsonl").write_text(rows)
    content = {
        "model": {"endpoint": "local"},
        "endpoints": {"local": {"url": server.url, "model": "tiny"}},
        "data": {"train": str(tmp_path / "rows.jsonl"), "dev": 4, "test": 4, "reference_columns": ["answer"]},
        "rewards": ["exact_match"],
        "critics": [f"{tmp_path / 'critic.py'}:critique"],
        "rounds": 1,
        "problems": 2,
        "samples": 1,
        "monitors": {"problems": 0},
        "update": {"method": "reflexion", "writes": "critic", "trials": 2},
        "runtime": {"threads": 1},
    }
    return parse_recipe(ImproveRecipe, content)


def test_a_dry_run_asks_for_three_answers_and_times_none(recipe: ImproveRecipe, server: FakeServer) -> None:
    plan = examine(recipe)
    assert len(server.asked) == 3
    assert plan.sections["model"] == {"from": "elsewhere: endpoint local"}
    assert plan.sections["measured"] == {}
    assert plan.sections["the whole run, from these"]["time"] == "not known: a model elsewhere draws the samples"
    assert plan.figures["run_seconds"]["total"] == 0


def test_a_model_beside_a_remote_one_criticises_it(recipe: ImproveRecipe, server: FakeServer, model: Path) -> None:
    critic = {"use": "model_critic", "options": {"model": str(model), "template": "{prompt}{draft}", "max_tokens": 2}}
    update = {"method": "reflexion", "writes": "critic"}
    changed = parse_recipe(ImproveRecipe, {**recipe.model_dump(), "critics": [critic], "update": update})
    with ExitStack() as stack:
        prepared = prepare(stack, changed)
        assert len(server.asked) == 3, "the samples are the remote model's, the critiques are not"
        words = prepared.trial.feedback.critiques
        assert words is not None
        assert len(words) == 3


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"generator": "locl"}, r'^key "generator": the recipe has no endpoint "locl"\. Did you mean "local"\?$'),
        ({"generator": "x", "endpoints": {}}, r'^key "generator": .* no endpoint "x"\. Add it: "endpoints: \{NAME'),
        ({"model": {"endpoint": "x"}}, r'^key "model\.endpoint": the recipe has no endpoint "x"\. Known: local\.$'),
    ],
)
def test_an_endpoint_that_nobody_opened(recipe: ImproveRecipe, changes: dict[str, Any], says: str) -> None:
    changed = parse_recipe(ImproveRecipe, {**recipe.model_dump(), **changes})
    with ExitStack() as stack, pytest.raises(ConfigError, match=says):
        prepare(stack, changed)


def test_a_remote_model_is_told_its_lessons(recipe: ImproveRecipe, tmp_path: Path, no_report: None) -> None:
    result = lw.improve(recipe, tmp_path / "out")
    assert result.policy.prompt_state.lessons == (("four", "Say 4."),)
    stages = result.summary["stages"]
    assert [stages[name]["test"]["accuracy"] for name in ("base", "improved")] == [0.0, 1.0]
