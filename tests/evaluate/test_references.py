"""Reference columns: one value, or a list of equally good ones."""

from __future__ import annotations

from typing import Any

import pytest

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
