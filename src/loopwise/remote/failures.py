"""What can go wrong between here and a remote model, classified once, where it comes in."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

LONGEST_WAIT = 120.0
"""Seconds between two attempts at most. A server that asks for more is asked again on another day, not in this call."""
FIRST_WAIT = 0.5
"""Seconds before the second attempt; each later wait is twice as long."""
_SHOWN = 200


class BadAnswerError(Exception):
    """A server answered, but not with a chat completion."""


@dataclass(frozen=True)
class Failure:
    """One failed attempt. ``again``: another may succeed, after ``wait`` seconds where the server named a time.

    ``complains`` is what the server said against the request itself.
    """

    kind: str
    reason: str
    again: bool = False
    wait: float | None = None
    complains: str = ""


def failure_of(error: Exception, *, answered: bool) -> Failure:
    """Classify what an attempt raised. ``answered``: the endpoint has given an answer before.

    Without one, "not found" and "forbidden" mean that its address, model or key is wrong, and nothing will come of it;
    after one, that this question was turned down.
    """
    import openai

    if isinstance(error, TimeoutError | openai.APITimeoutError):
        # Not again: it may be answered, and paid for, on the other side by now.
        return Failure("timeout", "it did not answer in time")
    if isinstance(error, openai.APIStatusError):
        return _of_status(error.status_code, error.response.headers, _said(error), error.code, answered)
    if isinstance(error, openai.APIConnectionError):
        return Failure("unreachable", f"no connection ({_shorten(error.__cause__ or error)})", again=True)
    if isinstance(error, BadAnswerError):
        return Failure("bad_answer", str(error))
    # Whatever a client library makes of bytes that are no HTTP, or no JSON.
    return Failure("bad_answer", f"it did not answer with JSON ({type(error).__name__}: {_shorten(error)})")


def wait_before(attempt: int, asked: float | None, spread: float) -> float | None:
    """Seconds before attempt number ``attempt`` (1 is the second); None where the server asks for too many.

    ``spread`` in [0, 1) keeps calls that failed together from coming back together. It only ever adds.
    """
    if asked is not None and asked > LONGEST_WAIT:
        return None
    own = min(FIRST_WAIT * 2.0 ** (attempt - 1), LONGEST_WAIT)
    return max(own, asked or 0.0) * (1.0 + spread / 4.0)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the header Retry-After asks for, as a number or as a date (RFC 9110, section 10.2.3)."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _of_status(status: int, headers: Mapping[str, str], said: str, code: str | None, answered: bool) -> Failure:
    reason = f"status {status}" + (f": {said}" if said else "")
    refused = status in (401, 402) or code == "insufficient_quota" or status < 400
    if refused or (status in (403, 404) and not answered):
        return Failure("refused", reason)
    if status in (408, 409, 429) or status >= 500:
        return Failure("overloaded", reason, again=True, wait=retry_after(headers))
    return Failure("rejected", reason, complains=said or f"status {status}")


def _said(error: Any) -> str:
    """The server's own words, or the error as the client has it."""
    body = error.body
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body.get("error") or body
    return _shorten(body or "")


def _shorten(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
