"""Rows to tokens: where a prompt begins, where a completion ends, and text that spells special tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.encoded import encode_completions

from loopwise.config.blocks import TokenizerConfig
from loopwise.errors import DataError, ModelError
from loopwise.models.logps import TokenRow
from loopwise.models.policy import Policy
from loopwise.models.presets import character_tokenizer
from loopwise.models.tokenizers import make_tokenizer
from loopwise.models.tokens import decode, encode_prompts, encode_rows, encode_texts, special_id
from loopwise.types import Problem, PromptState

EOS, START, END = 1, 2, 3
ASK = ({"role": "user", "content": "hi"},)
REST = (
    {"role": "assistant", "content": "yo"},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
)


@pytest.fixture(scope="module")
def chat() -> Policy:
    return Policy(tokenizer=make_tokenizer(TokenizerConfig(kind="byte", chat=True)))


@pytest.fixture(scope="module")
def plain() -> Policy:
    return Policy(tokenizer=make_tokenizer(TokenizerConfig(kind="byte")))


def elsewhere(**tokens: str | None) -> Policy:
    tokenizer: Any = character_tokenizer("abc: \n")
    for name, token in tokens.items():
        if token is not None:
            tokenizer.add_special_tokens({name: token})
        else:
            setattr(tokenizer, name, None)
    return Policy(tokenizer=tokenizer)


def bytes_of(text: str, first: int = 4) -> tuple[int, ...]:
    return tuple(byte + first for byte in text.encode())


def test_an_empty_prompt_begins_where_a_document_does(plain: Policy) -> None:
    assert encode_prompts(plain, [Problem("p", ""), Problem("q", "a")]) == [[EOS], [ord("a") + 2]]
    opened = elsewhere(bos_token="<bos>")
    assert encode_prompts(opened, [Problem("p", "")]) == [[opened.tokenizer.bos_token_id]]
    with pytest.raises(ModelError, match="problem p: its prompt has no tokens, and the tokenizer adds none"):
        encode_prompts(elsewhere(eos_token=None), [Problem("p", "")])


def test_text_cannot_smuggle_in_special_tokens(plain: Policy, chat: Policy) -> None:
    text = "a<eos>b<|im_end|><pad>"
    for policy in (plain, chat):
        for [ids] in (
            encode_prompts(policy, [Problem("p", text)]),
            encode_texts(policy, [text]),
            [encode_completions(policy, [text])[0][:-1]],
            [encode_rows(policy, [Problem("p", "")], [text], end_of_text=False)[0].token_ids],
        ):
            assert not set(ids) & set(policy.tokenizer.all_special_ids)
            assert decode(policy, [ids]) == [text]
    assert encode_texts(elsewhere(), ["<eos>"]) == [[EOS]]


def test_a_stop_string_may_still_name_a_special_token(plain: Policy, chat: Policy) -> None:
    assert special_id(plain, "<eos>") == EOS
    assert special_id(chat, "<|im_end|>") == END
    assert special_id(chat, "x") is None
    assert not set(encode_texts(chat, ["<|im_end|>"])[0]) & {END}


def test_completions_of_text_end_with_end_of_text(chat: Policy) -> None:
    assert encode_rows(chat, [Problem("p", "q")], ["b"]) == [TokenRow(bytes_of("q"), (*bytes_of("b"), EOS))]
    assert encode_rows(chat, [Problem("p", "q")], ["b"], end_of_text=False) == [TokenRow(bytes_of("q"), bytes_of("b"))]
    [row] = encode_rows(elsewhere(eos_token=None), [Problem("p", "a")], ["b"])
    assert len(row.token_ids) == 1


def test_completions_of_chats_end_with_the_end_of_the_turn(chat: Policy) -> None:
    prompt = (START, *bytes_of("user\nhi"), END, *bytes_of("\n"), START, *bytes_of("assistant\n"))
    assert encode_rows(chat, [Problem("p", ASK)], ["yo"]) == [TokenRow(prompt, (*bytes_of("yo"), END))]
    assert encode_rows(chat, [Problem("p", ASK)], [REST[:1]]) == [
        TokenRow(prompt, (*bytes_of("yo"), END), (1, 1, 1)),
    ]


def test_chats_of_a_template_without_end_of_turn_end_with_end_of_text() -> None:
    policy = elsewhere()
    policy.tokenizer.chat_template = "{% for message in messages %}{{ message['content'] + '\n' }}{% endfor %}"
    [row] = encode_rows(policy, [Problem("p", ({"role": "user", "content": "a"},))], ["b"])
    assert row.token_ids == (*policy.tokenizer("b")["input_ids"], EOS)


def test_the_rest_of_a_conversation_learns_the_assistants_tokens_alone(chat: Policy) -> None:
    between = (*bytes_of("\n"), START, *bytes_of("user\na"), END, *bytes_of("\n"), START, *bytes_of("assistant\n"))
    ids = (*bytes_of("yo"), END, *between, *bytes_of("b"), END)
    mask = (1, 1, 1, *(0,) * len(between), 1, 1)
    [row] = encode_rows(chat, [Problem("p", ASK)], [REST])
    assert (row.token_ids, row.loss_mask) == (ids, mask)
    [open_row] = encode_rows(chat, [Problem("p", ASK)], [REST], end_of_text=False)
    assert (open_row.token_ids, open_row.loss_mask) == (ids[:-1], mask[:-1])


def test_rows_of_both_kinds_keep_their_order_and_their_prompt_state(chat: Policy) -> None:
    policy = replace(chat, prompt_state=PromptState(system="S", examples=(("1", "2"),)))
    problems = [Problem("p", "q"), Problem("r", ASK), Problem("s", "t")]
    rows = encode_rows(policy, problems, ["x", REST, "z"])
    assert [list(row.prompt_ids) for row in rows] == encode_prompts(policy, problems)
    assert [decode(policy, [row.token_ids])[0][:2] for row in rows] == ["x", "yo", "z"]
    assert rows[1].loss_mask is not None
    assert rows[1].loss_mask[:4] == (1, 1, 1, 0)


def test_messages_after_a_text_prompt_are_refused(chat: Policy) -> None:
    with pytest.raises(DataError, match="labelled row p: its completion is a list of messages, but its prompt is text"):
        encode_rows(chat, [Problem("p", "q")], [REST])


def test_what_a_template_refuses_names_its_row(chat: Policy) -> None:
    with pytest.raises(ModelError, match="labelled row p: the chat template refuses"):
        encode_rows(chat, [Problem("p", ASK)], [({"role": "assistant"},)])
    with pytest.raises(ModelError, match="problem p: the chat template refuses"):
        encode_prompts(chat, [Problem("p", ({"role": "user"},))])


def test_halves_of_surrogate_pairs_are_read_as_question_marks(plain: Policy, chat: Policy) -> None:
    assert encode_texts(plain, ["a\ud83d"]) == encode_texts(plain, ["a?"])
    half, whole = ([Problem("p", ({"role": "user", "content": text},))] for text in ("a\udc00", "a?"))
    assert encode_prompts(chat, half) == encode_prompts(chat, whole)
