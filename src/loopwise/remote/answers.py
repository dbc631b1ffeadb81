"""Reading a server's answer: whether it is a chat completion, what it says, what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from loopwise.models.tokenizers import encodable
from loopwise.remote.failures import BadAnswerError
from loopwise.remote.ledger import Entry

CUT = ("length", "content_filter")
"""Finish reasons of a text that does not end where the model meant it to."""
BYTES_A_TOKEN = 3
"""For servers that do not count: few enough to err on the dear side, in English as in Chinese."""


def is_kept_back(text: str, finish_reason: str) -> bool:
    """Whether a server kept an answer back, all or some of it, so that what came is not what the model said."""
    return finish_reason == "content_filter" or (not text and finish_reason not in ("stop", "length"))


def checked(answer: Any) -> dict[str, Any]:
    """The answer, where it is a chat completion. Raises BadAnswerError."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    # A refusal, or reasoning that took all tokens, has no content; it was paid for all the same.
    if not isinstance(message, dict) or not isinstance(message.get("content", ""), str | None):
        raise BadAnswerError(f"its answer is no chat completion: {str(answer)[:200]}")
    return dict(answer)


def entry_of(answer: Mapping[str, Any], body: Mapping[str, Any], key: str, endpoint: str, place: str) -> Entry:
    """What to keep of a checked answer. Where the server does not count, tokens are estimated from bytes."""
    choice = answer["choices"][0]
    text = encodable(choice["message"].get("content") or "")
    usage = answer.get("usage")
    counted = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(usage, dict) else []
    counts = [count for count in counted if type(count) is int and count >= 0]
    estimated = len(counts) != 2
    if estimated:
        said = "".join(message["content"] for message in body["messages"])
        counts = [math.ceil(len(one.encode("utf-8", "replace")) / BYTES_A_TOKEN) for one in (said, text)]
    finish_reason = str(choice.get("finish_reason") or "stop")
    return Entry(key, endpoint, place, text, finish_reason, counts[0], counts[1], estimated)
