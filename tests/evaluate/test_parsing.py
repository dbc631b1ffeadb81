"""Numbers and choices read off text, by hand and by hypothesis."""

from __future__ import annotations

import time
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwise.evaluate.parsing import Number, last_number, reference_number, settled_choice


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The answer is 42.", 42),
        ("first 7, then 9", 9),
        ("$1,234.50", Fraction(2469, 2)),
        ("1,234,567", 1234567),
        ("1, 2, 3", 3),
        ("12,34", 34),
        ("it costs -$5", -5),
        ("it costs $-5", -5),
        ("£ 12", 12),
        ("x = -3", -3),
        ("10 - 5", 5),
        ("10-5", 5),
        ("(2)-5", 5),
        ("- 5 apples", 5),
        ("−8", -8),
        ("+8", 8),
        ("3/4", Fraction(3, 4)),
        ("-3 / 4 cups", Fraction(-3, 4)),
        ("1e-4", Fraction(1, 10000)),
        (".5", Fraction(1, 2)),
        ("-.5", Fraction(-1, 2)),
        ("48/2=<<48/2=24>>24", 24),
        ("答案是１２３", 123),
        ("共１，２３４元", 1234),
        ("甲３，乙５", 5),
        ("结果为负5", -5),
        ("是负 ￥７．５", Fraction(-15, 2)),
        ("3负2胜", 2),
        ("007", 7),
        ("\\boxed{42}", 42),
    ],
)
def test_last_number(text: str, value: Fraction) -> None:
    assert last_number(text) == Number(Fraction(value))


@pytest.mark.parametrize("text", ["", "none", "½", "负", "-", "1/0", "9" * 5000])
def test_no_number(text: str) -> None:
    assert last_number(text) is None


@given(
    st.integers(-(10**12), 10**12),
    st.sampled_from(["", "about ", "是", "= ", "\n"]),
    st.sampled_from(["", ".", " km", "元"]),
)
def test_integers_survive_writing(value: int, before: str, after: str) -> None:
    assert last_number(f"{before}{value}{after}") == Number(Fraction(value))
    assert last_number(f"{before}{value:,}{after}") == Number(Fraction(value))
    wide = f"{abs(value):,}".translate({ord(c): ord(c) + 0xFEE0 for c in "0123456789,"})
    assert last_number(f"{before}{'负' if value < 0 else ''}{wide}{after}") == Number(Fraction(value))


@given(st.decimals(-(10**6), 10**6, places=4), st.booleans())
def test_decimals_survive_writing(value: Decimal, currency: bool) -> None:
    sign, size = ("-" if value < 0 else ""), f"{abs(value):,f}"
    assert last_number(f"pay {sign}{'$' if currency else ''}{size}") == Number(Fraction(value))


@given(st.integers(-999, 999), st.integers(1, 999))
def test_fractions_survive_writing(top: int, bottom: int) -> None:
    assert last_number(f"{top}/{bottom}") == Number(Fraction(top, bottom))


@given(st.text(alphabet=st.sampled_from("0123456789,.-+/%$ eE负１，#"), max_size=60))
def test_any_text_is_read_or_not(text: str) -> None:
    found = last_number(text)
    assert found is None or isinstance(found.value, Fraction)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("50%", "50", True),
        ("50%", "0.5", True),
        ("50 %", "50%", True),
        ("0.5%", "50%", False),
        ("0.5", "50", False),
        ("2.50", "2.5", True),
        ("0.75", "3/4", True),
        ("0.3333", "1/3", False),
    ],
)
def test_equality(one: str, other: str, equal: bool) -> None:
    first, second = last_number(one), last_number(other)
    assert first is not None
    assert second is not None
    assert first.equals(second) is equal
    assert second.equals(first) is equal


@pytest.mark.parametrize(
    ("reference", "value"),
    [
        ("Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n#### 72", 72),
        ("#### 1 #### -2,000", -2000),
        ("72", 72),
        (72, 72),
        (-0.1, Fraction(-1, 10)),
        (1e-7, Fraction(1, 10**7)),
        (Decimal("2.5"), Fraction(5, 2)),
        (np.int64(3), 3),
    ],
)
def test_reference_number(reference: object, value: Fraction) -> None:
    assert reference_number(reference) == Number(Fraction(value))


@pytest.mark.parametrize("reference", [None, True, float("nan"), float("inf"), "no number", "7 ####"])
def test_reference_without_number(reference: object) -> None:
    assert reference_number(reference) is None


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        (" B. ", "B"),
        ("B. Paris", "B"),
        ("B: because A is wrong", "B"),
        ("**C**", "C"),
        ("The answer is B", "B"),
        ("The answer is (B).", "B"),
        ("Answer: D", "D"),
        ("answer: **D**, not A", "D"),
        ("The answer is A? No, the answer is C.", "C"),
        ("答案是B", "B"),
        ("答案：（Ｂ）", "B"),
        ("所以选C。", "C"),
        ("故选 D", "D"),
        ("A is wrong, B is wrong, so C", "C"),
        ("(A) is wrong, so it must be (B).", "B"),
        ("It is not A but B.", "B"),
        ("so \\boxed{\\text{A}} it is, though B is near", "A"),
        ("I would choose B over A", "B"),
        ("none of these", None),
        ("CAB", None),
        ("E", None),
        ("", None),
    ],
)
def test_settled_choice(text: str, label: str | None) -> None:
    assert settled_choice(text, "ABCD") == label


def test_labels_of_words() -> None:
    assert settled_choice("YES, it does", ["yes", "no"]) == "yes"
    assert settled_choice("I know nothing", ["yes", "no"]) is None
    assert settled_choice("答案是否", ["是", "否"]) == "否"


@pytest.mark.parametrize("filler", ["*", "(", " ", "answer ", "选", "A", "1", "1,", "1/", "-", "is "])
def test_degenerate_text_is_read_fast(filler: str) -> None:
    started = time.perf_counter()
    text = "answer" + filler * 4000
    settled_choice(text, "ABCD")
    last_number(text)
    assert time.perf_counter() - started < 2
