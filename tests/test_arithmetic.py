"""What a dry run says of a round: its figures are those that a hand works out."""

from __future__ import annotations

from typing import Any

import pytest

from loopwise.config.reading import parse_recipe
from loopwise.config.recipes import ImproveRecipe, TuneRecipe
from loopwise.stages import arithmetic

ONLINE = "16 problems x 8 samples a step = 128 samples, 4 steps a round, "


def words(update: dict[str, Any], problems: int = 64, passes: int | None = None, **keys: Any) -> dict[str, str]:
    """What is said of a round of the loop on so many problems."""
    content = {"model": "m", "data": {"task": "addition"}, "problems": problems, "update": update, **keys}
    return dict(arithmetic.looped(parse_recipe(ImproveRecipe, content), problems, False, passes))


def test_a_round_by_policy_gradient() -> None:
    assert words({"tokens_per_pass": 4096}, passes=3) == {
        "sampling": "64 problems x 8 samples = 512 samples",
        "training": f"{ONLINE}1 optimizer step each",
        "advantage": "reward less the mean of its problem's samples",
        "forward passes": "3 on the longest of a step, at most 4,096 padded tokens each (update.tokens_per_pass)",
        "rounds": "4, and 0 controls of as many",
    }


def test_several_optimizer_steps_a_rollout() -> None:
    found = words({"method": "ppo", "minibatches": 2}, 50)
    assert found["training"] == (
        "16 problems x 8 samples a step = 128 samples, 4 steps a round, the last on 2 problems, "
        "4 passes x 2 minibatches = 8 optimizer steps each"
    )
    assert found["advantage"] == "reward less the value head's guess (GAE), over the step's standard deviation"


def test_fewer_problems_than_a_step_takes() -> None:
    assert words({"method": "grpo"}, 5)["training"].startswith("5 problems x 8 samples a step = 40 samples, 1 step a ")


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("grpo", "reward less the mean of its problem's samples, over their standard deviation"),
        ("rloo", "reward less the mean of its problem's other samples"),
        ("reinforce", "reward less the mean of all steps before"),
        (
            "dapo",
            "reward less the mean of its problem's samples, over their standard deviation; problems that tie left out",
        ),
    ],
)
def test_what_a_reward_is_compared_with(method: str, said: str) -> None:
    assert words({"method": method})["advantage"] == said


@pytest.mark.parametrize(
    ("update", "noun", "most", "epochs"),
    [
        ({"method": "dpo"}, "pairs", "at most 64 a round", "50.0"),
        ({"method": "ipo", "pairs": {"take": "all"}}, "pairs", "at most 1,792 a round", "1.8"),
        ({"method": "spin"}, "pairs", "at most 512 a round", "6.2"),
        ({"method": "rrhf"}, "rankings", "at most 64 a round", "50.0"),
    ],
)
def test_pairs(update: dict[str, Any], noun: str, most: str, epochs: str) -> None:
    found = words(update)
    assert found[noun].endswith(most)
    assert found["training"] == f"100 steps x 32 {noun} = 3,200 {noun}, {epochs} epochs or more"


@pytest.mark.parametrize(
    ("update", "name"),
    [
        ({"method": "dpo"}, "the run's base"),
        ({"method": "spin"}, "the policy that the round starts from"),
        ({"method": "ipo", "reference": "adapters_off"}, "the model without its adapters"),
        ({"kl": {"weight": 0.1}}, "the run's base"),
        ({}, None),
        ({"method": "rft"}, None),
    ],
)
def test_which_model_is_the_reference(update: dict[str, Any], name: str | None) -> None:
    found = words(update).get("reference")
    assert found is None if name is None else str(found).startswith(f"{name}, in memory anyway; ")


def test_imitation_says_what_it_said() -> None:
    assert words({"method": "rft", "steps": 4, "batch_size": 2})["training"] == (
        "4 steps x 2 rows = 8 rows, 0% of them labelled"
    )
    assert "sampling" not in words({"method": "rft", "keep": "none"})


def test_fewer_rows_than_problems_asked_for() -> None:
    content = {"model": "m", "data": {"task": "addition"}, "problems": 64}
    found = dict(arithmetic.looped(parse_recipe(ImproveRecipe, content), 10, False, None))
    assert found["note"] == "64 problems a round asked for, the train rows are only 10"


def test_tuning_on_pairs() -> None:
    content = {"model": "m", "data": {"train": "rows.jsonl"}, "update": {"method": "dpo", "batch_size": 4}}
    found = dict(arithmetic.tuned(parse_recipe(TuneRecipe, content), 80, 2))
    assert found["training"] == "100 steps x 4 pairs = 400 pairs, 5.0 epochs"
    assert found["forward passes"].startswith("2 on the longest of a step, ")
