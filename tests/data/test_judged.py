"""Rows with judgements: told by their columns, deduplicated, split without overlap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.judging import labelled, preferred, write_rows

from loopwise.config.judge_blocks import JudgeDataConfig
from loopwise.data.judged import open_examples
from loopwise.errors import ConfigError, DataError, OverlapError


def config(path: Path, **changes: Any) -> JudgeDataConfig:
    return JudgeDataConfig.model_validate({"train": str(path), **changes})


def test_no_text_stands_in_two_splits(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", labelled(400))
    found = open_examples(config(path, dev=0.25, test=0.25), 0)
    keys = [
        {key for one in part for key in one.keys}
        for part in (found.train, found.held_out["dev"], found.held_out["test"])
    ]
    assert sum(map(len, keys)) == 400
    assert len(set.union(*keys)) == 400
    assert [len(part) for part in keys[1:]] == pytest.approx([100, 100], abs=30)
    again = open_examples(config(path, dev=0.25, test=0.25), 0)
    other = open_examples(config(path, dev=0.25, test=0.25), 1)
    assert again.train == found.train
    assert other.train != found.train


def test_rows_of_one_prompt_stay_together(tmp_path: Path) -> None:
    rows = [{**row, "prompt": "the one", "chosen": f" {n}"} for n, row in enumerate(preferred(30))] + preferred(30)
    found = open_examples(config(write_rows(tmp_path / "rows.jsonl", rows), dev=0.3, test=0), 0)
    ours = [sum(one.readings[0][0] == "the one" for one in part) for part in (found.train, found.held_out["dev"])]
    assert sorted(ours) == [0, 30]


SHARING: dict[str, tuple[list[dict[str, Any]], dict[str, str]]] = {
    "pairs that share an answer": (
        [{"prompt": f"p{n}", "chosen": f"good {n % 50}", "rejected": f"bad {n}"} for n in range(200)],
        {"reads": "completion"},
    ),
    "completions of several prompts": (
        [{"prompt": f"p{n}", "completion": f"c {n // 4 * 4}", "label": n % 4 == 0} for n in range(200)],
        {"reads": "completion"},
    ),
    "labelled answers to one prompt": (
        [{"prompt": f"p {n // 4}", "text": f"t {n}", "label": str(n % 2)} for n in range(200)],
        {"reads": "both", "prompt_column": "prompt"},
    ),
}


@pytest.mark.parametrize("name", SHARING)
def test_rows_that_share_what_is_read_or_asked_stay_together(tmp_path: Path, name: str) -> None:
    rows, changes = SHARING[name]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    found = open_examples(config(path, dev=0.3, test=0.3, **changes), 0)
    read = [
        {text for one in part for reading in one.readings for text in reading if text}
        for part in (found.train, *found.held_out.values())
    ]
    assert all(read)
    assert len(set.union(*read)) == sum(map(len, read))
    assert found.counts["groups"] == 50
    turned = write_rows(tmp_path / "turned.jsonl", rows[::-1])
    if found.kind == "preference":
        again = open_examples(config(turned, dev=0.3, test=0.3, **changes), 0)
        assert {one.readings for one in again.train} == {one.readings for one in found.train}


def test_rows_that_others_tie_together_stay_together(tmp_path: Path) -> None:
    chain = [{"prompt": f"p{n}", "chosen": f"a {n}", "rejected": f"a {n + 1}"} for n in range(40)]
    rows = [*chain, *({"prompt": f"q{n}", "chosen": f"b {n}", "rejected": f"c {n}"} for n in range(40))]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    found = open_examples(config(path, dev=0.4, test=0, reads="completion"), 0)
    ours = [
        sum(str(one.readings[0][0]).startswith("a") for one in part) for part in (found.train, *found.held_out.values())
    ]
    assert sorted(ours) == [0, 40]
    assert found.counts["groups"] == 41
    with pytest.raises(DataError, match="no row is left for dev, of 1 groups"):
        open_examples(config(write_rows(path, chain), dev=0.01, test=0, reads="completion"), 0)


def test_repeats_and_contradictions_are_counted(tmp_path: Path) -> None:
    one, other = labelled(2)
    rows = [one, other, {**one, "text": f"  {one['text']} "}, {**one, "label": "calm"}, *labelled(30)[2:]]
    found = open_examples(config(write_rows(tmp_path / "rows.jsonl", rows)), 0)
    assert found.counts["dropped/repeated"] == 1
    assert found.counts["dropped/contradicting"] == 1


def test_a_pair_turned_round_contradicts(tmp_path: Path) -> None:
    pair = preferred(1)[0]
    turned = {**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]}
    rows = [pair, dict(pair), turned, *preferred(60)[1:]]
    found = open_examples(config(write_rows(tmp_path / "rows.jsonl", rows)), 0)
    assert (found.counts["dropped/repeated"], found.counts["dropped/contradicting"]) == (1, 1)


def test_margins_are_read(tmp_path: Path) -> None:
    rows = [{**row, "better": 0.5} for row in preferred(10)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    found = open_examples(config(path, margin_column="better", dev=0, test=0), 0)
    assert {one.margin for one in found.train} == {0.5}
    assert found.train[0].readings == (("say red 0", " red!"), ("say red 0", " red?"))


@pytest.mark.parametrize(
    ("rows", "changes", "error", "words"),
    [
        ([{"a": "b"}], {}, DataError, "fit no format"),
        ([{"text": "x", "label": "a"}], {}, DataError, 'every row has the label "a"'),
        ([{"text": "x", "label": "a"}, {"text": 3, "label": "b"}], {}, DataError, "expected text, found number 3"),
        ([{"text": "x", "label": "a"}, {"text": "y", "label": None}], {}, DataError, 'line 2, column "label"'),
        (labelled(4), {"format": "labels", "text_column": "txt"}, DataError, 'Did you mean "text"'),
        ([{"prompt": "p", "chosen": "a", "rejected": "a"}], {}, DataError, "are the same"),
        (preferred(4), {"margin_column": "prompt"}, DataError, "expected a number of 0 or more"),
        ([row | {"m": "nan"} for row in preferred(4)], {"margin_column": "m"}, DataError, "expected a number of 0 or"),
        ([row | {"m": 1e999} for row in preferred(4)], {"margin_column": "m"}, DataError, "expected a number of 0 or"),
        ([row | {"m": -1} for row in preferred(4)], {"margin_column": "m"}, DataError, "expected a number of 0 or"),
        (labelled(4), {"reads": "both"}, ConfigError, "data.prompt_column"),
        (labelled(4), {"margin_column": "m"}, ConfigError, "does nothing with labels rows"),
        (preferred(4), {"text_column": "prompt"}, ConfigError, "does nothing with preference rows"),
        (preferred(4), {"reads": "prompt"}, ConfigError, "have the same prompt"),
    ],
)
def test_rows_that_cannot_be_learned_are_named(
    tmp_path: Path, rows: list[dict[str, Any]], changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        open_examples(config(write_rows(tmp_path / "rows.jsonl", rows), **changes), 0)


def test_held_out_files_must_not_repeat_what_is_learned(tmp_path: Path) -> None:
    rows = labelled(20)
    train = write_rows(tmp_path / "train.jsonl", rows[:15])
    good, bad = write_rows(tmp_path / "good.jsonl", rows[15:]), write_rows(tmp_path / "bad.jsonl", rows[10:])
    found = open_examples(config(train, dev=str(good), test=0), 0)
    assert (len(found.train), len(found.held_out["dev"])) == (15, 5)
    with pytest.raises(OverlapError, match="stands in train too"):
        open_examples(config(train, dev=str(bad), test=0), 0)
    new = write_rows(tmp_path / "new.jsonl", [{"text": "x", "label": "louder"}])
    with pytest.raises(DataError, match='no training row has the label "louder"'):
        open_examples(config(train, dev=str(new), test=0), 0)


def test_a_held_out_file_must_not_repeat_a_text_under_another_prompt(tmp_path: Path) -> None:
    for name, prompt in (("train", "p"), ("dev", "q")):
        rows = [{"prompt": f"{prompt}{n}", "completion": f"c{n}", "label": bool(n % 2)} for n in range(10)]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    files = {"dev": str(tmp_path / "dev.jsonl"), "test": 0}
    with pytest.raises(OverlapError, match="stands in train too"):
        open_examples(config(tmp_path / "train.jsonl", reads="completion", **files), 0)
    assert open_examples(config(tmp_path / "train.jsonl", reads="both", **files), 0).counts["dev/rows"] == 10
    write_rows(
        tmp_path / "train.jsonl", [{"prompt": f"p{n}", "chosen": f"A{n}", "rejected": f"B{n}"} for n in range(10)]
    )
    write_rows(tmp_path / "dev.jsonl", [{"prompt": f"q{n}", "chosen": f"B{n}", "rejected": f"A{n}"} for n in range(10)])
    with pytest.raises(OverlapError, match="stands in train too"):
        open_examples(config(tmp_path / "train.jsonl", reads="completion", **files), 0)
