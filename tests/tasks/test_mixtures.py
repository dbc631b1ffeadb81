"""Several row files as one stream of problems, and rows that a user's function changes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from loopwise.config.blocks import DataConfig
from loopwise.data.streams import problem_key
from loopwise.errors import ConfigError, DataError, ProblemFileError
from loopwise.tasks.base import SourceRows, Streams
from loopwise.tasks.streams import open_streams
from loopwise.types import Problem


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def sums(tmp_path: Path) -> str:
    return write(tmp_path / "sums.jsonl", [{"prompt": f"{n}+1=", "completion": f"{n + 1}"} for n in range(60)])


@pytest.fixture
def intents(tmp_path: Path) -> str:
    return write(tmp_path / "intents.jsonl", [{"text": f"card {n}", "category": "lost"} for n in range(30)])


@pytest.fixture
def questions(tmp_path: Path) -> str:
    return write(tmp_path / "questions.jsonl", [{"question": f"{n}?", "answer": f"{n}!"} for n in range(10)])


def mixture(*sources: Any, supervised: bool = True, seed: int = 0, **data: Any) -> Streams:
    return open_streams(DataConfig(train=sources, **data), seed, supervised=supervised)


def named(path: str, **more: Any) -> dict[str, Any]:
    return {"path": path, "prompt_column": "text", "completion_column": "category", **more}


def kind(problem: Problem) -> str:
    return "sum" if "=" in problem.prompt else "intent" if "card" in problem.prompt else "question"


def test_sources_follow_one_another_and_every_one_is_held_out_from(sums: str, intents: str, questions: str) -> None:
    streams = mixture({"path": sums, "weight": 3}, named(intents, weight=0.5), questions, dev=10, test=20)
    assert streams.sources == (
        SourceRows("sums.jsonl", 42, 3.0),
        SourceRows("intents.jsonl", 21, 0.5),
        SourceRows("questions.jsonl", 7, 1.0),
    )
    kinds = [kind(problem) for problem in streams.labelled]
    assert kinds == ["sum"] * 42 + ["intent"] * 21 + ["question"] * 7
    assert Counter(map(kind, streams.held_out["dev"])) == {"sum": 6, "intent": 3, "question": 1}
    assert Counter(map(kind, streams.held_out["test"])) == {"sum": 12, "intent": 6, "question": 2}
    assert set(streams.fingerprint) == {"train sums.jsonl", "train intents.jsonl", "train questions.jsonl"}
    assert len({problem.id for part in (streams.labelled, *streams.held_out.values()) for problem in part}) == 100


def test_completions_stand_in_one_column(sums: str, intents: str, questions: str) -> None:
    streams = mixture(sums, named(intents), questions, dev=0, test=0)
    assert streams.completion_column == "completion"
    assert [streams.completion(problem) for problem in (streams.labelled[0], *streams.labelled[-1:])] == ["1", "9!"]
    assert set(streams.reference_columns) == {"category", "answer"}, "where the same answers stand under other names"
    assert mixture(questions, supervised=False).completion_column == "answer"
    twice = mixture(questions, {"path": sums, "prompt_column": "prompt", "completion_column": "completion"})
    assert {len(problem.columns) for problem in twice.labelled} == {1, 2}


def test_one_source_is_as_a_plain_name(sums: str) -> None:
    one, plain = mixture(sums), open_streams(DataConfig(train=sums), 0, supervised=True)
    assert (one.labelled, one.held_out, one.fingerprint) == (plain.labelled, plain.held_out, plain.fingerprint)
    assert plain.sources == (SourceRows("sums.jsonl", 48, 1.0),)


def test_a_column_in_the_way_is_refused(tmp_path: Path, sums: str) -> None:
    other = write(tmp_path / "o.jsonl", [{"question": f"{n}??", "answer": "a", "completion": 3} for n in range(9)])
    with pytest.raises(ProblemFileError, match=r'o\.jsonl, column "completion": .* here "answer" holds them\. Rename'):
        mixture(sums, other)


def test_a_prompt_of_two_sources_is_in_one_split(tmp_path: Path, sums: str) -> None:
    other = write(tmp_path / "b.jsonl", [{"prompt": f" {n}+1=", "completion": "?"} for n in range(80)])
    streams = mixture(sums, other, dev=20, test=20)
    train = {problem_key(problem) for problem in streams.labelled}
    held = {problem_key(problem) for part in streams.held_out.values() for problem in part}
    assert not train & held
    assert len(train | held) == 80
    first, second = streams.sources
    assert (first.count, second.count + second.left_out) == (30, 70), "30 held out from sums, 10 from the other's own"
    assert second.left_out == 30
    held_too = [{"prompt": problem.prompt, "completion": "?"} for problem in streams.held_out["dev"][:15]]
    third = write(tmp_path / "c.jsonl", held_too)
    with pytest.raises(DataError, match=r"c\.jsonl: all its rows are held out with those of the other files"):
        mixture(sums, other, third, dev=20, test=20)


def test_rows_of_a_small_source_are_never_all_held_out(tmp_path: Path, sums: str) -> None:
    tiny = write(tmp_path / "tiny.jsonl", [{"prompt": "tiny", "completion": "x"}])
    assert mixture(sums, tiny).sources[1].count == 1
    with pytest.raises(DataError, match=r"tiny\.jsonl: dev 1 \+ test 0 held-out rows wanted of 1, which leaves none"):
        mixture(sums, tiny, dev=59, test=1)


def test_left_out_rows_are_counted(tmp_path: Path, sums: str) -> None:
    rows = [{"prompt": f"p{n}", "completion": "c", "label": n % 3 == 0} for n in range(30)]
    streams = mixture(sums, write(tmp_path / "u.jsonl", rows), dev=7, test=0)
    assert streams.sources == (SourceRows("sums.jsonl", 54, 1.0), SourceRows("u.jsonl", 9, 1.0, 20))


def test_draws_follow_the_weights(sums: str, questions: str) -> None:
    streams = mixture({"path": sums, "weight": 3}, questions, supervised=False, dev=0, test=0)
    rounds = [Counter(map(kind, streams.draw(round, 6))) for round in range(1, 41)]
    assert {drawn["question"] for drawn in rounds} == {1, 2}
    assert sum(drawn["question"] for drawn in rounds) == pytest.approx(60, abs=6)
    again = mixture({"path": sums, "weight": 3}, questions, supervised=False, dev=0, test=0)
    assert again.draw(7, 6) == streams.draw(7, 6)
    assert {problem.id for problem in streams.draw(1, 70)} == {problem.id for problem in streams.rows}
    assert len(streams.draw(3, 1000)) == streams.train_count == 70
    assert Counter(map(kind, streams.draw(2, 60))) == {"sum": 50, "question": 10}, "a small source gives all it has"


def test_references_of_one_source(sums: str, questions: str) -> None:
    streams = mixture(sums, questions, supervised=False, reference_columns=("answer",))
    blind = streams.without_references()
    assert all(not problem.columns for problem in blind.draw(1, 20))
    with pytest.raises(ProblemFileError, match=r'sums\.jsonl line 1, column "anwser": missing'):
        mixture(sums, questions, supervised=False, reference_columns=("anwser",))


def test_formats_that_give_answers_away_hide_them(tmp_path: Path) -> None:
    verl = [
        {"prompt": f"{n}+1=", "reward_model": {"style": "rule", "ground_truth": f"{n + 1}"}, "extra_info": {}, "k": 1}
        for n in range(10)
    ]
    pairs = [{"prompt": f"{n}+2=", "chosen": "1", "rejected": "2", "k": 1} for n in range(10)]
    labelled = [{"prompt": f"{n}+3=", "completion": "1", "label": True, "k": 1} for n in range(10)]
    for number, rows in enumerate((verl, pairs, labelled)):
        path = write(tmp_path / f"{number}.jsonl", rows)
        blind = open_streams(DataConfig(train=path), 0, supervised=False).without_references()
        assert [dict(problem.columns) for problem in blind.draw(1, 4)] == [{"k": 1}] * 4


def test_the_same_file_twice_is_refused(sums: str) -> None:
    with pytest.raises(ConfigError, match=r'key "data.train": names .*sums\.jsonl twice'):
        mixture(sums, sums)


def test_equal_names_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    paths = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        rows = [{"prompt": f"{folder}{n}", "completion": "c"} for n in range(20)]
        paths.append(write(tmp_path / folder / "train.jsonl", rows))
    assert [source.name for source in mixture(*paths).sources] == paths


AUGMENT = """\
def shout(row, generator):
    if row["text"] == "card 7":
        row["text"] = "card 8"
        return row
    return {**row, "text": row["text"].upper() + "!" * int(generator.integers(1, 1000))}
