"""Reference columns: one value, or a list of equally good ones."""

from __future__ import annotations

import time
from typing import Any

import pytest

from loopwise.evaluate.metrics.words import plain, words
from loopwise.evaluate.programs import python_code
from loopwise.evaluate.rules import RULES

RIGHT: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "exact_match": ("4", ["four", "4"], {}),
    "number": ("it is 4", [7, "4"], {}),
    "math": (r"\boxed{4}", ["7", "4"], {}),
    "choice": ("B", ["A", "B"], {}),
    "label": ("yes", ["ja", "yes"], {"column": "answer"}),
    "bleu": ("four of them", ["not one", "four of them"], {}),
    "chrf": ("four of them", ["not one", "four of them"], {}),
    "ter": ("four of them", ["not one", "four of them"], {}),
    "rouge": ("four of them", ["not one", "four of them"], {}),
    "token_f1": ("four of them", ["not one", "four of them"], {}),
}


@pytest.mark.parametrize("name", RIGHT)
def test_of_equally_good_references_the_best_counts(name: str) -> None:
    completion, references, options = RIGHT[name]
    reward = RULES[name].make(options)
    for order in (references, references[::-1], [None, *references]):
        assert reward(completions=[completion], prompts=[""], answer=[order]) == [pytest.approx(1.0)]
    [wrong] = reward(completions=[completion], prompts=[""], answer=[references[:1]])
    assert wrong is None or wrong < 1.0
    assert reward(completions=[completion], prompts=[""], answer=[[]]) == [None]


@pytest.mark.parametrize("name", ["choice", "label"])
def test_a_report_counts_the_reference_that_was_given(name: str) -> None:
    completion, references, options = RIGHT[name]
    figures = RULES[name].make(options).report([completion, references[0]], {"answer": [references, references]})  # type: ignore[attr-defined]
    assert figures["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("one", "other"), [("-1", "1"), ("A+", "A"), ("A-", "A"), ("C++", "C"), ("C#", "C"), ("1.5", "1 5")]
)
def test_labels_that_differ_do_not_read_alike(one: str, other: str) -> None:
    assert plain(one) != plain(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("Yes.", "yes"), ("card_arrival", "Card-arrival"), ("- no", "no"), ("\u22121", "-1"), ("+1", "1")],
)
def test_labels_that_are_the_same_read_alike(one: str, other: str) -> None:
    assert plain(one) == plain(other)


def test_marks_belong_to_their_words() -> None:
    assert words("नमस्ते दुनिया") == ["नमस्ते", "दुनिया"]
    assert words("cafe\u0301") == words("café") == ["café"]
    assert words("我爱 मित्र") == ["我", "爱", "मित्र"]


def test_a_fence_without_end_is_found_in_no_time() -> None:
    began = time.process_time()
    code = " " * 400_000
    assert python_code(f"```python\n{code}") == code
    assert time.process_time() - began < 2


def test_fences() -> None:
    assert python_code("text\n```\nplain\n```\n ```python x\nfirst\n```\n```py\nlast\n``` end") == "last\n"
    assert python_code("```\ncut") == "cut"
    assert python_code("no fence") == "no fence"
