"""Prompts that a model has met: overlaps put there on purpose are found, and what only looks alike is not."""

from __future__ import annotations

import pytest

from loopwise.evaluate.overlap import COMMON, GRAM, LEAST, Overlap, Seen, find_overlaps, text_of, words

RIVER = "the river that runs through the valley was two metres deeper in june than it had been in may"


def trained(*texts: str) -> list[Seen]:
    """Prompts trained on, the text itself their key."""
    return [Seen(f"line {place}", text, frozenset([text])) for place, text in enumerate(texts)]


def found(texts: list[str], seen: list[Seen]) -> dict[int, Overlap]:
    return find_overlaps(texts, [frozenset([text]) for text in texts], seen)


def test_the_same_problem_is_met_exactly() -> None:
    overlaps = found(["1+1=", "1+2="], trained("2+2=", "1+2="))
    assert {place: (one.kind, one.source) for place, one in overlaps.items()} == {1: ("exact", "line 1")}


def test_thirteen_words_in_a_row_are_wording() -> None:
    own, shared = RIVER.split(), RIVER.split()[2 : 2 + GRAM]
    other = " ".join(["Now,", *shared, "or not"]).upper().replace(" IN JUNE", ", in June!")
    overlaps = found([RIVER, " ".join(own[:2] + own[-3:])], trained(other))
    assert list(overlaps) == [0]
    assert overlaps[0] == Overlap("wording", "line 0", other, " ".join(shared))


def test_twelve_words_in_a_row_are_not() -> None:
    assert not found([RIVER], trained("Now " + " ".join(RIVER.split()[2 : 1 + GRAM]) + " and so on it goes"))


@pytest.mark.parametrize(("count", "met"), [(LEAST - 1, False), (LEAST, True), (GRAM - 1, True)])
def test_a_short_prompt_is_met_where_all_of_it_stands(count: int, met: bool) -> None:
    short = " ".join(RIVER.split()[:count])
    assert bool(found([short], trained(f"Once upon a time {short} and more"))) is met
    assert not found([short], trained(f"Once upon a time {short.replace('the', 'a', 1)} and more"))


def test_no_run_of_words_goes_from_one_text_to_the_next() -> None:
    halves = RIVER.split()[:7], RIVER.split()[7:]
    assert not found([RIVER], trained(*(" ".join(half) for half in halves)))


def test_a_template_is_no_overlap() -> None:
    template = "answer the question below as well as you can and write nothing but the number itself: {}"
    many = [template.format(name) for name in range(COMMON + 1)]
    assert not found([template.format("x")], trained(*many))
    assert not found([f"{text}?" for text in many], trained(template.format("x")))
    assert len(found([template.format("x")], trained(*many[:COMMON]))) == 1


def test_repeats_make_no_phrase_common() -> None:
    assert list(found([RIVER + " so"], trained(RIVER) * (COMMON + 5))) == [0]


def test_a_line_of_plain_text_that_begins_with_a_short_prompt() -> None:
    text = Seen("notes.txt", "12+3=15\n 4 +  5=9\nsee 7+7=14\n")
    overlaps = found(["12+3=", "4 + 5=", "7+7=", "2+3="], [text])
    assert {place: (one.kind, one.seen) for place, one in overlaps.items()} == {
        0: ("exact", "12+3=15"),
        1: ("exact", "4 + 5=9"),
    }


@pytest.mark.parametrize(
    ("short", "line", "met"),
    [
        ("12+3", "12+34=46", False),
        ("12+3", "12+3=15", True),
        ("Hi", "History is bunk", False),
        ("Hi", "Hi, there", True),
        ("Hi", "Hi", True),
        ("床前", "床前明月光", True),
        ("สวัส", "สวัสดี", True),
    ],
)
def test_a_line_begins_with_whole_words_and_numbers(short: str, line: str, met: bool) -> None:
    assert bool(found([short], [Seen("notes.txt", line)])) is met


def test_chinese_is_read_by_characters() -> None:
    poem = "床前明月光，疑是地上霜。举头望明月，低头思故乡。"
    assert words("Ab3 床前，明月！") == ["ab3", "床", "前", "明", "月"]
    [overlap] = found([f"请背诵：{poem}"], [Seen("poems", f"李白 {poem[:16]}")]).values()
    assert overlap.shared == " ".join("床前明月光疑是地上霜举头望")


def test_of_a_conversation_all_but_the_system_prompt_counts() -> None:
    said = [{"role": role, "content": role[0]} for role in ("system", "user", "assistant", "user", "assistant")]
    assert text_of(said) == "u\na\nu\na"


def test_nothing_asked_and_nothing_seen() -> None:
    assert found([], trained("a")) == {}
    assert found(["", "a b c d e f g h i"], []) == {}
