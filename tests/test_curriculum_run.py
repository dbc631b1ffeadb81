"""A curriculum in the loop: rounds draw by what earlier rounds measured, and a resumed run draws the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.stopping import CutShortError, StopAfter

from loopwise.config.reading import parse_recipe
from loopwise.config.recipes import ImproveRecipe
from loopwise.errors import ConfigError
from loopwise.runs.journal import Journal
from loopwise.stages.improve import improve

LEVELS = [{"digits": 1}, {"digits": 2}]


def recipe(**changes: Any) -> ImproveRecipe:
    content = {
        "model": {"create": "demo"},
        "data": {"task": "addition", "task_options": {"levels": LEVELS}, "dev": 20, "test": 0},
        "rounds": 3,
        "problems": 12,
        "samples": 2,
        "sampling": {"max_tokens": 3},
        "curriculum": {"revisit": 0.5},
        "update": {"method": "rft", "steps": 2, "batch_size": 4, "keep": "all"},
        "gate": {"enabled": False},
        "runtime": {"threads": 1},
    }
    return parse_recipe(ImproveRecipe, content | changes)


def easy(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """One-digit sums always pass, longer ones never: neither level is worth drawing then."""
    return [float(len(prompt.partition("+")[0]) == 1) for prompt in prompts]


def half(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """One-digit sums always pass, of the longer ones every other sample does."""
    return [float(len(prompt.partition("+")[0]) == 1 or place % 2 == 0) for place, prompt in enumerate(prompts)]


def drawn(out: Path, number: int) -> list[str]:
    with Journal.open(out / "journal.db", read_only=True) as journal:
        return sorted(
            journal.pass_rates("improve", number + 1, 1.0).keys() - journal.pass_rates("improve", number, 1.0).keys()
        )


def shares(result: Any, number: int) -> dict[str, float]:
    row = next(row for row in result.summary["rounds"] if row["round"] == number)
    return {name.rpartition("/")[2]: value for name, value in row.items() if name.startswith("curriculum/share/")}


def test_the_level_that_all_pass_is_drawn_no_more_but_for_the_revisits(tmp_path: Path) -> None:
    result = improve(recipe(), tmp_path / "out", rewards=[half])
    first, second = shares(result, 1), shares(result, 2)
    assert set(first) == set(second)
    assert len(first) == 2
    assert list(first.values()) == [0.5, 0.5]
    # Half of the round is revisits, shared evenly; all the rest goes to the level that is half known.
    assert sorted(second.values()) == [0.25, 0.75]


def test_a_resumed_run_draws_the_same(tmp_path: Path) -> None:
    whole = improve(recipe(), tmp_path / "whole", rewards=[half])
    with pytest.raises(CutShortError):
        improve(recipe(), tmp_path / "cut", rewards=[half], observer=StopAfter(1))
    resumed = improve(recipe(), tmp_path / "cut", rewards=[half], resume=True)
    assert resumed.policy.id == whole.policy.id
    assert drawn(tmp_path / "cut", 3) == drawn(tmp_path / "whole", 3) != []


def test_a_round_is_never_empty(tmp_path: Path) -> None:
    result = improve(recipe(curriculum={"revisit": 0}), tmp_path / "out", rewards=[easy])
    assert all(row["problems"] > 0 for row in result.summary["rounds"])


def test_problems_that_cannot_be_told_apart_have_no_curriculum(tmp_path: Path) -> None:
    data = {"task": "addition", "dev": 20, "test": 0}
    with pytest.raises(ConfigError, match="curriculum"):
        improve(recipe(data=data), tmp_path / "out", rewards=[half])
