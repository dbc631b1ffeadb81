"""Conversations to token ids, with a mask of what the assistant wrote, through the tokenizer's own chat template.

What a turn says is encoded apart from the template around it, as a completion is from its prompt. Where the tokenizer
was made here, it is encoded literally: no message can spell a special token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from loopwise.errors import ModelError
from loopwise.models.policy import Policy
from loopwise.models.tokenizers import encodable, is_literal
from loopwise.types import Message

_MARKED = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_FIRST_NONCHARACTER = 0xFDD0
_PROBE = "answer"


class _Rendered(NamedTuple):
    """A conversation as text, and the spans ``[start, stop)`` of it that the assistant wrote."""

    text: str
    spans: list[tuple[int, int]]


def encode_chat_prompt(policy: Policy, messages: Sequence[Message], place: str = "conversation") -> list[int]:
    """Token ids of a conversation and of the opening of the assistant's next turn.

    Raises ModelError, beginning with ``place``, where the template is missing or refuses the messages.
    """
    messages, cut = _guarded(policy.tokenizer, messages)
    text = _render(policy.tokenizer, messages, place, opening=True)
    return [token for piece in _encode(policy.tokenizer, _pieces(text, cut)) for token in piece]


def encode_conversation(
    policy: Policy, messages: Sequence[Message], given: int = 0, place: str = "conversation"
) -> tuple[list[int], list[int]]:
    """Token ids of a conversation, and a mask of 1 for each that the assistant wrote, ends of turns included.

    The first ``given`` messages are the prompt: what is returned follows ``encode_chat_prompt`` of them. The template's
    ``{% generation %}`` marks say what the assistant wrote, or else the difference between the conversation up to its
    turn and after it. Raises ModelError, beginning with ``place``, where the template is missing, refuses the messages,
    or has no marks and writes earlier turns otherwise once there are later ones.
    """
    tokenizer = policy.tokenizer
    messages, cut = _guarded(tokenizer, messages)
    template = _template(tokenizer, place)
    if _MARKED.search(template):
        rendered = _by_marks(tokenizer, messages, template, place)
    else:
        rendered = _by_prefixes(tokenizer, messages, given, place)
    start = 0
    if given:
        prompt = _render(tokenizer, messages[:given], place, opening=True)
        start = _require_prefix(prompt, rendered.text, given, place)
    ids: list[int] = []
    mask: list[int] = []
    for learned, text in _turns(rendered, start):
        for piece in _encode(tokenizer, _pieces(text, cut)):
            ids += piece
            mask += [learned] * len(piece)
    return ids, mask


def end_of_turn_id(policy: Policy) -> int | None:
    """The special token that the chat template writes after an answer; None where it writes none."""
    tokenizer = policy.tokenizer
    if not tokenizer.chat_template:
        return None
    probe = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _PROBE}]
    try:
        text = _render(tokenizer, probe, "", opening=False)
    except ModelError:  # a template for other roles: such rows name their own error when they are encoded
        return None
    after = text.rpartition(_PROBE)[2].lstrip()
    found = next((token for token in _special_tokens(tokenizer) if after.startswith(token)), None)
    return None if found is None else int(tokenizer.convert_tokens_to_ids(found))


def _by_marks(tokenizer: Any, messages: list[dict[str, str]], template: str, place: str) -> _Rendered:
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        [text], [spans] = render_jinja_template(
            conversations=[messages],
            chat_template=template,
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
    except Exception as error:
        raise _refused(place, error) from error
    # Some templates leave the end of a turn out of the marks; a model that never learned it would not stop.
    special = _special_tokens(tokenizer)
    return _Rendered(text, [(start, _closed(text, start, stop, special)) for start, stop in spans])


def _closed(text: str, start: int, stop: int, special: list[str]) -> int:
    if any(text[start:stop].endswith(token) for token in special):
        return stop
    return stop + next((len(token) for token in special if text.startswith(token, stop)), 0)


def _by_prefixes(tokenizer: Any, messages: list[dict[str, str]], given: int, place: str) -> _Rendered:
    text = _render(tokenizer, messages, place, opening=False)
    spans = []
    for number, message in enumerate(messages):
        if number < given or message["role"] != "assistant":
            continue
        before = _render(tokenizer, messages[:number], place, opening=True)
        after = _render(tokenizer, messages[: number + 1], place, opening=False)
        start = _require_prefix(before, after, number, place)
        _require_prefix(after, text, number + 1, place)
        # White space after an end of turn is the template's; without such a token it is what ends the turn.
        written = after[start:].rstrip()
        closed = any(written.endswith(token) for token in _special_tokens(tokenizer))
        spans.append((start, start + len(written) if closed else len(after)))
    return _Rendered(text, spans)


def _require_prefix(prefix: str, text: str, count: int, place: str) -> int:
    """The length of ``prefix``, once it is sure that ``text`` begins with it."""
    if not text.startswith(prefix):
        raise ModelError(
            f"{place}: the chat template writes the first {count} messages differently once more follow, so what the "
            "assistant wrote cannot be told. Give each answer its own row (prompt and completion), or use a template "
            "with {% generation %} marks that leaves earlier turns as they are."
        )
    return len(prefix)


def _turns(rendered: _Rendered, start: int) -> Iterator[tuple[int, str]]:
    """The text from ``start`` on in turns: 1 and what the assistant wrote, 0 and what stands around it."""
    text, spans = rendered
    for first, stop in spans:
        first = max(first, start)
        if first < stop:
            yield 0, text[start:first]
            yield 1, text[first:stop]
            start = stop
    yield 0, text[start:]


def _guarded(tokenizer: Any, messages: Sequence[Message]) -> tuple[list[dict[str, str]], str]:
    """The messages with a cut inside every special token they spell, and the character that marks the cut.

    The text is encoded in pieces between the cuts, which go: all characters stay, and none of them joins into a special
    token. Only what tokenizers made here read is cut.
    """
    plain = [dict(message) for message in messages]
    if not is_literal(tokenizer):
        return plain, ""
    everything = "".join(str(value) for message in plain for value in message.values())
    cut = next(chr(code) for code in range(_FIRST_NONCHARACTER, 0x110000) if chr(code) not in everything)
    special = re.compile("|".join(map(re.escape, _special_tokens(tokenizer))))

    def parted(value: Any) -> Any:
        # What is no text is the template's to refuse.
        return special.sub(lambda found: found[0][:1] + cut + found[0][1:], value) if isinstance(value, str) else value

    return [{key: parted(value) for key, value in message.items()} for message in plain], cut


def _special_tokens(tokenizer: Any) -> list[str]:
    """All special tokens as text; of two that begin alike, the longer comes first."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    tokens = {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
    return sorted((token for token in tokens if token.strip()), key=lambda token: (-len(token), token))


