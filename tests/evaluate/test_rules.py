"""Built-in rewards and their options."""

from __future__ import annotations

from typing import Any, ClassVar

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


def test_which_rules_use_no_reference_and_which_can_hang() -> None:
    assert {name for name, rule in RULES.items() if not rule.uses_reference} == {"regex", "length", "distinct"}
    assert {name for name, rule in RULES.items() if rule.can_hang} == {"regex", "math", "reasoning_gym", "noisy"}


class TestNoisy:
    COUNT = 4000
    PROMPTS: ClassVar[list[str]] = [f"{number}+0=" for number in range(COUNT)]
    ANSWERS: ClassVar[list[str]] = [str(number) for number in range(COUNT)]

    def verdicts(self, **options: Any) -> list[float | None]:
        options = {"rule": "exact_match"} | options
        return judge("noisy", self.ANSWERS, options, prompts=self.PROMPTS, answer=self.ANSWERS)

    @pytest.mark.parametrize("wrong", [0.0, 0.2, 1])
    def test_a_share_of_verdicts_is_wrong(self, wrong: float) -> None:
        assert sum(verdict == 0.0 for verdict in self.verdicts(wrong=wrong)) / self.COUNT == pytest.approx(
            wrong, abs=0.02
        )

    def test_wrong_answers_pass_as_often(self) -> None:
        verdicts = judge(
            "noisy", ["x"] * self.COUNT, {"rule": "exact_match"}, prompts=self.PROMPTS, answer=self.ANSWERS
        )
        assert sum(verdict == 1.0 for verdict in verdicts) / self.COUNT == pytest.approx(0.2, abs=0.02)

    def test_judging_again_says_the_same(self) -> None:
        verdicts = self.verdicts()
        assert verdicts == self.verdicts() != self.verdicts(seed=1)
        alone = judge("noisy", ["7"], {"rule": "exact_match"}, prompts=["7+0="], answer=["7"])
        assert alone == [verdicts[7]], "the rest of the batch does not matter"

    def test_only_verdicts_of_0_and_1_are_swapped(self) -> None:
        options = {"rule": "number", "wrong": 1, "options": {"column": "truth"}}
        assert judge("noisy", ["3", "3"], options, prompts=["a", "b"], truth=["3", "none"]) == [0.0, None]
        options = {"rule": "regex", "wrong": 1, "options": {"pattern": "a"}}
        assert judge("noisy", ["a", "b"], options, prompts=["a", "b"], answer=["1", "2"]) == [0.0, 1.0]


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
        ("noisy", {}, 'option "rule" is missing'),
        ("noisy", {"rule": "exact"}, 'no other rule "exact". Did you mean "exact_match"'),
        ("noisy", {"rule": "noisy"}, 'no other rule "noisy"'),
        ("noisy", {"rule": "regex"}, 'rule "regex": option "pattern" is missing'),
        ("noisy", {"rule": "number", "wrong": 2}, 'option "wrong" must be a number from 0 to 1, found 2'),
        ("noisy", {"rule": "number", "seed": "x"}, 'option "seed" must be a whole number'),
        ("math", {"column": 3}, "must be text, found 3"),
        ("reasoning_gym", {"colum": "entry"}, 'unknown option "colum"'),
    ],
)
def test_bad_options(rule: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        RULES[rule].make(options)