def fails(row, generator):
    raise ValueError("no")
def no_row(row, generator):
    return [row]
def no_text(row, generator):
    return {"text": None, "category": "x"}
def not_json(row, generator):
    return {**row, "more": {1, 2}}
"""


@pytest.fixture
def hooks(tmp_path: Path) -> str:
    (tmp_path / "hooks.py").write_text(AUGMENT)
    return str(tmp_path / "hooks.py")


def changed(intents: str, use: str, **data: Any) -> Streams:
    return mixture(named(intents), augment=use, **{"dev": 5, "test": 5, **data})


def test_augmented_rows_are_a_function_of_seed_problem_and_epoch(intents: str, hooks: str) -> None:
    streams, again = (changed(intents, f"{hooks}:shout") for _ in range(2))
    assert streams.augment
    assert again.augment
    problem = next(problem for problem in streams.labelled if problem.prompt != "card 7")
    first, second = streams.augment(problem, 0), streams.augment(problem, 1)
    assert first.prompt.rstrip("!") == problem.prompt.upper()
    assert first.prompt != second.prompt
    assert (first.id, first.columns) == (problem.id, problem.columns)
    assert again.augment(problem, 1) == second
    assert streams.labelled == mixture(named(intents), dev=5, test=5).labelled, "the rows themselves stay"
    assert streams.fingerprint["augment"]


def test_a_row_that_became_a_held_out_problem_stays_as_it_was(intents: str, hooks: str) -> None:
    seeds = range(100)
    for seed in seeds:
        streams = changed(intents, f"{hooks}:shout", seed=seed)
        seven = [problem for problem in streams.labelled if problem.prompt == "card 7"]
        held = any(problem.prompt == "card 8" for part in streams.held_out.values() for problem in part)
        if seven and held:
            assert streams.augment
            assert streams.augment(seven[0], 0) == seven[0]
            return
    pytest.fail("no seed holds card 8 out and not card 7")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("fails", r"it raised ValueError: no \(line 7\)\. Mend it, or leave data.augment out"),
        ("no_row", r"expected a row as a dict, found a list\. Return the changed row"),
        ("no_text", r'column "text": expected text or a list of messages, found null'),
        ("not_json", r"found what JSON cannot hold \(.*set.*\)\. Return text, numbers and lists"),
    ],
)
def test_a_failing_function_names_itself_and_the_row(intents: str, hooks: str, function: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"intents\.jsonl line \d+, changed by .*hooks\.py:{function}(:|,) {message}"):
        changed(intents, f"{hooks}:{function}")


def test_functions_that_are_not_there(tmp_path: Path, intents: str, hooks: str) -> None:
    with pytest.raises(ConfigError, match=r'key "data.augment": there is no Python file .*nowhere\.py\. Write path/to'):
        changed(intents, str(tmp_path / "nowhere.py:shout"))
    with pytest.raises(ConfigError, match=r'hooks\.py has no function "shuot"\. Its functions: shout, fails, no_row'):
        changed(intents, f"{hooks}:shuot")
    (tmp_path / "broken.py").write_text("x = 1\ndef f(row:\n")
    with pytest.raises(ConfigError, match=r"broken\.py cannot be loaded: SyntaxError: .* \(line 2\)\. Mend it"):
        changed(intents, str(tmp_path / "broken.py:f"))
    with pytest.raises(ConfigError, match=r'key "data.augment": changes the rows that `loopwise tune` learns'):
        mixture(named(intents), augment=f"{hooks}:shout", supervised=False)
