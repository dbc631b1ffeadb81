"""Text to token ids and back, with the policy's own tokenizer. Prompt and completion are always encoded apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from loopwise.errors import DataError, ModelError, PromptTooLongError
from loopwise.models.chat import encode_chat_prompt, encode_conversation, end_of_turn_id
from loopwise.models.logps import TokenRow
from loopwise.models.policy import Policy
from loopwise.models.prompts import render
from loopwise.models.tokenizers import encodable, is_literal, opening_id
from loopwise.types import Completion, Message, Problem


def encode_prompts(policy: Policy, problems: Sequence[Problem]) -> list[list[int]]:
    """Token ids of each rendered prompt, with the tokenizer's opening token and chat template where it has them.

    A prompt without tokens begins where a document does: after the opening token or, without one, end-of-text.
    Raises ModelError where the tokenizer has neither, and where its chat template is missing or refuses a prompt.
    """
    prompts = [render(problem, policy.prompt_state) for problem in problems]
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    tokenizer = policy.tokenizer
    closing = set(policy.end_ids) & set(tokenizer.all_special_ids)
    opening = opening_id(tokenizer)
    encoded = iter(_encode(tokenizer, texts, add_special_tokens=True))
    rows: list[list[int]] = []
    for problem, prompt in zip(problems, prompts, strict=True):
        if isinstance(prompt, str):
            ids = next(encoded)
            # Some tokenizers close every text with end-of-text, after which nothing would be generated.
            while ids and ids[-1] in closing and ids[-1] != tokenizer.bos_token_id:
                ids.pop()
            if not ids and opening is not None:
                ids = [opening]
        else:
            ids = encode_chat_prompt(policy, prompt, f"problem {problem.id}")
        if not ids:
            raise ModelError(f"problem {problem.id}: its prompt has no tokens, and the tokenizer adds none.")
        rows.append(ids)
    return rows


def encode_texts(policy: Policy, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text alone: nothing opens or closes it."""
    return _encode(policy.tokenizer, texts, add_special_tokens=False)


def unknown_tokens(policy: Policy, texts: Sequence[str], rows: Sequence[Sequence[int] | np.ndarray]) -> list[int]:
    """How many tokens of each text's row stand for what the tokenizer does not know: no figure can say how well that
    is predicted. Text that spells the token out, as prepared corpora do, means it.
    """
    tokenizer = policy.tokenizer
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        return [0] * len(texts)
    found = (int((np.asarray(row) == unknown).sum()) for row in rows)
    counted = zip(texts, found, strict=True)
    return [max(0, count - text.count(tokenizer.unk_token)) if count else 0 for text, count in counted]


def unknown_share(policy: Policy, texts: Sequence[str]) -> float:
    """The share of the texts' tokens that stand for what the tokenizer does not know."""
    rows = encode_texts(policy, texts)
    return sum(unknown_tokens(policy, texts, rows)) / max(1, sum(map(len, rows)))


def encode_rows(
    policy: Policy, problems: Sequence[Problem], completions: Sequence[Completion], *, end_of_text: bool = True
) -> list[TokenRow]:
    """Prompts with what is learned after them.

    A text is closed with end-of-text, or after a chat prompt with the template's end of turn. The rest of a
    conversation has a loss mask: 1 for what the assistant wrote; what stands after its last turn is left out.
    Without ``end_of_text`` the last closing token is left out too. Raises what ``encode_prompts`` and
    ``encode_conversation`` do, and DataError naming a row with messages after a text prompt.
    """
    texts = [completion for completion in completions if isinstance(completion, str)]
    encoded = iter(encode_texts(policy, texts))
    end, turn = policy.tokenizer.eos_token_id, end_of_turn_id(policy)
    rows = []
    for problem, prompt_ids, completion in zip(problems, encode_prompts(policy, problems), completions, strict=True):
        mask: list[int] | None = None
        if isinstance(completion, str):
            ids = next(encoded)
            close = end if isinstance(problem.prompt, str) or turn is None else turn
            if end_of_text and close is not None:
                ids.append(close)
        else:
            ids, mask = _encode_rest(policy, problem, completion)
            if not end_of_text and ids and ids[-1] in (end, turn):
                ids, mask = ids[:-1], mask[:-1]
        rows.append(TokenRow(tuple(prompt_ids), tuple(ids), None if mask is None else tuple(mask)))
    return rows


def special_id(policy: Policy, text: str) -> int | None:
    """The id of the one special token that ``text`` spells, which ``decode`` never shows; None where it is no such."""
    switch = {"split_special_tokens": False} if is_literal(policy.tokenizer) else {}
    [ids] = policy.tokenizer([text], add_special_tokens=False, **switch)["input_ids"]
    if len(ids) != 1:
        return None
    added = getattr(policy.tokenizer, "added_tokens_decoder", {})
    special = ids[0] in policy.tokenizer.all_special_ids or (ids[0] in added and added[ids[0]].special)
    return int(ids[0]) if special and ids[0] != policy.tokenizer.unk_token_id else None


def decode(policy: Policy, rows: Sequence[Sequence[int]]) -> list[str]:
    """Text of each row of token ids, special tokens left out."""
    texts = policy.tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [str(text) for text in texts]


def encode_fitting(policy: Policy, problems: Sequence[Problem], extra_tokens: int, place: str) -> list[list[int]]:
    """``encode_prompts``, with room for ``extra_tokens`` more after each.

    Raises PromptTooLongError naming ``place`` and the longest prompt if they exceed the model's context.
    """
    rows = encode_prompts(policy, problems)
    limit = policy.weights.context_length if policy.weights else None
    if limit is None or not problems:
        return rows
    lengths = [len(row) for row in rows]
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    too_long = sum(length + extra_tokens > limit for length in lengths)
    if too_long:
        raise PromptTooLongError(
            f"{place}: {too_long} of {len(lengths)} prompts do not fit: problem {problems[longest].id} has "
            f"{lengths[longest]} tokens, with {extra_tokens} for the completion that is over the model's context of "
            f"{limit}. It begins {str(problems[longest].prompt)[:40]!r}. "
            "Lower sampling.max_tokens, shorten the prompts, or take a model with a longer context."
        )
    return rows


def fits(policy: Policy, problem: Problem, extra_tokens: int) -> bool:
    """Whether what the policy is shown of a problem, and ``extra_tokens`` more, are within its context."""
    limit = policy.weights.context_length if policy.weights else None
    if limit is None:
        return True
    [ids] = encode_prompts(policy, [problem])
    return len(ids) + extra_tokens <= limit


def _encode_rest(policy: Policy, problem: Problem, rest: Sequence[Message]) -> tuple[list[int], list[int]]:
    """Token ids and loss mask of what follows a chat prompt, up to the last token that is learned."""
    prompt = render(problem, policy.prompt_state)
    place = problem.place or f"labelled row {problem.id}"
    if isinstance(prompt, str):
        raise DataError(
            f"{place}: its completion is a list of messages, but its prompt is text. Make both messages, or both text."
        )
    ids, mask = encode_conversation(policy, [*prompt, *rest], len(prompt), place)
    learned = max((position + 1 for position, bit in enumerate(mask) if bit), default=0)
    return ids[:learned], mask[:learned]


def _encode(tokenizer: Any, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
    if not texts:
        return []
    # People's and models' text may spell special tokens. Tokenizers from elsewhere keep their way with it.
    switch = {"split_special_tokens": True} if is_literal(tokenizer) else {}
    rows = tokenizer(list(map(encodable, texts)), add_special_tokens=add_special_tokens, **switch)["input_ids"]
    return [list(row) for row in rows]
