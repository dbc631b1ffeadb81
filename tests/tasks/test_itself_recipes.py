"""The recipes of feedback from itself: what each differs in, and that its rewards see no label."""

from __future__ import annotations

import pytest
from tests.tasks.test_shipped_recipes import shipped

from loopwise.config import ImproveRecipe, TuneRecipe, load_recipe
from loopwise.recipes.catalogue import find_recipe

BLIND = ("certainty", "vote-weak", "vote-strong")


def recipe(name: str) -> ImproveRecipe:
    return load_recipe(ImproveRecipe, shipped(name))


@pytest.mark.parametrize("name", [*BLIND, "hack"])
def test_the_truth_is_reported_and_never_decisive(name: str) -> None:
    own, base = recipe(name), load_recipe(TuneRecipe, shipped("addition-base"))
    assert [reward.use for reward in own.report_rewards] == ["exact_match"]
    assert own.label_free == (name in BLIND)
    assert (own.data.task, own.data.dev, own.data.test) == (base.data.task, base.data.dev, base.data.test)
    assert find_recipe(name).builds_on == ("addition-base",)


def test_the_votes_differ_in_their_base_alone() -> None:
    assert recipe("vote-weak") == recipe("vote-strong")
    assert "data.labelled=500" in find_recipe("vote-strong").comment


@pytest.mark.parametrize("name", ["certainty", "hack"])
def test_the_others_differ_from_the_votes_in_what_they_reward(name: str) -> None:
    vote = recipe("vote-weak")
    same = {"rewards": vote.rewards, "label_free": True, "data": vote.data}
    assert recipe(name).model_copy(update=same) == vote