def _pieces(text: str, cut: str) -> list[str]:
    return [piece for piece in (text.split(cut) if cut else [text]) if piece]


def _encode(tokenizer: Any, pieces: list[str]) -> list[list[int]]:
    if not pieces:
        return []
    # A template's special tokens are meant, even by a tokenizer that reads other text literally.
    switch = {"split_special_tokens": False} if is_literal(tokenizer) else {}
    rows = tokenizer(list(map(encodable, pieces)), add_special_tokens=False, **switch)["input_ids"]
    return [list(ids) for ids in rows]


def _template(tokenizer: Any, place: str) -> str:
    if not tokenizer.chat_template:
        raise ModelError(
            f"{place}: its prompt is a list of messages, but the model's tokenizer has no chat template. "
            "Use text prompts, or a model with a chat template."
        )
    return str(tokenizer.get_chat_template())


def _render(tokenizer: Any, messages: Sequence[Message], place: str, *, opening: bool) -> str:
    _template(tokenizer, place)
    try:
        return str(
            tokenizer.apply_chat_template(
                [dict(message) for message in messages], add_generation_prompt=opening, tokenize=False
            )
        )
    except Exception as error:
        raise _refused(place, error) from error


def _refused(place: str, error: Exception) -> ModelError:
    """Templates are other people's programs: they raise of their own accord, and fail in any way a program can."""
    first = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
    return ModelError(
        f"{place}: the chat template refuses its messages ({first}). "
        "Mend their roles and order, or use a model whose template takes them."
    )
