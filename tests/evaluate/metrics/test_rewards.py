"""The metrics as rules, and their figures of a whole set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from loopwise.errors import ConfigError
from loopwise.evaluate.contract import CallError
from loopwise.evaluate.metrics.reports import corpus_reports
from loopwise.evaluate.parts import LocalReward, RewardPart
from loopwise.evaluate.references import MetricReward
from loopwise.evaluate.rewards import RewardSum
from loopwise.evaluate.rules import RULES
from loopwise.runtime import run_async
from loopwise.types import LOST


def judge(
    rule: str, completions: list[Any], options: dict[str, Any] | None = None, **columns: list[Any]
) -> list[float | None]:
    return RULES[rule].make(options or {})(completions=completions, **columns)


def report(rule: str, completions: list[str], options: dict[str, Any] | None = None, **columns: list[Any]) -> Any:
    reward = RULES[rule].make(options or {})
    assert isinstance(reward, MetricReward)
    assert reward.__name__ == rule
    return reward.report(completions, columns)


@pytest.mark.parametrize("rule", ["bleu", "chrf", "ter", "rouge", "token_f1"])
def test_likeness_to_a_reference(rule: str) -> None:
    text, other = "the cat sat on the mat", "a dog barked loudly at a stranger in vain"
    answers = [text, text, [other, text], None, []]
    found = judge(rule, [text, "", text, text, text], answer=answers)
    assert found == [pytest.approx(1.0), 0.0, pytest.approx(1.0), None, None]
    [far] = judge(rule, [other], answer=[text])
    assert far is not None
    assert 0 <= far < 0.3
    chat = [[{"role": "assistant", "content": text}]]
    assert judge(rule, chat, {"column": "gold"}, gold=[text]) == [pytest.approx(1.0)]
    with pytest.raises(CallError, match='needs column "answer"; the columns it may see are: gold'):
        judge(rule, [text], gold=[text])
    figures = report(rule, [text, text], answer=[text, None])
    assert figures
    assert report(rule, [text], answer=[None]) is None


def test_a_reference_may_be_the_rest_of_a_conversation() -> None:
    assert judge("token_f1", ["yes"], answer=[[{"role": "assistant", "content": "yes"}]]) == [1.0]


def test_reports_against_a_reference() -> None:
    texts, answers = ["the cat sat on the mat", "no"], ["the cat sat on the mat", "no"]
    assert report("bleu", texts, answer=answers)["bleu"] == pytest.approx(100)
    assert report("chrf", texts, answer=answers)["chrf"] == pytest.approx(100)
    assert report("ter", texts, answer=answers)["ter"] == 0
    assert report("rouge", texts, answer=answers) == {"rouge1": 1.0, "rouge2": 0.5, "rougeL": 1.0}
    assert report("token_f1", ["a cat", "x"], answer=["cat", "y z x"]) == {"f1": 0.75, "exact_match": 0.5}


def test_ter_falls_to_0_and_no_further() -> None:
    assert judge("ter", ["x " * 50], answer=["a b"]) == [0.0]


def test_length() -> None:
    ids = [[1] * count for count in (2, 4, 6, 8)]
    texts = [""] * 4
    assert judge("length", texts, {"target": 4}, completion_ids=ids) == [0.5, 1.0, 0.5, 0.0]
    assert judge("length", texts, {"least": 4}, completion_ids=ids) == [0.5, 1.0, 1.0, 1.0]
    assert judge("length", texts, {"most": 4}, completion_ids=ids) == [1.0, 1.0, 0.5, 0.0]
    assert judge("length", ["ab", "月光"], {"target": 2, "unit": "characters"}) == [1.0, 1.0]
    assert judge("length", ["ab"], {"target": 2}, completion_ids=[[]]) == [None], "a generator that gives no ids"
    figures = report("length", texts, {"target": 4}, completion_ids=[*ids[:3], []])
    assert figures == {"mean": 4.0, "median": 4.0, "least": 2, "most": 6, "unit": "tokens"}


def test_distinct() -> None:
    assert judge("distinct", ["a a a a", "a b c d", "a", ""]) == [pytest.approx(1 / 3), 1.0, 1.0, 0.0]
    figures = report("distinct", ["a b", "a b"], {"n": 3})
    assert figures == {"distinct_1": 0.5, "distinct_2": 0.5}, "no run of three"
    assert report("distinct", ["", "。"]) is None


def test_label() -> None:
    labels = ["card_arrival", "card_linking"]
    texts = ["Card arrival.", "card linking", "no idea", "x"]
    truths = ["card_arrival", "card_arrival", "card_linking", None]
    assert judge("label", texts, {"labels": labels}, label=truths) == [1.0, 0.0, 0.0, None]
    assert judge("label", texts, label=truths) == [1.0, 0.0, 0.0, None]
    assert judge("label", ["7"], {"labels": labels}, label=["7"]) == [None], "the row's label is none of them"
    figures = report("label", texts, {"labels": labels}, label=truths)
    assert figures["accuracy"] == pytest.approx(1 / 3)
    assert figures["confusion"] == [[1, 1, 0], [0, 0, 1]]
    assert report("label", texts, label=truths)["labels"] == ["card arrival", "card linking"]


def test_an_ordinal_label_earns_by_how_near_it_is() -> None:
    scale = {"ordinal": [1, 2, 3], "column": "grade"}
    assert judge("label", ["3", "2", "1", "none"], scale, grade=[3, 3, 3, 3]) == [1.0, 0.75, 0.0, 0.0]
    figures = report("label", ["1", "2", "3"], scale, grade=[1, 2, 3])
    assert figures["kappa"] == pytest.approx(1.0)


def test_a_scale_may_go_below_zero() -> None:
    scale = {"ordinal": [-1, 0, 1]}
    assert judge("label", ["-1", "0", "1"], scale, label=[-1, -1, -1]) == [1.0, 0.75, 0.0]
    assert report("label", ["-1", "-1"], label=[-1, 1])["confusion"] == [[1, 0, 0], [1, 0, 0]]


def test_choice_has_the_figures_of_a_classification() -> None:
    figures = report("choice", ["The answer is B", "A", "?"], {"labels": "AB"}, answer=["B", "B", "A"])
    assert figures["accuracy"] == pytest.approx(1 / 3)
    assert figures["confusion"] == [[0, 0, 1], [1, 1, 0]]


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("bleu", {"tokenize": "words"}, 'option "tokenize" must be one of auto, 13a'),
        ("ter", {"tokenize": "13a"}, 'option "tokenize" must be one of auto, tercom, zh'),
        ("chrf", {"column": 3}, 'rule "chrf": option "column" must be text, found 3'),
        ("rouge", {"kind": "rouge3"}, 'option "kind" must be one of rouge1'),
        ("length", {}, 'give "target", or "least" or "most"'),
        ("length", {"target": 4, "most": 5}, 'give "target", or "least" or "most"'),
        ("length", {"least": 5, "most": 4}, "no length is from 5 to 4"),
        ("length", {"target": 0}, "no length is from 0 to 0"),
        ("length", {"target": True}, "must be a whole number, found True"),
        ("length", {"target": 4, "unit": "words"}, "must be one of tokens, characters"),
        ("distinct", {"n": 0}, "must be from 1 to 8, found 0"),
        ("label", {"labels": "AB"}, "must be a list of two labels or more"),
        ("label", {"labels": ["a", "A."]}, "empty or read alike"),
        ("label", {"labels": ["a", "b"], "ordinal": ["a", "b"]}, "Leave one out"),
    ],
)
def test_bad_options(rule: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RULES[rule].make(options)


class TestCorpusReports:
    """By the name of the part, in the columns that it may see."""

    @staticmethod
    def part(rule: str, *, hidden: tuple[str, ...] = (), **options: Any) -> RewardPart:
        call = LocalReward(RULES[rule].make(options))
        return RewardPart(rule, 1.0, RULES[rule].uses_reference, call, frozenset(hidden))

    def test_each_reward_with_figures_by_its_name(self, rows: Callable[..., Any]) -> None:
        problems, samples = rows(["a cat sat here", "B"], answer=["a cat sat here", "A"])
        feedback = RewardSum([self.part("bleu"), self.part("exact_match"), self.part("length", least=1)])
        found = corpus_reports(feedback, problems, samples)
        assert found.keys() == {"bleu", "length"}, "the mean of exact_match says all there is"
        assert found["length"]["mean"] == 2.0
        assert "signature" in found["bleu"]
        assert corpus_reports(feedback, problems, []) == {}

    def test_samples_are_judged_as_in_the_loop(self, rows: Callable[..., Any]) -> None:
        chat = ({"role": "user", "content": "?"},)
        problems, samples = rows(["yes", "no"], prompts=[chat, chat], label=["yes", "yes"])
        feedback = RewardSum([self.part("label")])
        assert corpus_reports(feedback, problems, samples)["label"]["accuracy"] == 0.5
        assert run_async(feedback.judge(problems, samples)).rewards[:, 0].tolist() == [1.0, 0.0]

    def test_what_could_not_be_drawn_is_no_empty_answer(self, rows: Callable[..., Any]) -> None:
        problems, samples = rows(["yes", ""], answer=["yes", "yes"])
        samples[1] = replace(samples[1], finish_reason=LOST)
        feedback = RewardSum([self.part("length", least=1, unit="characters")])
        assert corpus_reports(feedback, problems, samples)["length"]["mean"] == 3.0
        assert corpus_reports(feedback, problems, samples[1:]) == {}

    def test_what_could_not_be_judged_has_no_figures(self, rows: Callable[..., Any]) -> None:
        problems, samples = rows(["yes"], answer=[None])
        assert corpus_reports(RewardSum([self.part("bleu")]), problems, samples) == {}
