"""Text to token ids and back, with the policy's own tokenizer. Prompt and completion are always encoded apart."""

from __future__ import annotations

from collections.abc import Sequence

from loopwise.errors import ModelError, PromptTooLongError
from loopwise.models.policy import Policy
from loopwise.models.prompts import render
from loopwise.types import Problem


def encode_prompts(policy: Policy, problems: Sequence[Problem]) -> list[list[int]]:
    """Token ids of each rendered prompt, with the tokenizer's opening token and chat template where it has them."""
    prompts = [render(problem, policy.prompt_state) for problem in problems]
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    closing = set(policy.end_ids) & set(policy.tokenizer.all_special_ids)
    encoded = iter(policy.tokenizer(texts, add_special_tokens=True)["input_ids"] if texts else ())
    rows: list[list[int]] = []
    for problem, prompt in zip(problems, prompts, strict=True):
        if isinstance(prompt, str):
            ids = list(next(encoded))
            # Some tokenizers close every text with end-of-text, after which nothing would be generated.
            while ids and ids[-1] in closing and ids[-1] != policy.tokenizer.bos_token_id:
                ids.pop()
        else:
            if not policy.tokenizer.chat_template:
                raise ModelError(
                    f"problem {problem.id}: its prompt is a list of messages, but the model's tokenizer has no chat "
                    "template. Use text prompts, or a model with a chat template."
                )
            ids = list(
                policy.tokenizer.apply_chat_template(
                    [dict(message) for message in prompt], add_generation_prompt=True, tokenize=True, return_dict=False
                )
            )
        if not ids:
            raise ModelError(f"problem {problem.id}: its prompt has no tokens, and the tokenizer adds none.")
        rows.append(ids)
    return rows


def encode_completions(policy: Policy, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each completion, closed with end-of-text where the tokenizer has one."""
    rows = policy.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    end = policy.tokenizer.eos_token_id
    return [[*row, end] if end is not None else list(row) for row in rows]


def special_id(policy: Policy, text: str) -> int | None:
    """The id of the one special token that ``text`` spells, which ``decode`` never shows; None where it is no such."""
    [ids] = policy.tokenizer([text], add_special_tokens=False)["input_ids"]
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
