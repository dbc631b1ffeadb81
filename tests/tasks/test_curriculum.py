"""Which problems a round draws: weights by hand, shares, purity, and what waits."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwise.config.blocks import CurriculumConfig, DataConfig
from loopwise.data.streams import draw
from loopwise.errors import ConfigError
from loopwise.tasks.base import Streams
from loopwise.tasks.curriculum import PassRate, apportion, bucket_rates, check_curriculum, draw_round, weight
from loopwise.tasks.options import level_options
from loopwise.tasks.streams import open_streams
from loopwise.types import Problem

CONFIG = CurriculumConfig()
ROWS = tuple(Problem(f"rows.jsonl:{number}", f"{number}+1=", {"answer": "1"}) for number in range(100))
LEVELS = ("digits=1", "digits=2", "digits=3")


def rows_streams() -> Streams:
    return Streams(lambda round, count: draw(ROWS, count, 0, round - 1), {}, (), "answer", (), len(ROWS), rows=ROWS)


def level_streams() -> Streams:
    options = {"levels": [{"digits": 1}, {"digits": 2}, {"digits": 3}]}
    return open_streams(DataConfig(task="addition", task_options=options, dev=10, test=10), 0, supervised=False)


def shares(**rates: tuple[int, int]) -> dict[str, tuple[int, int, int]]:
    """A group of each named level: (passed, judged), all of round 1."""
    return {f"digits={level[1]}/add-1-{level}": (1, *rate) for level, rate in rates.items()}


def test_weights_by_hand() -> None:
    assert weight(None, 0.5) == 1.0
    assert weight(PassRate(1, 4, 8), 0.5) == pytest.approx(1.0)
    # At a target of one half, twice the standard deviation of a pass.
    assert weight(PassRate(1, 2, 8), 0.5) == pytest.approx(2 * (0.25 * 0.75) ** 0.5)
    assert weight(PassRate(1, 2, 10), 0.2) == pytest.approx(1.0)
    assert weight(PassRate(1, 0, 8), 0.5) == weight(PassRate(1, 8, 8), 0.5) == 0.0


@given(target=st.floats(0.05, 0.95), passed=st.integers(0, 20))
def test_no_pass_rate_weighs_more_than_the_target(target: float, passed: int) -> None:
    assert 0.0 <= weight(PassRate(1, passed, 20), target) <= 1.0 + 1e-12


@given(count=st.integers(0, 1000), weights=st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_all_is_shared_out(count: int, weights: list[float]) -> None:
    counts = apportion(count, weights)
    assert sum(counts) == (count if sum(weights) else 0)
    assert all(
        abs(own - count * share / sum(weights)) < 1
        for own, share in zip(counts, weights, strict=True)
        if count and sum(weights)
    )


def test_a_level_counts_the_groups_of_its_last_round() -> None:
    groups = {
        "digits=1/add-1-2": (1, 8, 8),
        "digits=1/add-3-4": (2, 1, 8),
        "digits=1/add-5-6": (2, 2, 8),
        "digits=2/add-5-6": (1, 0, 0),
        "digits=9/add-5-6": (2, 1, 1),
    }
    assert bucket_rates(groups, LEVELS) == {"digits=1": (2, 3, 16), "digits=9/add-5-6": (2, 1, 1)}


def test_levels_may_have_slashes_in_their_names() -> None:
    options = {"levels": [{"operators": ["+"]}, {"operators": ["+", "/"]}, {"operators": ["+", "/"], "min_terms": 3}]}
    levels = tuple(level_options(options))
    groups = {f"{level}/chain-1": (1, passed, 8) for passed, level in enumerate(levels, 1)}
    assert bucket_rates(groups, levels) == {level: (1, passed, 8) for passed, level in enumerate(levels, 1)}
    assert bucket_rates({"op=a/b/c-1": (1, 2, 8)}, ("op=a", "op=a/b")) == {"op=a/b": (1, 2, 8)}


def test_rows_that_all_passed_or_all_failed_wait() -> None:
    groups = {problem.id: (1, passed, 4) for problem, passed in zip(ROWS, [0, 4, 2, 1] * 25, strict=True)}
    drawn = draw_round(rows_streams(), 40, 0, 2, groups, changed(revisit=0.0))
    assert len(drawn.problems) == 40
    assert {groups[problem.id][1] for problem in drawn.problems} == {1, 2}
    assert drawn.metrics["curriculum/skipped"] == 50
    assert 0.5 < drawn.metrics["curriculum/difficulty"] < 0.75


def test_rounds_that_find_nothing_to_learn_are_small_but_not_empty() -> None:
    groups = {problem.id: (1, 4, 4) for problem in ROWS}
    assert len(draw_round(rows_streams(), 40, 0, 2, groups, CONFIG).problems) == 4
    assert len(draw_round(rows_streams(), 40, 0, 2, groups, changed(revisit=0.0)).problems) == 1


def test_every_row_is_seen_again() -> None:
    groups = {problem.id: (1, 4, 4) for problem in ROWS}
    seen = {p.id for round in range(1, 26) for p in draw_round(rows_streams(), 40, 0, round, groups, CONFIG).problems}
    assert len(seen) == len(ROWS)


def test_rows_near_the_target_are_drawn_most() -> None:
    groups = {problem.id: (1, 8 if number < 50 else 15, 16) for number, problem in enumerate(ROWS)}
    drawn = Counter(
        groups[problem.id][1]
        for round in range(1, 101)
        for problem in draw_round(rows_streams(), 5, 0, round, groups, changed(revisit=0.0)).problems
    )
    assert drawn[8] / drawn[15] == pytest.approx(1 / weight(PassRate(1, 15, 16), 0.5), rel=0.25)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**40), round=st.integers(1, 30), passed=st.lists(st.integers(0, 4), min_size=100, max_size=100)
)
def test_draws_are_pure_and_hold_no_row_twice(seed: int, round: int, passed: list[int]) -> None:
    groups = {problem.id: (1, own, 4) for problem, own in zip(ROWS, passed, strict=True)}
    backwards = dict(reversed(groups.items()))
    one = draw_round(rows_streams(), 30, seed, round, groups, CONFIG)
    assert one == draw_round(rows_streams(), 30, seed, round, backwards, CONFIG)
    assert len({problem.id for problem in one.problems}) == len(one.problems) <= 30


def test_levels_share_a_round_by_their_pass_rates() -> None:
    streams = level_streams()
    first = draw_round(streams, 60, 0, 1, {}, CONFIG)
    assert level_counts(first.problems) == {"digits=1": 20, "digits=2": 20, "digits=3": 20}
    later = draw_round(streams, 100, 0, 2, shares(d1=(8, 8), d2=(4, 8), d3=(0, 8)), CONFIG)
    assert level_counts(later.problems) == {"digits=1": 4, "digits=2": 93, "digits=3": 3}
    assert later.metrics == {
        "curriculum/skipped": 2.0,
        "curriculum/difficulty": pytest.approx((93 * 0.5 + 3) / 100),
        "curriculum/share/digits=1": 0.04,
        "curriculum/share/digits=2": 0.93,
        "curriculum/share/digits=3": 0.03,
    }
    assert later == draw_round(streams, 100, 0, 2, shares(d3=(0, 8), d2=(4, 8), d1=(8, 8)), CONFIG)


def test_levels_without_anything_to_learn_are_still_looked_at() -> None:
    drawn = draw_round(level_streams(), 50, 0, 2, shares(d1=(8, 8), d2=(8, 8), d3=(8, 8)), changed(revisit=0.0))
    assert len(drawn.problems) == 1


def test_a_task_of_one_difficulty_is_refused() -> None:
    streams = open_streams(DataConfig(task="addition", dev=1, test=1), 0, supervised=False)
    with pytest.raises(ConfigError, match=r'key "curriculum": .* Give it levels'):
        check_curriculum(streams)
    check_curriculum(rows_streams())
    check_curriculum(level_streams())
    check_curriculum(rows_streams().without_references())


def level_counts(problems: list[Problem]) -> dict[str, int]:
    return dict(Counter(problem.columns["level"] for problem in problems))


def changed(**changes: Any) -> CurriculumConfig:
    return CONFIG.model_copy(update=changes)
