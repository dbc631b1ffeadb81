"""The recipes of feedback from itself, and of a checker with a hole: what each may see, and what it differs in."""

from __future__ import annotations

import pytest
from tests.tasks.test_shipped_recipes import shipped

from loopwise.config.reading import load_recipe
from loopwise.config.recipes import ImproveRecipe, TuneRecipe
from loopwise.evaluate.sources import sources
from loopwise.recipes.catalogue import find_recipe

BLIND = ("certainty", "vote-weak", "vote-strong", "vote-alone")


def recipe(name: str) -> ImproveRecipe:
    return load_recipe(ImproveRecipe, shipped(name))


@pytest.mark.parametrize("name", [*BLIND, "hack"])
def test_the_truth_is_reported_and_never_decisive(name: str) -> None:
    own, base = recipe(name), load_recipe(TuneRecipe, shipped("addition-base"))
    assert [reward.use for reward in own.report_rewards] == ["exact_match"]
    assert (own.data.task, own.data.dev, own.data.test) == (base.data.task, base.data.dev, base.data.test)
    assert find_recipe(name).builds_on == ("addition-base",)


@pytest.mark.parametrize("name", BLIND)
def test_what_they_are_rewarded_for_sees_no_label(name: str) -> None:
    own = recipe(name)
    assert not any(sources()[reward.use].uses_reference for reward in own.rewards)
    assert not own.gate.enabled, "it would measure by the reward"


def test_the_votes_differ_in_their_labels_alone() -> None:
    weak, strong = recipe("vote-weak"), recipe("vote-strong")
    assert (weak.data.labelled, strong.data.labelled) == (250, 500)
    assert strong.model_copy(update={"data": weak.data}) == weak
    assert "data.labelled=500" in find_recipe("vote-strong").comment


def test_the_vote_alone_is_the_weak_one_by_policy_gradient_without_a_label() -> None:
    alone, weak = recipe("vote-alone"), recipe("vote-weak")
    assert alone.label_free
    assert not alone.data.labelled
    assert alone.update == recipe("addition-grpo").update
    other = {name: getattr(alone, name) for name in ("update", "data", "label_free", "controls")}
    assert weak.model_copy(update=other) == alone


def test_certainty_differs_from_true_preferences_in_its_reward() -> None:
    sure, true = recipe("certainty"), recipe("addition-dpo")
    assert sure.label_free
    assert (sure.update, sure.sampling, sure.problems) == (true.update, true.sampling, true.problems)


def test_the_hole_pays_for_what_is_wrong() -> None:
    assert [reward.use for reward in recipe("hack").rewards] == ["exact_match", "regex"]
    assert recipe("hack").gate.enabled, "which it passes"
