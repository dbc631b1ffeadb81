"""Probes of bias: what a row file may say, what it may not, and what an answer's difference is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from loopwise.errors import LoopwiseError
from loopwise.evaluate.bias import Probe, leaning, open_probes, same_answer
from loopwise.evaluate.bias_templates import templates


def rows(folder: Path, *entries: object) -> str:
    path = folder / "probes.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return str(path)


def test_every_two_words_of_a_template_make_a_probe(tmp_path: Path) -> None:
    path = rows(tmp_path, {"template": "A {word}!", "words": ["a", "b", "c"], "completions": ["x", "y"], "kind": 1})
    probes = open_probes(path)
    assert [probe.words for probe in probes] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert probes[1] == Probe(("A a!", "A c!"), ("a", "c"), ("x", "y"), {"kind": 1})
    (tmp_path / "probes.csv").write_text('template,words,completion\n{word}=,"1, 2",3\n')
    assert open_probes(str(tmp_path / "probes.csv")) == [Probe(("1=", "2="), ("1", "2"), ("3",))]


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("the man was", "the woman was", ("man", "woman")),
        ("the old man was", "the young lady was", ("old man", "young lady")),
        ("这个男人应聘", "这个女人应聘", ("男", "女")),
        ("so it is", "so it is not", ("so it is", "not")),
        ("the same", "the same", ("the same", "the same")),
    ],
)
def test_what_two_prompts_differ_in(first: str, second: str, words: tuple[str, str], tmp_path: Path) -> None:
    [probe] = open_probes(rows(tmp_path, {"prompt_a": first, "prompt_b": second}))
    assert probe.words == words
    [named] = open_probes(rows(tmp_path, {"prompt_a": first, "prompt_b": second, "word_a": "x", "word_b": "y"}))
    assert named.words == ("x", "y")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"template": "none", "words": ["a", "b"]}, ('line 1, column "template": has no {word}',)),
        ({"template": "{word}", "words": ["a"]}, ('column "words": expected two words or more, found a list',)),
        ({"template": "{word}"}, ('column "words": expected two words or more, found null',)),
        ({"prompt_a": "a"}, ('column "prompt_b": expected text, found null', "prompt_a and prompt_b, or template")),
        ({"prompt_a": "a", "prompt_b": 3}, ('column "prompt_b": expected text, found number 3',)),
        ({"prompt_a": "a", "prompt_b": "b", "completions": ["x"] * 3}, ("expected one text or a list of two",)),
    ],
)
def test_rows_that_are_no_probes(row: dict[str, object], says: tuple[str, ...], tmp_path: Path) -> None:
    path = rows(tmp_path, row)
    with pytest.raises(LoopwiseError) as caught:
        open_probes(path)
    for words in says:
        assert words in str(caught.value)


def test_a_name_that_is_neither_built_in_nor_a_file() -> None:
    with pytest.raises(LoopwiseError, match=r'"builtin-e".*Did you mean "builtin-en"'):
        open_probes("builtin-e")
    with pytest.raises(LoopwiseError, match=r"nowhere.jsonl: no such file"):
        open_probes("nowhere.jsonl")


def test_the_built_in_probes_differ_in_one_word() -> None:
    probes = open_probes("builtin")
    assert len(probes) == len(open_probes("builtin-en")) + len(open_probes("builtin-zh"))
    assert len({probe.prompts for probe in probes}) == len(probes)
    for language in ("en", "zh"):
        found = list(templates(language))
        assert all(template.count("{word}") == 1 and first != second for template, (first, second), _ in found)
        assert all(better != worse for *_, (better, worse) in found)
        assert len({template for template, *_ in found}) >= 16


def test_answers_are_compared_without_the_words_themselves() -> None:
    probe = Probe(("a man is", "a woman is"), ("man", "woman"))
    assert same_answer(probe, "a  Man of honour", "a woman of honour")
    assert not same_answer(probe, "a man of honour", "a woman of means")


def test_leaning_is_how_far_the_first_word_helps_the_better_ending() -> None:
    logps = np.log([[[0.6, 0.1], [0.3, 0.1]]])
    assert leaning(logps) == pytest.approx([np.log(2)])
    assert leaning(logps[:, :, 1:]) == pytest.approx([0.0])


@pytest.mark.parametrize(
    ("words", "first", "second", "same"),
    [
        (("he", "she"), "the bank said no", "the bank said no", True),
        (("man", "woman"), "The manager was angry", "The manager was angry", True),
        (("he", "she"), "then he left", "then she left", True),
        (("rich", "richer"), "the rich win", "the richer win", True),
        (("rich", "poor"), "they grow richer", "they grow poorer", False),
        (("富人", "穷人"), "这富人很好", "这穷人很好", True),
    ],
)
def test_only_whole_words_are_set_aside(words: tuple[str, str], first: str, second: str, same: bool) -> None:
    assert same_answer(Probe(("a", "b"), words), first, second) is same
