"""What a recipe brings along to be run on texts: a pattern, a function of the prompt. Either may take for ever.

Both run in a reward worker, which can be killed (``killable``), in a critic's signature: words for each text. Imported
by the worker, which must start fast: standard library only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from loopwise.user_code import failure, load_function


def last_matches(completions: Sequence[str], pattern: Sequence[str], **_: Any) -> list[str | None]:
    """The last match of a regular expression in each text, or of its first group; None where there is none."""
    return [_last_match(re.compile(wanted), text) for wanted, text in zip(pattern, completions, strict=True)]


def rewordings(prompts: Sequence[Any], use: Sequence[str], **_: Any) -> list[str]:
    """What the function ``path/to/file.py:function`` returns for each prompt, as JSON: ``prompts``, or ``failure``."""
    return [json.dumps(_reworded(prompt, place)) for prompt, place in zip(prompts, use, strict=True)]


def _last_match(pattern: re.Pattern[str], text: str) -> str | None:
    last = None
    for last in pattern.finditer(text):  # noqa: B007 - only the last one counts
        pass
    return None if last is None else last[1 if pattern.groups else 0]


def _reworded(prompt: Any, use: str) -> dict[str, Any]:
    function = _loaded(use)
    try:
        found = function(prompt if isinstance(prompt, str) else tuple(prompt))
        return {"prompts": found if isinstance(found, str) else list(found)}
    except (Exception, SystemExit) as error:  # anybody's function may raise anything, and only this prompt is lost
        return {"failure": failure(error, use.rpartition(":")[0])}


@cache
def _loaded(use: str) -> Callable[..., Any]:
    return load_function(use, 'source "agreement", option "variants"')
