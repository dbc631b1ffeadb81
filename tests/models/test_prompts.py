"""From a problem to the text or messages a model sees, and on to token ids."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.encoded import encode_completions

from loopwise.errors import ModelError
from loopwise.models.policy import Policy
from loopwise.models.presets import character_tokenizer
from loopwise.models.prompts import render
from loopwise.models.tokens import decode, encode_prompts
from loopwise.types import Problem, PromptState

FULL = PromptState("Add.", (("1+1=", "2"), ("2+2=", "4")), ("Carry.", "Pad."))
CHAT = ({"role": "system", "content": "Own."}, {"role": "user", "content": "3+3="})
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
ALPHABET = "0123456789+=abcdefghijklmnopqrstuvwxyz: \n"


def with_tokenizer(policy: Policy, **changes: Any) -> Policy:
    tokenizer = character_tokenizer(ALPHABET)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return replace(policy, tokenizer=tokenizer)


def surrounding(opening: bool, closing: bool) -> Any:
    """A tokenizer that opens texts with <bos>, closes them with <eos>, or both."""
    from tokenizers import processors

    tokenizer = character_tokenizer(ALPHABET)
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    template = " ".join((["<bos>"] if opening else []) + ["$A"] + (["<eos>"] if closing else []))
    ids = [("<bos>", tokenizer.bos_token_id), ("<eos>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return tokenizer


def test_an_empty_state_leaves_prompts_alone() -> None:
    assert render(Problem("p", "3+3="), PromptState()) == "3+3="
    assert render(Problem("p", CHAT), PromptState()) == CHAT


def test_text_with_system_memory_and_examples() -> None:
    assert render(Problem("p", "3+3="), FULL) == "Add.\n- Carry.\n- Pad.\n\n1+1=2\n2+2=4\n3+3="
    assert render(Problem("p", "3+3="), replace(FULL, system="", memory=())) == "1+1=2\n2+2=4\n3+3="
    assert render(Problem("p", "3+3="), PromptState(memory=("Carry.",))) == "- Carry.\n\n3+3="


def test_chat_with_system_memory_and_examples() -> None:
    assert render(Problem("p", CHAT), FULL) == (
        {"role": "system", "content": "Add.\n- Carry.\n- Pad.\n\nOwn."},
        {"role": "user", "content": "1+1="},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+2="},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "3+3="},
    )
    assert render(Problem("p", CHAT[1:]), PromptState("Add."))[0] == {"role": "system", "content": "Add."}


def test_text_prompts_become_their_characters(policy: Policy) -> None:
    state = PromptState(examples=(("1+1=", "2"),))
    rows = encode_prompts(replace(policy, prompt_state=state), [Problem("p", "3+3="), Problem("q", "0")])
    assert [len(row) for row in rows] == [10, 7]
    assert decode(policy, rows) == ["1+1=2\n3+3=", "1+1=2\n0"]


def test_the_opening_token_stays_and_the_closing_one_goes(policy: Policy) -> None:
    problem = Problem("p", "1+")
    plain = encode_prompts(with_tokenizer(policy), [problem])[0]
    for opening in (False, True):
        for closing in (False, True):
            tokenizer = surrounding(opening, closing)
            ids = encode_prompts(replace(policy, tokenizer=tokenizer), [problem])[0]
            assert ids == [tokenizer.bos_token_id] * opening + plain


def test_a_prompt_that_ends_with_an_ordinary_end_token_keeps_it(policy: Policy) -> None:
    # Some models stop at a newline: a newline that ends a prompt is still part of it.
    policy = with_tokenizer(policy)
    policy.weights.module.generation_config.eos_token_id = policy.tokenizer("\n")["input_ids"]
    assert decode(policy, encode_prompts(policy, [Problem("p", "1+1\n")])) == ["1+1\n"]


def test_chat_prompts_go_through_the_template(policy: Policy) -> None:
    policy = with_tokenizer(policy, chat_template=TEMPLATE)
    messages = ({"role": "user", "content": "3+3="},)
    rows = encode_prompts(policy, [Problem("p", messages), Problem("q", "plain"), Problem("r", messages)])
    assert decode(policy, rows) == ["user: 3+3=\nassistant: ", "plain", "user: 3+3=\nassistant: "]


def test_chat_prompts_need_a_template(policy: Policy) -> None:
    with pytest.raises(ModelError, match=r"problem p: its prompt is a list of messages.*no chat template"):
        encode_prompts(policy, [Problem("p", CHAT)])


def test_a_prompt_without_tokens_is_refused(policy: Policy) -> None:
    policy = with_tokenizer(policy, eos_token=None)
    with pytest.raises(ModelError, match="problem q: its prompt has no tokens"):
        encode_prompts(policy, [Problem("p", "1"), Problem("q", "")])


def test_completions_are_closed_with_end_of_text(policy: Policy) -> None:
    tokenizer = surrounding(True, True)
    rows = encode_completions(replace(policy, tokenizer=tokenizer), ["12", ""])
    assert rows == [[*tokenizer("12", add_special_tokens=False)["input_ids"], 1], [1]]
    assert encode_completions(policy, []) == []


def test_completions_of_a_tokenizer_without_end_of_text_stay_open(policy: Policy) -> None:
    tokenizer = character_tokenizer(ALPHABET)
    tokenizer.eos_token = None
    assert decode(
        replace(policy, tokenizer=tokenizer), encode_completions(replace(policy, tokenizer=tokenizer), ["12"])
    ) == ["12"]
    assert len(encode_completions(replace(policy, tokenizer=tokenizer), ["12"])[0]) == 2


@pytest.mark.parametrize("text", ["12+34=", "two  spaces\n\nand lines ", " "])
def test_the_character_tokenizer_round_trips(policy: Policy, text: str) -> None:
    assert decode(policy, encode_prompts(policy, [Problem("p", text)])) == [text]
