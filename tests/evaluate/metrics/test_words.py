"""Words of texts in several scripts, and labels as they are compared."""

from __future__ import annotations

import pytest

from loopwise.evaluate.metrics.words import mostly_han, mostly_unspaced, plain, words


def test_words() -> None:
    assert words("The cat's 2nd—café, Übung_x!") == ["the", "cat", "s", "2nd", "café", "übung", "x"]
    assert words("床前明月光 and ひらが, 42。") == ["床", "前", "明", "月", "光", "and", "ひ", "ら", "が", "42"]
    assert words(" ,.") == []


def test_marks_belong_to_their_words() -> None:
    assert words("नमस्ते दुनिया") == ["नमस्ते", "दुनिया"]
    assert words("cafe\u0301 q\u0301x") == ["café", "q\u0301x"]
    assert words("か\u3099") == ["が"]
    assert words("我爱 मित्र") == ["我", "爱", "मित्र"]
    assert words("5\ufe0f\u20e3 ok") == ["5", "ok"], "an emoji of a digit"


def test_mostly_han() -> None:
    assert mostly_han("床前明月光。")
    assert mostly_han("用GPT生成文本")
    assert not mostly_han("He said 你好 to me")
    assert not mostly_han("")
    assert not mostly_han("ひらがな")


def test_mostly_unspaced() -> None:
    assert mostly_unspaced("今日の天気はとても良い。")
    assert not mostly_unspaced("「こんにちは」 means hello")
    assert not mostly_unspaced("")


def test_labels_are_compared_but_for_case_spaces_and_punctuation() -> None:
    assert plain(" Card_Arrival.\n") == plain("card-arrival") == plain("ＣＡＲＤ  arrival") == "card arrival"
    assert plain("积极。") == "积极"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("-1", "1"),
        ("-.5", ".5"),
        ("1.5", "1 5"),
        ("A+", "A"),
        ("A-", "A"),
        ("C++", "C"),
        ("C#", "C"),
        ("<=50K", ">50K"),
        ("मित्र", "म त र"),
    ],
)
def test_labels_that_differ_do_not_read_alike(one: str, other: str) -> None:
    assert plain(one) != plain(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("- no", "no"),
        ("yes --", "yes"),
        ("card-1", "card_1"),
        ("\u22121.", "-1"),
        ("+1", "1"),
        ("**A-**", "a-"),
        ("<1>", "1"),
        ("No.5", "no 5"),
        ("5\ufe0f\u20e3", "5"),
        ("cafe\u0301", "café"),
    ],
)
def test_labels_that_are_the_same_read_alike(one: str, other: str) -> None:
    assert plain(one) == plain(other)
