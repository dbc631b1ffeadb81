"""Labelled rows that are too long, and what the log says of them."""

from __future__ import annotations

import pytest

from loopwise.config.blocks import TokenizerConfig
from loopwise.config.methods import SFTConfig
from loopwise.errors import DataError
from loopwise.models.policy import Policy
from loopwise.models.tokenizers import make_tokenizer
from loopwise.types import Problem
from loopwise.update.rows import Encoding, encode_labelled, labelled_rows

PROBLEMS = [Problem("short", "ab"), Problem("long", "ab"), Problem("full", "x" * 8)]
COMPLETIONS = ["c", "defghijk", "y"]
END = 3


@pytest.fixture(scope="module")
def chat() -> Policy:
    return Policy(tokenizer=make_tokenizer(TokenizerConfig(kind="byte", chat=True)))


def ids(text: str) -> tuple[int, ...]:
    return tuple(byte + 4 for byte in text.encode())


def test_rows_that_fit_are_counted(chat: Policy) -> None:
    rows, encoding = encode_labelled(chat, PROBLEMS[:2], COMPLETIONS[:2], SFTConfig())
    assert [row.token_ids for row in rows] == [(*ids("c"), 1), (*ids("defghijk"), 1)]
    assert encoding == Encoding(
        places=(0, 1), rows=2, dropped=0, truncated=0, without_end_of_text=0, tokens=4 + 11, trained_tokens=2 + 9
    )
    assert rows == labelled_rows(chat, PROBLEMS[:2], COMPLETIONS[:2], None)


def test_a_row_that_is_too_long_is_an_error_by_default(chat: Policy) -> None:
    with pytest.raises(DataError, match=r"labelled row long: 11 tokens, over the limit of 8\. .*update\.too_long"):
        encode_labelled(chat, PROBLEMS, COMPLETIONS, SFTConfig(max_length=8))


def test_rows_that_are_too_long_can_be_dropped(chat: Policy) -> None:
    rows, encoding = encode_labelled(chat, PROBLEMS, COMPLETIONS, SFTConfig(max_length=8, too_long="drop"))
    assert [row.token_ids for row in rows] == [(*ids("c"), 1)]
    assert encoding == Encoding((0,), 1, 2, 0, 0, 4, 2)


def test_rows_that_are_too_long_can_lose_their_end(chat: Policy) -> None:
    rows, encoding = encode_labelled(chat, PROBLEMS, COMPLETIONS, SFTConfig(max_length=8, too_long="truncate"))
    # Of "full", the prompt alone fills the row: nothing would be learned.
    assert [row.token_ids for row in rows] == [(*ids("c"), 1), ids("defghi")]
    assert encoding == Encoding((0, 1), 2, 1, 1, 1, 12, 8)


def test_the_context_limits_rows_too(policy: Policy) -> None:
    config = SFTConfig(max_length=99, too_long="truncate")
    [row], encoding = encode_labelled(policy, [Problem("p", "1" * 40)], ["2" * 20], config)
    assert row.total_tokens == 48
    assert encoding.truncated == 1


def test_completions_can_be_left_open(chat: Policy) -> None:
    rows, encoding = encode_labelled(chat, PROBLEMS[:2], ["c", ""], SFTConfig(end_of_text=False))
    assert [row.token_ids for row in rows] == [ids("c")]
    assert encoding == Encoding((0,), 1, 1, 0, 1, 3, 1)


def test_a_conversation_is_cut_after_what_is_learned(chat: Policy) -> None:
    problem = Problem("p", ({"role": "user", "content": "q"},))
    rest = (
        {"role": "assistant", "content": "yo"},
        {"role": "user", "content": "more"},
        {"role": "assistant", "content": "b"},
    )
    [whole], _ = encode_labelled(chat, [problem], [rest], SFTConfig())
    # Cut inside the user's turn: the first answer is whole, so its row still ends with the end of a turn.
    config = SFTConfig(max_length=len(whole.prompt_ids) + 8, too_long="truncate")
    [row], encoding = encode_labelled(chat, [problem], [rest], config)
    assert (row.token_ids, row.loss_mask) == ((*ids("yo"), END), (1, 1, 1))
    assert (encoding.truncated, encoding.without_end_of_text, encoding.trained_tokens) == (1, 0, 3)


@pytest.mark.parametrize("too_long", ["drop", "truncate"])
def test_a_run_without_any_row_left_is_refused(chat: Policy, too_long: str) -> None:
    with pytest.raises(DataError, match=r"labelled rows: none of 1 is left, .*limit of 8 tokens"):
        encode_labelled(chat, PROBLEMS[2:], COMPLETIONS[2:], SFTConfig(max_length=8, too_long=too_long))


def test_no_rows_are_no_error(chat: Policy) -> None:
    assert encode_labelled(chat, [], [], SFTConfig()) == ((), Encoding((), 0, 0, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("config", "mend"),
    [
        (SFTConfig(max_length=20), "raise update.max_length, or"),
        (SFTConfig(max_length=99), "take a model with a longer context, or"),
    ],
)
def test_the_mend_is_of_what_limits(policy: Policy, config: SFTConfig, mend: str) -> None:
    with pytest.raises(DataError, match=rf"^dev row p: .* over the limit of .*\. Shorten it, {mend} .*too_long: drop"):
        encode_labelled(policy, [Problem("p", "1" * 40)], ["2" * 20], config, "dev")


def test_rows_that_are_all_empty_are_to_be_filled_in(chat: Policy) -> None:
    with pytest.raises(DataError, match=r"because each has an empty completion\. Fill them in\."):
        encode_labelled(chat, PROBLEMS, ["", "", ""], SFTConfig(end_of_text=False))
