"""Monitors: which limits speak, that they are silent where a model has learned, and that a second limit rolls back."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest

from loopwise.config.blocks import MonitorsConfig, RewardConfig
from loopwise.config.reading import parse_recipe
from loopwise.config.recipes import ImproveRecipe
from loopwise.errors import ConfigError
from loopwise.evaluate.loading import load_feedback
from loopwise.evaluate.sources import Source
from loopwise.models.policy import Policy
from loopwise.monitors import Crossing, Monitors, Watched, crossings
from loopwise.runs.journal import Journal
from loopwise.stages.improve import RUN_ID, improve
from loopwise.types import LOST, Feedback, Problem, Sample, Sampling, Scored
from loopwise.workspace import JOURNAL

BASE = {"reward": 0.5, "entropy": 1.0, "distinct": 0.8, "length": 10.0, "vote_share": 0.5}
SURE = {"entropy": 0.01, "distinct": 0.1, "vote_share": 1.0}
HOLE = {"use": "regex", "options": {"pattern": "[a-e]"}}
Truth = Literal["truth", "reward"]


def seen(scores: dict[str, list[float]] | None = None, *, truth_in: Truth | None = None, **figures: float) -> Watched:
    return Watched(BASE | figures, {k: np.asarray(v) for k, v in (scores or {}).items()}, truth_in)


def right(count: int) -> list[float]:
    """Scores of 64 problems, the first ``count`` of them right."""
    return [1.0] * count + [0.0] * (64 - count)


def names(now: Watched, base: Watched | None = None, **limits: Any) -> list[tuple[str, bool]]:
    found = crossings(MonitorsConfig.model_validate(limits), base or seen(), now)
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


@pytest.mark.parametrize("truth", ["truth", "reward"])
def test_a_model_that_is_shown_to_have_learned_may_be_sure_of_itself(truth: Truth) -> None:
    base = seen({truth: right(20)}, truth_in=truth)
    assert names(seen({truth: right(40)}, truth_in=truth, **SURE), base) == []
    for not_shown in (20, 22, 10):
        found = names(seen({truth: right(not_shown)}, truth_in=truth, **SURE), base, truth={"warn": None})
        assert {name for name, _ in found} == set(SURE)


def test_a_reward_that_rises_silences_nothing_unless_it_is_the_truth() -> None:
    base, risen = seen({"reward": right(5)}), {"reward": right(64)}
    assert {name for name, _ in names(seen(risen, reward=1.0, **SURE), base)} == set(SURE)
    base = seen({"reward": right(5), "truth": right(5)}, truth_in="truth")
    now = seen(risen | {"truth": right(5)}, truth_in="truth", reward=1.0, **SURE)
    assert {name for name, _ in names(now, base)} == set(SURE)


def test_no_truth_silences_a_rollback() -> None:
    base, now = (seen({"truth": right(n)}, truth_in="truth", **figures) for n, figures in ((5, {}), (60, SURE)))
    assert names(now, base, vote_share={"warn": 0.9, "roll_back": 0.99}) == [("vote_share", True)]
    assert names(now, base, vote_share={"warn": 0.9}, entropy={"roll_back": 0.1}) == [("entropy", True)]


def test_a_fall_of_the_truth_speaks_where_it_is_shown() -> None:
    base = seen({"truth": right(40)}, truth_in="truth", truth=0.625)
    for reward in (0.9, 0.4):
        fallen = seen({"truth": right(20)}, truth_in="truth", reward=reward, truth=0.3125)
        assert names(fallen, base) == [("truth", False)]
    chance = {"truth": [1.0] * 36 + [0.0] * 4 + [1.0] * 2 + [0.0] * 22}
    assert names(seen(chance, truth_in="truth", reward=0.9, truth=0.59), base) == []


def test_answers_that_are_lost_speak() -> None:
    base = seen({"pass_at_k": right(50)})
    assert names(seen({"pass_at_k": right(30)}), base) == [("pass_at_k", False)]
    assert names(seen({"pass_at_k": right(49)}), base) == []


def test_answers_that_could_not_be_drawn_are_not_watched() -> None:
    texts = ["", "1", "", "2"]
    samples = tuple(
        Sample(str(place), "p", 0, place, "", text, "stop" if text else LOST) for place, text in enumerate(texts)
    )
    rewards = np.array([[math.nan], [1.0], [math.nan], [0.0]])
    said = Feedback(
        ("exact",), (1.0,), rewards, ~np.isnan(rewards), critiques=(None, None, None, "no"), edits=("1",) * 4
    )
    scored = Scored((Problem("p", "?"),), samples, said)
    roller = SimpleNamespace(at=lambda *place: lambda *asked: scored, report=None, feedback=None)
    watching: Any = {"roller": roller, "ask": None, "runtime": None, "sampling": Sampling()}
    monitors = Monitors(MonitorsConfig(samples=4), problems=scored.problems, threshold=1.0, base=Policy(), **watching)
    figures = monitors.of_base.figures
    assert (figures["pass_at_1"], figures["vote_share"], figures["length"]) == (0.5, 0.5, 1.0)


@pytest.mark.parametrize(
    ("rewards", "critics", "knows"),
    [
        (["exact_match"], [], True),
        (["exact_match", {"use": "number", "weight": 0.5}], [], True),
        (["exact_match", {"use": "number", "weight": -0.5}], [], False),
        (["exact_match", {"use": "length", "options": {"most": 5}}], [], False),
        (["self_certainty"], ["mismatch"], False),
        (["similarity"], [], False),
        (["somewhere.score"], [], False),
        ([{"use": "somewhere.score", "uses_reference": True}], [], False),
        ([], [], False),
    ],
)
def test_a_sum_of_rules_that_read_references_is_the_truth(
    rewards: list[Any], critics: list[Any], knows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a model would judge is not asked here.
    monkeypatch.setattr(Source, "make", lambda self, *_: None)
    configs, words = (
        [RewardConfig.model_validate({"use": one} if isinstance(one, str) else one) for one in group]
        for group in (rewards, critics)
    )
    feedback = load_feedback(configs, critics=words, reference_columns=["answer"], label_free=False)
    assert feedback.knows_truth is knows
    assert feedback.asking(None).knows_truth is knows


def recipe(folder: Path, **changes: Any) -> ImproveRecipe:
    content = {
        "model": str(folder),
        "data": {"task": "addition", "dev": 8, "test": 8},
        "rewards": [HOLE],
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


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(
    ("changes", "truth"),
    [
        ({}, "truth"),
        ({"report_rewards": []}, None),
        ({"report_rewards": [], "rewards": ["exact_match", HOLE], "label_free": False}, None),
        ({"report_rewards": [], "rewards": ["exact_match"], "label_free": False}, "reward"),
        ({"rewards": ["exact_match"], "label_free": False}, "truth"),
    ],
)
def test_what_tells_the_truth_of_a_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], truth: str | None
) -> None:
    compared: list[Watched] = []
    own = Monitors.crossings

    def noted(monitors: Monitors, now: Watched) -> list[Crossing]:
        compared.append(now)
        return own(monitors, now)

    monkeypatch.setattr(Monitors, "crossings", noted)
    improve(recipe(folder, rounds=1, **changes), tmp_path / "out")
    (now,) = compared
    assert now.truth == truth
    assert now.scores.keys() >= {"reward", "pass_at_k"} | ({truth} if truth else set())
    for name in now.scores.keys() & now.figures.keys() - {"pass_at_k"}:
        assert now.scores[name].shape == (8,)
        assert now.scores[name].mean() == pytest.approx(now.figures[name])


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
