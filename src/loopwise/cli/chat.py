"""The conversation of ``loopwise generate --chat``: a person's lines in, answers out while they grow."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from loopwise.cli.common import not_utf8, utf8
from loopwise.errors import ConfigError, PromptTooLongError

if TYPE_CHECKING:
    from loopwise.stages.generation import Speaker

HELP = "/reset forgets what was said, /exit or Ctrl-D ends, Ctrl-C stops an answer."
NO_TEMPLATE = "this model has no chat template: it goes on from each line by itself and remembers none"


def chat_on(speaker: Speaker, source: TextIO, target: TextIO, notes: TextIO) -> None:
    """Answer line after line of ``source`` until it ends. What is not an answer goes to ``notes``.

    Raises ConfigError on a line from a pipe that is not UTF-8; a person at a terminal is told, and types another.
    """
    from loopwise.console import writer
    from loopwise.stages.generation import Conversation

    write = writer(target)
    asks = source.isatty() and target.isatty()

    def note(text: str) -> None:
        print(f"[{text}]", file=notes, flush=True)

    note(HELP)
    if not speaker.has_template:
        note(NO_TEMPLATE)
    conversation = Conversation(speaker)
    while (line := _next_line(source, asks, note)) is not None:
        command = line.strip()
        if command == "/exit":
            return
        if command == "/reset":
            conversation.reset()
            note("forgotten")
        elif command.startswith("/") and command[1:].isalpha():
            note(f"unknown command {command}. {HELP}")
        elif command:
            try:
                answered = conversation.ask(line, write, note)
            except PromptTooLongError as error:
                note(str(error))
                continue
            write("\n")
            if answered is None:
                note("stopped")
            elif answered.finish_reason == "length":
                note("cut off at the most tokens; --max-tokens allows more")


def _next_line(source: TextIO, asks: bool, note: Callable[[str], None]) -> str | None:
    """The next line without its end, or None where there is no more. Ctrl-C at an empty prompt does not end it."""
    if not asks:
        line = _read(source.readline)
        return line.removesuffix("\n") if line else None
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # arrow keys and history for input()
    while True:
        try:
            return _read(lambda: input("> "))
        except ConfigError as error:
            note(str(error))
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print("\n[Ctrl-D or /exit ends the conversation]")


def _read(line: Callable[[], str]) -> str:
    try:
        return utf8(line(), "line of the conversation")
    except UnicodeDecodeError:
        raise not_utf8("line of the conversation") from None
