"""Tasks by name: their options, levels and rewards, and what is refused."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Any

import pytest

from loopwise.config.blocks import DataConfig
from loopwise.config.reading import parse_recipe
from loopwise.config.recipes import ImproveRecipe, TuneRecipe
from loopwise.data.streams import problem_key
from loopwise.errors import ConfigError
from loopwise.evaluate.rules import RULES
from loopwise.tasks.base import Streams
from loopwise.tasks.registry import TASKS, find_task
from loopwise.tasks.rewards import with_task_rewards
from loopwise.tasks.sorting import make, sorted_letters
from loopwise.tasks.streams import open_streams

LEVELS = [{"length": 2}, {"length": 5}]


def sorting(**data: Any) -> Streams:
    return open_streams(DataConfig(task="sorting", **data), 0, supervised=False)


def test_letters_by_hand() -> None:
    assert make("loopwise").prompt == "loopwise="
    assert make("loopwise").columns == {"answer": "eiloopsw"}


def test_words_of_the_same_letters_are_the_same_problem() -> None:
    assert sorted_letters(make("cab")) == sorted_letters(make("abc")) != sorted_letters(make("abb"))


def test_words_have_their_length_and_letters() -> None:
    words = [
        str(problem.prompt)[:-1]
        for problem in islice(find_task("sorting", {"length": 5, "letters": 3}).problems(1), 300)
    ]
    assert set(map(len, words)) == {5}
    counts = Counter("".join(words))
    assert set(counts) == set("abc")
    assert min(counts.values()) > 400, "of 1500 letters"


@pytest.mark.parametrize("name", sorted(TASKS))
def test_the_answer_earns_the_reward(name: str) -> None:
    task = find_task(name)
    problem = next(task.problems(1))
    (reward,) = task.rewards
    judge = RULES[reward.use].make(reward.options)
    answer = problem.columns[task.completion_column]
    assert judge(completions=[answer, answer + "0", ""], answer=[answer] * 3) == [1.0, 0.0, 0.0]


def test_levels_are_drawn_evenly_and_named() -> None:
    task = find_task("sorting", {"levels": LEVELS, "letters": 4})
    problems = list(islice(task.problems(3), 400))
    assert problems == list(islice(task.problems(3), 400))
    for problem in problems:
        length = len(str(problem.prompt)) - 1
        assert problem.columns["level"] == f"length={length}"
        assert problem.id == f"length={length}/sort-{str(problem.prompt)[:-1]}"
    assert abs(Counter(p.columns["level"] for p in problems)["length=2"] - 200) < 50
    assert {p.columns["level"] for p in islice(task.problems(3, "length=5"), 20)} == {"length=5"}


def test_a_level_of_a_round_is_drawn_alone() -> None:
    streams = sorting(task_options={"levels": LEVELS}, dev=20, test=20)
    assert streams.levels == ("length=2", "length=5")
    assert streams.draw_level is not None
    drawn = streams.draw_level("length=5", 1, 30)
    assert [problem.columns["level"] for problem in drawn] == ["length=5"] * 30
    assert drawn == streams.draw_level("length=5", 1, 40)[:30] != streams.draw_level("length=5", 2, 30)
    held_out = {sorted_letters(p) for part in streams.held_out.values() for p in part}
    assert not held_out & {sorted_letters(p) for p in drawn}
    blind = streams.without_references().draw_level
    assert blind is not None
    assert [dict(problem.columns) for problem in blind("length=5", 1, 2)] == [{"level": "length=5"}] * 2


def test_a_small_level_gives_what_it_has() -> None:
    streams = sorting(task_options={"levels": [{"length": 1}, {"length": 9}]}, dev=10, test=0)
    assert streams.draw_level is not None
    drawn = streams.draw_level("length=1", 1, 100)
    assert 0 < len(drawn) < 26
    assert len({problem_key(problem) for problem in drawn}) == len(drawn)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("sortin", {}, 'key "data.task": unknown task "sortin". Did you mean "sorting"?'),
        ("reasoning_gym", {}, 'unknown task "reasoning_gym". Did you mean "reasoning_gym:NAME"?'),
        (
            "sorting",
            {"lenght": 3},
            'key "data.task_options.lenght": task sorting has no such option. Did you mean "length"?',
        ),
        ("sorting", {"length": 0}, 'key "data.task_options.length": expected a whole number from 1 to 1000, found 0'),
        ("addition", {"digits": "3"}, "expected a whole number from 1 to 18, found '3'"),
        ("addition", {"digits": True}, "found True"),
        ("addition", {"levels": []}, 'key "data.task_options.levels": expected a list of option sets'),
        ("addition", {"levels": [3]}, "expected a list of option sets"),
        ("addition", {"levels": [{}]}, "every level needs options of its own"),
        ("addition", {"levels": [{"digits": 1}, {"digits": 1}]}, "every level needs options of its own"),
        ("addition", {"levels": [{"digits": 1}, {"digit": 2}]}, "task addition has no such option"),
    ],
)
def test_what_is_refused(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        find_task(name, options)
    assert says in str(refusal.value)


def recipe(kind: type[Any], **changes: Any) -> Any:
    return parse_recipe(kind, {"model": "m", "data": {"task": "addition"}} | changes)


def test_a_recipe_without_rewards_gets_its_tasks() -> None:
    filled = with_task_rewards(recipe(ImproveRecipe))
    assert [reward.use for reward in filled.rewards] == ["exact_match"]
    assert with_task_rewards(filled) is filled
    named = recipe(ImproveRecipe, rewards=["number"])
    assert with_task_rewards(named) is named
    assert [r.use for r in with_task_rewards(recipe(TuneRecipe, gate={"metric": "reward"})).rewards] == ["exact_match"]
    by_likelihood = recipe(TuneRecipe)
    assert with_task_rewards(by_likelihood) is by_likelihood


def test_rows_without_rewards_name_the_mend() -> None:
    rows = recipe(TuneRecipe, data={"train": "rows.jsonl"}, gate={"metric": "reward"})
    with pytest.raises(ConfigError, match=r'row files bring none of their own. Name one under "rewards"'):
        with_task_rewards(rows)
