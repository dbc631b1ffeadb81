"""A completion shown while it grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loopwise.models.policy import Policy
from loopwise.models.tokens import decode
from loopwise.types import Request

UNFINISHED = "\ufffd"
"""What a tokenizer writes for bytes that are no character, or not one yet."""


class TextStream:
    """Hands a completion's text to ``write`` token by token, for ``LocalGenerator.on_token`` of a single request.

    Whole characters only, and nothing that may yet prove to be the beginning of a stop string. ``written`` is all
    that was handed over.
    """

    def __init__(self, policy: Policy, stop: Sequence[str], write: Callable[[str], None]) -> None:
        self.written = ""
        self._policy = policy
        self._stop = stop
        self._write = write
        self._pending = ""
        self._known = 0
        self._read = 0

    def __call__(self, request: Request, token_ids: Sequence[int]) -> None:
        """Take note of one token more; ``token_ids`` are all of the completion."""
        # Tokens are decoded together with the ones before them, without which some tokenizers drop a leading space.
        before, text = decode(self._policy, [token_ids[self._known : self._read], token_ids[self._known :]])
        if len(text) <= len(before) or text.endswith(UNFINISHED):
            return
        self._known, self._read = self._read, len(token_ids)
        self._add(text[len(before) :])

    def finish(self, text: str) -> None:
        """Hand over what was held back; ``text`` is the whole completion, cut at its stop string."""
        if text.startswith(self.written):
            self._emit(text[len(self.written) :])

    def _add(self, text: str) -> None:
        self._pending += text
        if any(stop in self._pending for stop in self._stop):
            return  # the completion ends here, and ``finish`` knows where
        held = max((_overlap(self._pending, stop) for stop in self._stop), default=0)
        ready = len(self._pending) - held
        self._emit(self._pending[:ready])
        self._pending = self._pending[ready:]

    def _emit(self, text: str) -> None:
        if text:
            self.written += text
            self._write(text)


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` begin ``stop``."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
