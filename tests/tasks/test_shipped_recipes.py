"""The recipes that ship for tasks: both stages fit each other, and every problem fits the model and the sampling."""

from __future__ import annotations

from importlib import resources
from itertools import islice
from pathlib import Path

import pytest

from loopwise.config.blocks import DataConfig
from loopwise.config.reading import load_recipe
from loopwise.config.recipes import ImproveRecipe, TuneRecipe
from loopwise.tasks.registry import find_task
from loopwise.tasks.rewards import with_task_rewards
from loopwise.types import Problem

PAIRS = [
    ("addition-base", "addition"),
    ("addition-base", "addition-noisy"),
    ("addition-base", "addition-grpo"),
    ("addition-base", "addition-dpo"),
    ("sorting-base", "sorting"),
    ("spelling-base", "spelling"),
    ("revision-base", "revision"),
    ("revision-base", "revision-self"),
]
END_OF_TEXT = 1


def shipped(name: str) -> Path:
    return Path(str(resources.files("loopwise.recipes"))) / f"{name}.yaml"


def some(data: DataConfig) -> list[Problem]:
    if str(data.task).startswith("reasoning_gym:"):
        pytest.importorskip("reasoning_gym", reason="needs reasoning-gym")
    return list(islice(find_task(str(data.task), data.task_options).problems(1), 300))


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_two_stages(first: str, second: str) -> None:
    base = load_recipe(TuneRecipe, shipped(first))
    loop = load_recipe(ImproveRecipe, shipped(second))
    assert loop.data == base.data, "the same labels, and the same problems held out"
    assert (base.gate.metric, base.seed, loop.seed) == ("reward", 0, 0)
    assert with_task_rewards(base).rewards
    assert with_task_rewards(loop).rewards
    context = base.model.context if base.model.create != "demo" else 32
    problems = some(base.data)
    longest = max(len(problem.columns["answer"]) for problem in problems) + END_OF_TEXT
    assert {base.sampling.max_tokens, loop.sampling.max_tokens} == {longest}
    assert max(len(str(problem.prompt)) for problem in problems) + longest <= context


@pytest.mark.parametrize("name", ["addition-grpo", "addition-dpo"])
def test_other_methods_on_the_sums_have_the_same_data_and_controls(name: str) -> None:
    first, other = (load_recipe(ImproveRecipe, shipped(name)) for name in ("addition", name))
    same = {"update": first.update, "problems": first.problems, "sampling": first.sampling}
    assert other.model_copy(update=same) == first
    assert other.update.method != first.update.method


def test_the_noisy_loop_differs_by_its_checker_alone() -> None:
    clean, noisy = (load_recipe(ImproveRecipe, shipped(name)) for name in ("addition", "addition-noisy"))
    assert noisy.model_copy(update={"rewards": clean.rewards, "report_rewards": ()}) == clean
    assert [reward.use for reward in noisy.report_rewards] == ["exact_match"]


def test_the_loop_that_criticises_itself_differs_by_its_critic_alone() -> None:
    outside, own = (load_recipe(ImproveRecipe, shipped(name)) for name in ("revision", "revision-self"))
    assert own.model_copy(update={"critics": outside.critics}) == outside
    assert [critic.use for critic in (*outside.critics, *own.critics)] == ["mismatch", "self_critic"]
