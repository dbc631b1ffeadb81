"""Mathematical answers by value."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("math_verify", reason="needs math-verify")

from math_verify.errors import TimeoutException

from loopwise.evaluate import mathematics
from loopwise.evaluate.mathematics import same_value
from loopwise.evaluate.rules import RULES

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k_train.jsonl"


@pytest.mark.parametrize(
    ("completion", "reference"),
    [
        ("1/2", "0.5"),
        (r"The answer is \boxed{\frac{1}{2}}", "1/2"),
        (r"First $\frac{3}{4}$, so in the end $\frac{1}{2}$", 0.5),
        ("I have 3 cats. So the answer is 4.", "4"),
        ("50%", "0.5"),
        ("50%", "50"),
        ("It costs $1,234.50", "1234.5"),
        ("1,234", "1234"),
        ("that makes 72\n#### 72", "72"),
        ("72", "half of 144 is <<144/2=72>>72\n#### 72"),
        ("72 apples", "#### 72"),
        (r"The set is $\{1,2,3\}$", r"\{3,2,1\}"),
        ("$[0,1)$", "[0,1)"),
        ("The final answer is $x=5$", "5"),
        (r"$2\sqrt{3}$", r"\sqrt{12}"),
        ("x^2+2x+1", "(x+1)^2"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"$\begin{pmatrix}1\\2\end{pmatrix}$"),
        ("答案是１２。", 12),
        ("12.0", 12),
    ],
)
def test_equal_values(completion: str, reference: Any) -> None:
    assert same_value(completion, reference) == 1.0


@pytest.mark.parametrize(
    ("completion", "reference"),
    [
        ("73", "#### 72"),
        ("-5", "5"),
        ("0.33", "1/3"),
        (r"\{1,2\}", r"\{1,2,3\}"),
        ("(0,1)", "[0,1]"),
        ("", "5"),
        ("no idea", "5"),
        (r"\boxed{", "5"),
        ("72\n#### 71", "72"),
        ("9**9**9**9", "3"),
    ],
)
def test_other_values(completion: str, reference: Any) -> None:
    assert same_value(completion, reference) == 0.0


@pytest.mark.parametrize("reference", [None, "", "Paris", "no number", "####"])
def test_a_reference_that_cannot_be_read_judges_nothing(reference: Any) -> None:
    assert same_value("5", reference) is None


def test_outside_the_main_thread() -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend([same_value("0.25", "1/4"), same_value("7", "1/4")]))
    thread.start()
    thread.join()
    assert found == [1.0, 0.0]


def test_what_would_take_for_ever_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loopwise.evaluate.mathematics.MOST_SECONDS", 1)
    assert same_value("$9^{9^{9^{9}}}$", "3") == 0.0


def test_a_time_out_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    late = [True]

    def parse(text: str, **_: Any) -> list[Any]:
        if late and late.pop():
            raise TimeoutException
        return [text]

    monkeypatch.setattr(mathematics, "_library", lambda: (parse, lambda a, b, **_: a == b, TimeoutException))
    mathematics._parsed.cache_clear()
    try:
        assert [same_value("731", "731") for _ in range(2)] == [None, 1.0]
    finally:
        mathematics._parsed.cache_clear()


def test_gold_answers_of_gsm8k() -> None:
    if not GSM8K.is_file():
        pytest.skip("needs the GSM8K rows in ../shared/data")
    answers = [json.loads(line)["answer"] for line in GSM8K.read_text(encoding="utf-8").splitlines()[:200]]
    judge = RULES["math"].make({"column": "answer"})
    assert judge(completions=answers, answer=answers) == [1.0] * 200
    finals = [answer.rpartition("#### ")[2] for answer in answers]
    assert judge(completions=[f"The answer is {final}." for final in finals], answer=answers) == [1.0] * 200
    assert judge(completions=[f"{final}1" for final in finals], answer=answers) == [0.0] * 200
