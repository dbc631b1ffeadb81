"""The streams of a recipe: sizes, disjointness, purity, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwise.config.blocks import DataConfig
from loopwise.data.streams import problem_key
from loopwise.errors import ConfigError, DataError, OverlapError
from loopwise.tasks.addition import operands
from loopwise.tasks.base import Streams, Task, endless
from loopwise.tasks.registry import TASKS
from loopwise.tasks.streams import open_streams
from loopwise.types import Problem


def keys(problems: Sequence[Problem]) -> set[str]:
    return {problem_key(problem) for problem in problems}


def addition(seed: int = 0, **data: Any) -> Streams:
    return open_streams(DataConfig(task="addition", **data), seed, supervised=False)


def rows(folder: Path, name: str, prompts: Sequence[Any], **columns: Any) -> str:
    lines = [json.dumps({"prompt": prompt, "answer": f"{prompt}!", **columns}) for prompt in prompts]
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def files(supervised: bool = False, seed: int = 0, **data: Any) -> Streams:
    return open_streams(DataConfig(**data), seed, supervised=supervised)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**40), round=st.integers(1, 50))
def test_no_sum_is_in_two_streams(seed: int, round: int) -> None:
    streams = addition(seed, labelled=60, dev=70, test=80)
    parts = (streams.held_out["dev"], streams.held_out["test"], streams.labelled, streams.draw(round, 50))
    *held_out, labelled, drawn = ({operands(problem) for problem in part} for part in parts)
    assert [len(part) for part in (*held_out, labelled, drawn)] == [70, 80, 60, 50]
    assert not held_out[0] & held_out[1]
    assert not (held_out[0] | held_out[1]) & (labelled | drawn)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**40), round=st.integers(1, 50))
def test_draws_are_pure_functions(seed: int, round: int) -> None:
    first, second = (addition(seed, labelled=5, dev=20, test=20) for _ in range(2))
    first.draw(round + 1, 9)
    assert first.draw(round, 30) == second.draw(round, 30)
    assert first.draw(round, 10) == first.draw(round, 30)[:10], "fewer problems are the first of more"
    assert first.draw(round, 10) != first.draw(round + 1, 10)
    assert (first.held_out, first.labelled) == (second.held_out, second.labelled)


def test_seeds_and_streams_differ() -> None:
    one, other = addition(0, labelled=10), addition(1, labelled=10)
    assert one.draw(1, 10) != other.draw(1, 10)
    assert one.held_out["dev"] != other.held_out["dev"]
    assert not keys(one.labelled) & keys(one.held_out["dev"])


def test_sizes_of_the_addition_task() -> None:
    streams = addition()
    assert {name: len(problems) for name, problems in streams.held_out.items()} == {"dev": 1000, "test": 1000}
    assert len(streams.labelled) == 0
    assert streams.train_count is None
    assert streams.watch == streams.held_out["dev"][:4]
    assert "dev" not in addition(dev=0).held_out
    assert list(addition(dev=0).watch) == []


def test_labels_are_the_answers() -> None:
    streams = addition(labelled=3)
    assert [streams.completion(p) for p in streams.labelled] == [p.columns["answer"] for p in streams.labelled]
    assert streams.reference_columns == ("answer",)


def test_an_exhausted_task_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    coins = Task({"": endless(lambda generator: Problem("coin", f"coin {generator.integers(5)}"))})
    monkeypatch.setitem(TASKS, "coins", lambda options: coins)
    streams = open_streams(DataConfig(task="coins", dev=2, test=1), 0, supervised=False)
    assert len(streams.draw(1, 2)) == 2
    with pytest.raises(ConfigError, match="too few distinct problems: stream train-1 needs 3, and after 2"):
        streams.draw(1, 3)
    assert streams.prompts(3) == [problem.prompt for problem in streams.draw(1, 2)], "what there is of them"


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r'key "data.task": unknown task "additon". Did you mean "addition"\?'):
        files(task="additon")


@pytest.mark.parametrize("key", ["dev", "test", "labelled"])
def test_a_task_takes_numbers_not_files(key: str) -> None:
    with pytest.raises(ConfigError, match=f'key "data.{key}".*give a number'):
        addition(**{key: "rows.jsonl"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "alpaca"),
        ("prompt_column", "question"),
        ("completion_column", "answer"),
        ("augment", "augment.py:shout"),
    ],
)
def test_a_task_takes_no_keys_of_row_files(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f'key "data.{key}": is for row files, .* Leave it out'):
        addition(**{key: value})


def test_a_tenth_of_a_file_is_held_out_twice(tmp_path: Path) -> None:
    train = rows(tmp_path, "train.jsonl", [f"{n}+1=" for n in range(57)])
    streams = files(train=train)
    assert {name: len(part) for name, part in streams.held_out.items()} == {"dev": 5, "test": 5}
    assert streams.train_count == 47
    everything = keys(streams.draw(1, 47)) | keys(streams.held_out["dev"]) | keys(streams.held_out["test"])
    assert len(everything) == 57
    assert len(streams.draw(1, 1000)) == 47, "a round takes each problem at most once"


def test_held_out_sizes_and_files(tmp_path: Path) -> None:
    train = rows(tmp_path, "train.jsonl", [f"{n}+1=" for n in range(20)])
    dev = rows(tmp_path, "dev.jsonl", [f"{n}+2=" for n in range(4)])
    skill = rows(tmp_path, "old.jsonl", ["capital of France"])
    streams = files(train=train, dev=dev, test=3, skills=(skill,))
    assert list(streams.held_out) == ["dev", "test", "skill:old.jsonl"]
    assert [len(part) for part in streams.held_out.values()] == [4, 3, 1]
    assert streams.train_count == 17
    assert set(streams.fingerprint) == {"train", "dev", skill}
    assert files(train=train, dev=0, test=0).held_out == {}


def test_the_split_depends_on_the_seed_and_not_on_the_order_of_rows(tmp_path: Path) -> None:
    prompts = [f"{n}+1=" for n in range(40)]
    train, turned = rows(tmp_path, "a.jsonl", prompts), rows(tmp_path, "b.jsonl", prompts[::-1])
    assert keys(files(train=train).held_out["dev"]) == keys(files(train=turned).held_out["dev"])
    assert keys(files(train=train).held_out["dev"]) != keys(files(train=train, seed=1).held_out["dev"])


def test_an_epoch_of_rounds_visits_every_problem_once(tmp_path: Path) -> None:
    train = rows(tmp_path, "train.jsonl", [f"{n}+1=" for n in range(12)])
    streams = files(train=train, dev=0, test=0)
    drawn = [problem.id for round in (1, 2, 3) for problem in streams.draw(round, 4)]
    assert len(set(drawn)) == 12
    assert streams.draw(2, 4) == files(train=train, dev=0, test=0).draw(2, 4)


@pytest.mark.parametrize("held", ["dev", "test"])
def test_overlap_with_the_training_rows_is_refused(tmp_path: Path, held: str) -> None:
    train = rows(tmp_path, "train.jsonl", [f"{n}+1=" for n in range(30)])
    other = rows(tmp_path, "other.jsonl", ["99+1=", " 7+1=", "8+1= "])
    with pytest.raises(OverlapError, match=f"{held}: 2 of 3 different problems are also in train"):
        files(**{"train": train, "dev": 0, "test": 0, held: other})


def test_overlap_with_the_labelled_rows_is_refused(tmp_path: Path) -> None:
    train = rows(tmp_path, "train.jsonl", [f"{n}+1=" for n in range(30)])
    dev = rows(tmp_path, "dev.jsonl", ["100+1=", "101+1="])
    labelled = rows(tmp_path, "labelled.jsonl", ["100+1=", "200+1="], completion="yes")
    with pytest.raises(OverlapError, match="dev: 1 of 2 different problems are also in"):
        files(train=train, dev=dev, test=0, labelled=labelled)


def test_a_skill_among_what_is_learned_is_refused(tmp_path: Path) -> None:
    train = rows(tmp_path, "train.jsonl", [f"{n}+1=" for n in range(30)])
    skill = rows(tmp_path, "old.jsonl", ["5+1=", "old"])
    with pytest.raises(OverlapError, match=r"skill:old.jsonl: 1 of 2 different problems are also in train"):
        files(train=train, dev=0, test=0, skills=(skill,))
    other = rows(tmp_path, "other.jsonl", ["100+1="])
    labelled = rows(tmp_path, "labelled.jsonl", ["old"], completion="yes")
    with pytest.raises(OverlapError, match=r"skill:old.jsonl: 1 of 2 different problems are also in labelled"):
        files(train=other, dev=0, test=0, labelled=labelled, skills=(skill,))
    dev = rows(tmp_path, "dev.jsonl", ["old"])
    assert "skill:old.jsonl" in files(train=other, dev=dev, test=0, skills=(skill,)).held_out


def test_labelled_rows_of_a_file(tmp_path: Path) -> None:
    train = rows(tmp_path, "train.jsonl", [f"{n}+1=" for n in range(30)])
    labelled = rows(tmp_path, "labelled.jsonl", ["200+1=", "201+1="], completion="yes")
    streams = files(train=train, labelled=labelled)
    assert [streams.completion(problem) for problem in streams.labelled] == ["yes", "yes"]
    with pytest.raises(ConfigError, match=r'key "data.labelled": .* name the file'):
        files(train=train, labelled=3)


def test_supervised_streams_learn_the_training_rows(tmp_path: Path) -> None:
    train = rows(tmp_path, "train.jsonl", [f"{n}+1=" for n in range(30)], completion="yes")
    streams = files(supervised=True, train=train)
    assert len(streams.labelled) == 24
    assert not keys(streams.labelled) & keys(streams.held_out["dev"])
    messages = rows(tmp_path, "chat.jsonl", ["a", "b"], completion=[{"role": "assistant", "content": "sure"}])
    streams = files(supervised=True, train=messages, dev=0, test=0)
    assert [streams.completion(problem) for problem in streams.labelled] == ["sure", "sure"]
    with pytest.raises(ConfigError, match=r'key "data.labelled": .* name both files under "data.train"'):
        files(supervised=True, train=train, labelled=messages)


@pytest.mark.parametrize("value", [["c"], [], ["a", "b"], [{"role": "user"}], {"text": "c"}])
def test_a_completion_is_text_or_messages(tmp_path: Path, value: Any) -> None:
    train = rows(tmp_path, "train.jsonl", ["1+1=", "2+1="], gold=value)
    streams = files(train=train, completion_column="gold", dev=0, test=0)
    with pytest.raises(DataError, match=r"""'\d\+1=', column "gold": expected text or a list of messages, found """):
        streams.completion(streams.rows[0])


def test_completions_that_are_numbers_or_several_messages(tmp_path: Path) -> None:
    said = [{"role": role, "content": "so"} for role in ("assistant", "user", "assistant")]
    for value, wanted in ((3, "3"), (said, tuple(said)), (said[:1], "so")):
        train = rows(tmp_path, "train.jsonl", ["1+1=", "2+1="], gold=value)
        streams = files(train=train, completion_column="gold", dev=0, test=0)
        assert streams.completion(streams.rows[0]) == wanted
    assert sorted(streams.prompts(99)) == ["1+1=", "2+1="]


def test_a_supervised_task_needs_labels() -> None:
    with pytest.raises(ConfigError, match="needs the number of labelled problems"):
        files(supervised=True, task="addition")


def test_more_held_out_than_rows_is_refused(tmp_path: Path) -> None:
    train = rows(tmp_path, "train.jsonl", ["1+1=", "2+1="])
    with pytest.raises(DataError):
        files(train=train, dev=2, test=2)


def test_streams_without_references(tmp_path: Path) -> None:
    train = rows(tmp_path, "train.jsonl", [f"{n}+1=" for n in range(20)], level="easy", completion="gold")
    streams = files(train=train, reference_columns=("answer",))
    blind = streams.without_references()
    drawn = blind.draw(1, 4)
    assert [dict(problem.columns) for problem in drawn] == [{"level": "easy"}] * 4
    assert [problem.id for problem in drawn] == [problem.id for problem in streams.draw(1, 4)]
    assert all("answer" in problem.columns for problem in blind.held_out["dev"])
    assert blind.reference_columns == ("answer", "completion"), "what rewards may not see either, dev included"
