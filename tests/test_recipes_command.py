"""``loopwise recipes``: the list tells what each is for, a copy runs as the original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.command_line import loopwise, refused, strict

from loopwise.config.reading import load_recipe
from loopwise.config.recipes import COMMANDS
from loopwise.recipes.catalogue import ShippedRecipe, catalogue, names


def test_the_list() -> None:
    found = {entry["name"]: entry for entry in strict(loopwise("recipes", "list", "--json").stdout)}
    assert list(found) == names()
    assert found["addition"]["command"] == "improve"
    assert found["addition"]["builds_on"] == ["addition-base"]
    assert found["addition-base"]["command"] == "tune"
    assert found["addition-base"]["builds_on"] == []
    assert found["addition"]["summary"] == "The demo's second stage: the model teaches itself."
    shown = loopwise("recipes", "list").stdout
    assert all(name in shown for name in names())


@pytest.mark.parametrize("recipe", catalogue(), ids=lambda recipe: recipe.name)
def test_every_recipe_says_what_it_is_for(recipe: ShippedRecipe) -> None:
    assert recipe.summary.endswith(".")
    assert set(recipe.builds_on) <= set(names())
    assert recipe.command in COMMANDS
    assert recipe.time, "how long it takes: Time: about … on two cores."


@pytest.mark.parametrize("recipe", catalogue(), ids=lambda recipe: recipe.name)
def test_a_copy_is_the_recipe(recipe: ShippedRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = loopwise("recipes", "copy", recipe.name).stdout
    assert f"run it with `loopwise {recipe.command} {recipe.name}.yaml`" in shown
    assert (tmp_path / f"{recipe.name}.yaml").read_text(encoding="utf-8") == recipe.text
    kind: Any = COMMANDS[recipe.command]
    load_recipe(kind, f"{recipe.name}.yaml")


def test_a_copy_elsewhere_names_what_it_builds_on(tmp_path: Path) -> None:
    shown = loopwise("recipes", "copy", "addition.yaml", "--to", tmp_path / "mine.yaml").stdout
    assert f"`loopwise improve {tmp_path}/mine.yaml`" in shown
    assert "It builds on the recipe addition-base: `loopwise recipes copy addition-base`." in shown


def test_the_comment_is_read() -> None:
    text = (
        "# One thing. And\n# another, after base.yaml.\n# Time: about 2 minutes on two cores.\nmodel: x\n# Time: no\n"
    )
    recipe = ShippedRecipe("mine", text)
    assert recipe.summary == "One thing."
    assert recipe.time == "about 2 minutes on two cores"
    assert recipe.builds_on == ("base",)


def test_bad_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert 'there is no recipe "adition". Did you mean "addition"?' in refused("recipes", "copy", "adition")
    (tmp_path / "addition.yaml").write_text("mine")
    assert "addition.yaml: exists already and is never overwritten. Choose" in refused("recipes", "copy", "addition")
    assert "there is no folder no" in refused("recipes", "copy", "addition", "--to", "no/where.yaml")
    assert (tmp_path / "addition.yaml").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["addition.yaml"]
