"""Built-in rewards and their options."""

from __future__ import annotations

from typing import Any

import pytest

from loopwise.errors import ConfigError
from loopwise.evaluate.contract import CallError
from loopwise.evaluate.rules import RULES


def judge(
    rule: str, completions: list[Any], options: dict[str, Any] | None = None, **columns: list[Any]
) -> list[float | None]:
    return RULES[rule].make(options or {})(completions=completions, **columns)


def test_exact_match() -> None:
    assert judge("exact_match", [" 7221\n", "7221 ", "722", "x"], answer=["7221", 7221, "7221", None]) == [
        1,
        1,
        0,
        None,
    ]
    assert judge("exact_match", [" a", "A", "a"], {"strip": False}, answer=["a", "a", "a"]) == [0, 0, 1]
    assert judge("exact_match", ["Paris"], {"casefold": True, "column": "city"}, city=["PARIS"]) == [1]


def test_number() -> None:
    answers = ["so\n#### 1,200", "50%", "none", None]
    assert judge("number", ["It is $1,200.00.", "half: 0.5", "3", "3"], answer=answers) == [1, 1, None, None]
    assert judge("number", ["no idea", "-1200"], answer=answers[:1] * 2) == [0, 0]


def test_choice() -> None:
    assert judge("choice", ["The answer is B", "(A)", "?", "B"], answer=["B", "(B)", "b", "seven"]) == [1, 0, 0, None]
    assert judge("choice", ["Yes.", "no"], {"labels": ["yes", "no"]}, answer=["yes", "yes"]) == [1, 0]


def test_regex() -> None:
    assert judge("regex", ["a1", "b"], {"pattern": r"\d"}) == [1, 0]
    assert judge("regex", ["a1", "1"], {"pattern": r"\d", "fullmatch": True}) == [0, 1]


def test_chat_completions() -> None:
    assert judge("exact_match", [[{"role": "assistant", "content": "4"}]], answer=["4"]) == [1]


def test_only_regex_uses_no_reference() -> None:
    assert {name for name, rule in RULES.items() if not rule.uses_reference} == {"regex"}
    assert {name for name, rule in RULES.items() if rule.can_hang} == {"regex"}


def test_missing_column_names_those_there_are() -> None:
    with pytest.raises(CallError, match='needs column "answer"; the columns it may see are: level, solution'):
        judge("number", ["1"], prompts=["p"], solution=["1"], level=[2])


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("number", {"colum": "x"}, 'unknown option "colum". Did you mean "column"'),
        ("regex", {}, 'option "pattern" is missing'),
        ("regex", {"pattern": "("}, "no regular expression"),
        ("regex", {"pattern": 3}, "must be text, found 3"),
        ("exact_match", {"strip": "yes"}, "must be true or false, found 'yes'"),
        ("choice", {"labels": []}, "must be letters or a list of texts"),
        ("choice", {"labels": 4}, "must be letters or a list of texts"),
        ("choice", {"labels": ["a", 1]}, "must be letters or a list of texts"),
    ],
)
def test_bad_options(rule: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        RULES[rule].make(options)
