"""Monitors: which limits speak, that they are silent where a model has learned, and that a second limit rolls back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loopwise.config.blocks import MonitorsConfig
from loopwise.config.reading import parse_recipe
from loopwise.config.recipes import ImproveRecipe
from loopwise.errors import ConfigError
from loopwise.monitors import Watched, crossings
from loopwise.runs.journal import Journal
from loopwise.stages.improve import RUN_ID, improve
from loopwise.workspace import JOURNAL

BASE = {"reward": 0.5, "entropy": 1.0, "distinct": 0.8, "length": 10.0, "vote_share": 0.5}


def seen(scores: dict[str, list[float]] | None = None, *, certain: bool = False, **figures: float) -> Watched:
    return Watched(BASE | figures, {k: np.asarray(v) for k, v in (scores or {}).items()}, certain)


def names(
    now: Watched, base: Watched | None = None, *, label_free: bool = False, **limits: Any
) -> list[tuple[str, bool]]:
    config = MonitorsConfig.model_validate(limits)
    found = crossings(config, base or seen(certain=now.certain), now, label_free=label_free)
    return [(crossing.name, crossing.rolls_back) for crossing in found]


@pytest.mark.parametrize(
    ("figures", "name"),
    [
        ({"kl": 2.1}, "kl"),
        ({"entropy": 0.19}, "entropy"),
        ({"distinct": 0.23}, "distinct"),
        ({"vote_share": 0.99}, "vote_share"),
        ({"length": 20.1}, "length"),
        ({"length": 4.9}, "length"),
    ],
)
def test_a_figure_past_its_limit_speaks(figures: dict[str, float], name: str) -> None:
    assert names(seen(**figures)) == [(name, False)]


def test_figures_within_their_limits_are_silent() -> None:
    assert names(seen(kl=1.9, entropy=0.21, distinct=0.25, vote_share=0.97, length=19.9)) == []


def test_the_second_limit_rolls_back_and_none_is_silent() -> None:
    assert names(seen(kl=5.0), kl={"warn": 1.0, "roll_back": 4.0}) == [("kl", True)]
    assert names(seen(kl=3.0), kl={"warn": 1.0, "roll_back": 4.0}) == [("kl", False)]
    assert names(seen(kl=50.0), kl={"warn": None}) == []


def test_a_model_that_has_learned_may_be_sure_of_itself() -> None:
    sure = {"entropy": 0.01, "distinct": 0.1, "vote_share": 1.0}
    assert names(seen(certain=True, reward=0.9, **sure)) == []
    assert {name for name, _ in names(seen(certain=True, reward=0.5, **sure))} == set(sure)
    assert {name for name, _ in names(seen(certain=False, reward=0.9, **sure))} == set(sure)
    base = seen(certain=True, truth=0.5)
    assert names(seen(certain=True, reward=0.1, truth=0.9, **sure), base) == []
    assert {name for name, _ in names(seen(certain=True, reward=0.9, truth=0.4, **sure), base)} == set(sure)


def test_in_a_label_free_run_the_truth_silences_warnings_and_no_rollback() -> None:
    base, now = seen(certain=True, truth=0.2), seen(certain=True, truth=0.9, vote_share=1.0)
    limits = {"vote_share": {"warn": 0.9, "roll_back": 0.99}}
    assert names(now, base, **limits) == []
    assert names(now, base, label_free=True, **limits) == [("vote_share", True)]
    assert names(now, base, label_free=True, vote_share={"warn": 0.9}) == []


def test_a_fall_of_the_truth_speaks_where_it_is_shown() -> None:
    base = seen({"truth": [1.0] * 40 + [0.0] * 24}, certain=True, truth=0.625)
    fallen = {"truth": [1.0] * 20 + [0.0] * 44}
    assert names(seen(fallen, certain=True, reward=0.9, truth=0.3), base) == [("truth", False)]
    assert names(seen(fallen, certain=True, reward=0.4, truth=0.3), base) == [("truth", False)]
    chance = {"truth": [1.0] * 36 + [0.0] * 4 + [1.0] * 2 + [0.0] * 22}
    assert names(seen(chance, certain=True, reward=0.9, truth=0.59), base) == []


def test_answers_that_are_lost_speak() -> None:
    base = seen({"pass_at_k": [1.0] * 50 + [0.0] * 14})
    assert names(seen({"pass_at_k": [1.0] * 30 + [0.0] * 34}), base) == [("pass_at_k", False)]
    assert names(seen({"pass_at_k": [1.0] * 49 + [0.0] * 15}), base) == []


def recipe(folder: Path, **changes: Any) -> ImproveRecipe:
    content = {
        "model": str(folder),
        "data": {"task": "addition", "dev": 8, "test": 8},
        "rewards": [{"use": "regex", "options": {"pattern": "[a-e]"}}],
        "report_rewards": ["exact_match"],
        "sampling": {"max_tokens": 5},
        "update": {"method": "dr_grpo", "problems_per_step": 2, "optimizer": {"lr": 3e-2}},
        "rounds": 2,
        "problems": 4,
        "samples": 4,
        "label_free": True,
        "gate": {"enabled": False},
        "runtime": {"device": "cpu", "threads": 1},
    }
    return parse_recipe(ImproveRecipe, content | changes)


def rounds(out: Path) -> list[Any]:
    with Journal.open(out / JOURNAL, read_only=True) as journal:
        return journal.rounds(RUN_ID)[1:]


@pytest.mark.usefixtures("no_report")
def test_a_run_writes_down_what_the_monitors_saw_and_a_limit_rolls_back(folder: Path, tmp_path: Path) -> None:
    monitors = {"kl": {"warn": None, "roll_back": 1e-6}}
    improve(recipe(folder, monitors=monitors), tmp_path / "out")
    summaries = [row.summary for row in rounds(tmp_path / "out")]
    assert [summary["accepted"] for summary in summaries] == [False, False]
    for summary in summaries:
        assert summary["monitor/kl"] > 1e-6
        assert summary["monitor_base/kl"] == pytest.approx(0.0, abs=1e-6)
        assert math.isfinite(summary["monitor/truth"])
        assert {"monitor/reward", "monitor/pass_at_1", "monitor/entropy", "monitor/vote_share"} <= summary.keys()
    with Journal.open(tmp_path / "out" / JOURNAL, read_only=True) as journal:
        reasons = [row.decision.reason for row in journal.decisions(RUN_ID)]
    assert all(reason.startswith("rolled back by monitors: ") and "from the base" in reason for reason in reasons)


@pytest.mark.usefixtures("no_report")
def test_warnings_reach_the_journal_and_no_problems_means_no_monitors(folder: Path, tmp_path: Path) -> None:
    improve(recipe(folder, monitors={"kl": {"warn": 1e-6}}, rounds=1), tmp_path / "warned")
    with Journal.open(tmp_path / "warned" / JOURNAL, read_only=True) as journal:
        told = [event.message for event in journal.events(RUN_ID) if event.level == "warning"]
    assert any("round 1: " in message and "monitors.kl, limit 1e-06" in message for message in told)
    improve(recipe(folder, monitors={"problems": 0}, rounds=1), tmp_path / "unseen")
    assert not any(name.startswith("monitor") for name in rounds(tmp_path / "unseen")[0].summary)


def test_the_truth_may_not_decide_in_a_label_free_run(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'"monitors\.truth\.roll_back": report_rewards know the truth'):
        improve(recipe(folder, monitors={"truth": {"roll_back": 0.1}}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_report")
def test_no_truth_changes_a_byte_of_a_label_free_run_that_monitors_may_roll_back(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "truths.py").write_text(
        "import itertools\nup = itertools.count()\n"
        "def constant(completions, **columns): return [0.0] * len(completions)\n"
        "def rising(completions, **columns): return [float(next(up)) for _ in completions]\n"
    )
    weights = set()
    for truth in ("constant", "rising"):
        changes = {
            "report_rewards": [f"{tmp_path}/truths.py:{truth}"],
            "monitors": {"vote_share": {"roll_back": 0.01}},
            "rounds": 1,
        }
        result = improve(recipe(folder, **changes), tmp_path / truth)
        weights.add((result.model / "model.safetensors").read_bytes())
        assert not rounds(tmp_path / truth)[0].summary["accepted"]
    assert len(weights) == 1
