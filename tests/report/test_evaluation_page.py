"""An evaluation's page, figure and sentences from findings written by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from loopwise.evaluate.perplexity import Perplexity
from loopwise.report import evaluation_words as words
from loopwise.report.evaluation_figure import WIDTH, evaluation_figure
from loopwise.report.evaluation_markdown import code, evaluation_markdown
from loopwise.stages.comparison import differences, judge
from loopwise.stages.texts import Reading, text_differences, text_result


def figure(value: float, low: float, high: float) -> dict[str, Any]:
    return {"value": value, "ci95": [low, high], "n": 40}


def found(**more: Any) -> dict[str, Any]:
    """What an evaluation without a baseline finds."""
    figures = {"pass@1": figure(0.5, 0.4, 0.6), "pass@2": figure(0.75, 0.6, 0.85), "reward": figure(0.5, 0.4, 0.6)}
    result = {"name": "addition", "kind": "task", "problems": 40, "figures": figures, **more}
    return {
        "model": "run",
        "policy_id": "abc",
        "seed": 0,
        "samples": 2,
        "sampling": {"temperature": 1.0, "max_tokens": None},
        "seconds": 3.0,
        "results": [result],
    }


def reading(nats: list[float], tokens: list[list[int]], window: int = 4) -> Reading:
    return Reading(Perplexity(sum(nats), 8, 10, 1, window, np.array(nats)), tokens)


def test_a_reward_that_is_the_share_of_passes_is_not_told_twice() -> None:
    page = evaluation_markdown(found())
    assert "| <code>addition</code> | pass@1 | 50.0% | 40.0% to 60.0% | 40 |" in page
    assert "|  | pass@2 | 75.0% | 60.0% to 85.0% | 40 |" in page
    assert "mean reward" not in page


def beside(ours: list[float], theirs: list[float], name: str) -> dict[str, Any]:
    """What an evaluation of one figure beside a baseline finds."""
    scores = [{name: np.array(own)} for own in (ours, theirs)]
    sides = [{name: figure(float(own[name].mean()), 0.0, 1.0)} for own in scores]
    one = found()
    gaps = differences(*scores)
    one["results"] = [one["results"][0] | {"figures": sides[0], "baseline": {"figures": sides[1]}, "differences": gaps}]
    return one | {
        "baseline": {"model": "base", "policy_id": "def"},
        "comparison": judge(one["results"], same=False),
        "training": [],
    }


def test_a_difference_in_a_table_is_a_number() -> None:
    page = evaluation_markdown(beside([-1.0, -2.0, -2.5], [-3.0, -3.5, -5.0], "likelihood"))
    assert "| +2.000 | " in page
    assert "log-probability a token +" not in page.partition("## Figures")[2]
    assert "comparisons" not in page
    assert "said only where its test agrees (5%)" in page


def test_one_problem_shows_nothing() -> None:
    [result] = beside([1.0], [0.0], "accuracy")["results"]
    assert result["sentence"] == "addition: +100.0 points, of a single problem, which shows nothing"


def test_what_does_not_vary_has_no_interval_without_width() -> None:
    one = beside([3.0] * 9, [1.628] * 9, "reward")
    assert one["results"][0]["sentence"] == "better on addition: mean reward +1.372 on each of 9 problems"
    assert "| +1.372 | all alike |" in evaluation_markdown(one)


def test_a_reward_of_several_is_named_as_it_is() -> None:
    result = {"figures": {"reward": figure(0.5, 0.4, 0.6), "reward/a|b": figure(1.0, 1.0, 1.0)}}
    page = evaluation_markdown(found(**result))
    assert "| mean reward of <code>a&#124;b</code> | 1.000 | all alike |" in page
    assert "reward" in dict(words.shown_figures(found(**result)["results"][0]))


def test_figures_of_all_answers_and_their_confusion() -> None:
    corpus = {"label": {"macro_f1": 0.25, "labels": ["a|", "b"], "confusion": [[3, 1, 0], [2, 0, 2]]}}
    page = evaluation_markdown(found(corpus=corpus))
    assert "| <code>macro_f1</code> | 0.250 |" in page
    assert "| truth, answered | <code>a&#124;</code> | <code>b</code> | none of them |" in page
    assert "| <code>b</code> | 2 | 0 | 2 |" in page
    assert "addition, label over all answers: macro_f1 0.250" in list(words.told(found(corpus=corpus)))


def test_code_holds_any_text_on_one_line() -> None:
    assert code('a\n|`<b>"\u202e') == "<code>a\\n&#124;&#96;&lt;b&gt;&quot;\ufffd</code>"


def test_a_figure_has_a_line_for_each_k_and_is_pure() -> None:
    drawing = evaluation_figure(found())
    assert drawing is not None
    for text in (f'width="{WIDTH}pt"', "addition pass@1", "addition pass@2", "75.0%", "Share of problems that pass"):
        assert text in drawing
    assert drawing == evaluation_figure(found())
    assert evaluation_figure({**found(), "results": []}) is None


@pytest.mark.parametrize(
    ("theirs", "why"),
    [(reading([5.0, 4.0], [[2, 1]]), "other tokens"), (reading([5.0, 4.0], [[1, 2]], 8), "other windows")],
)
def test_texts_read_otherwise_are_compared_without_an_interval(theirs: Reading, why: str) -> None:
    ours = reading([3.0, 2.5], [[1, 2]])
    result = text_result("t.txt", ours) | {"baseline": {"figures": theirs.figures()}}
    result["differences"] = text_differences(ours, theirs)
    judge([result], same=False)
    assert (result["measure"], result["verdict"], result["differences"]["bits_per_byte"]["ci95"]) == (
        "bits_per_byte",
        "unknown",
        None,
    )
    assert "so there is no interval" in result["sentence"]


def test_a_text_is_compared_window_by_window() -> None:
    ours, theirs = reading([3.0, 2.5, 2.0], [[1]]), reading([5.0, 4.0, 4.5], [[1]])
    result = text_result("t.txt", ours) | {"baseline": {"figures": theirs.figures()}}
    result["differences"] = text_differences(ours, theirs)
    gap = result["differences"]["nats_per_token"]
    assert gap["value"] == pytest.approx((7.5 - 13.5) / 8)
    assert gap["n"] == 3
    assert gap["ci95"][1] < 0
    judge([result], same=False)
    assert result["sentence"].startswith("better on t.txt: perplexity 2.55 against 5.41, −")
    low, high = result["figures"]["nats_per_token"]["ci95"]
    assert low < 7.5 / 8 < high
