"""Which answer a completion gives, so that two completions can be said to give the same one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loopwise.errors import ConfigError, nearest
from loopwise.evaluate.introspection.killable import Killable, Said
from loopwise.evaluate.options import require_labels
from loopwise.evaluate.parsing import last_number, settled_choice

KINDS = ("text", "number", "choice", "regex")


@dataclass(frozen=True)
class Answers:
    """Reads the answers off completions, by a function or by a user's pattern, which may have to be cut off."""

    read: Callable[[str], str | None] | Killable

    async def __call__(self, texts: Sequence[str]) -> Said:
        """The answer of each text, None where it gives none, and by position why one could not be read."""
        if isinstance(self.read, Killable):
            found, errors = await self.read([""] * len(texts), texts)
            return found, {place: f"its answer could not be read: {reason}" for place, reason in errors.items()}
        return [self.read(text) for text in texts], {}

    def close(self) -> None:
        """End the process that a pattern runs in."""
        if isinstance(self.read, Killable):
            self.read.close()


def answers_by(source: str, extract: str, pattern: str, labels: str | Sequence[str]) -> Answers:
    """What reads a completion's answer.

    ``extract``: ``text`` (all of it, without the space around it), ``number`` (its last one), ``choice`` (which of
    ``labels`` it settles on), ``regex`` (the last match of ``pattern``, or of its first group; an empty one is no
    answer). Raises ConfigError, which names ``source``.
    """
    whose = f'source "{source}"'
    if extract not in KINDS:
        raise ConfigError(f'{whose}: unknown extract "{extract}". {nearest(str(extract), KINDS)}')
    if (extract == "regex") != bool(pattern):
        raise ConfigError(f'{whose}: "pattern" goes with extract: regex. Give both or neither.')
    require_labels(whose, labels=labels)
    if extract == "text":
        return Answers(lambda text: text.strip() or None)
    if extract == "number":
        return Answers(_number)
    if extract == "choice":
        return Answers(lambda text: settled_choice(text, labels))
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ConfigError(f"{whose}: pattern {pattern!r} is no regular expression ({error}). Mend it.") from None
    return Answers(Killable.of("last_matches", "pattern", pattern))


def _number(text: str) -> str | None:
    # 3.5% and 3.5 are one answer: read either way, "the same" would hold of two pairs and not of the third.
    found = last_number(text)
    return None if found is None else str(found.value)
