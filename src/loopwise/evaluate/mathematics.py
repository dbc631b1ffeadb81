"""Mathematical answers by value, through math-verify: numbers, fractions, percent, sets, intervals, matrices.

A reference and a completion are read alike: what stands after the last ``####`` where there is one (GSM8K), else its
boxed, announced or last expression.
"""

from __future__ import annotations

import logging
import re
import threading
from functools import lru_cache
from typing import Any

from loopwise.errors import ConfigError

MOST_SECONDS = 5
"""Time one text may take to be read, or two values to be compared."""
LONGEST = 20_000
"""Characters of a text's end that are read: math-verify's patterns take long on long texts."""
_FINAL = "####"
_DELIMITERS = ("$", r"\boxed", r"\(", r"\[")
_COMMANDS = re.compile(r"\\[A-Za-z]+\s*(\{[A-Za-z\s]*\})?")
_WORDS = re.compile(r"[A-Za-z]{2,}")
_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_CHINESE = re.compile(r"(?<=[\u3000-\u9fff])(?=[^\u3000-\u9fff])")


def same_value(completion: str, reference: Any) -> float | None:
    """1.0 where the completion's answer equals the reference's, 0.0 where it does not or cannot be read.

    None where the reference cannot be read.
    """
    expected = _read(str(reference)) if reference is not None else ()
    if not expected:
        return None
    found = _read(completion)
    _, verify, _ = _library()
    return float(bool(found) and bool(verify(list(expected), list(found), timeout_seconds=_limit())))


def _read(text: str) -> tuple[Any, ...]:
    """The values found in a text, none where there are none or it takes too long."""
    _, _, too_slow = _library()
    try:
        return _parsed(text)
    except too_slow:
        return ()


# The k samples of a problem share its reference. Time-outs are raised, and so not kept: a busy machine's would last.
@lru_cache(maxsize=1024)
def _parsed(text: str) -> tuple[Any, ...]:
    parse, _, _ = _library()
    final = text[-LONGEST:].rpartition(_FINAL)[2].translate(_WIDE)
    final = _delimited(_CHINESE.sub(" ", final).strip())
    try:
        return tuple(parse(final, fallback_mode="no_fallback", parsing_timeout=_limit(), raise_on_error=True))
    except Exception:  # whatever the text makes math-verify's parsers raise; its time-outs are no Exception
        return ()


def _delimited(text: str) -> str:
    """A bare expression as LaTeX, which math-verify reads whole; of a sentence it finds the expression by itself."""
    has_words = _WORDS.search(_COMMANDS.sub(" ", text)) or _CHINESE.search(text)
    is_bare = text and not has_words and not any(mark in text for mark in ("\n", *_DELIMITERS))
    return f"${text}$" if is_bare else text


def _limit() -> int | None:
    """math-verify stops itself by a signal, which only a main thread can get; elsewhere the caller has to stop it."""
    return MOST_SECONDS if threading.current_thread() is threading.main_thread() else None


@lru_cache(maxsize=1)
def _library() -> tuple[Any, Any, type[BaseException]]:
    """math-verify's ``parse`` and ``verify``, and what they raise when their time is up."""
    try:
        from math_verify import parse, verify
        from math_verify.errors import TimeoutException
    except ModuleNotFoundError as error:
        raise ConfigError(f'rule "math" needs math-verify installed: pip install math-verify ({error}).') from None
    # It warns of every text it cannot read, and of time limits that are off.
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)
    return parse, verify, TimeoutException
