"""The full-disk pause: an action that found no room waits for some and is done again."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from loopwise.errors import DiskFullError

T = TypeVar("T")

_ERRNOS = {errno.ENOSPC, errno.EDQUOT}
# Libraries that lose the errno on the way (SQLite, safetensors) still say it in words.
_WORDS = ("database or disk is full", "no space left on device", "disk quota exceeded", "os error 28)", "os error 122)")
# SQLite's shared-memory file beside the database could not grow: its words are only "disk I/O error".
_SQLITE_NAMES = {"SQLITE_FULL", "SQLITE_IOERR_SHMSIZE"}


def with_room(
    action: Callable[[], T], *, place: Path, wait_seconds: float, on_pause: Callable[[str], None], poll: float = 2.0
) -> T:
    """Run ``action``; where the disk is full, pause and run it again every ``poll`` seconds until it works.

    ``action`` must be one that can be repeated as a whole: a checkpoint's save, one transaction of the journal.
    ``place`` is a path on the disk in question, for the message; ``on_pause`` is told once what happened and what to
    do. Raises DiskFullError when ``wait_seconds`` are over; any other failure of ``action`` is raised as it is.
    """
    deadline: float | None = None
    while True:
        try:
            return action()
        except Exception as error:
            if not is_disk_full(error):
                raise
            if deadline is None:
                deadline = time.monotonic() + wait_seconds
                on_pause(
                    f"{place}: the disk is full ({_free(place)} left). The run is paused: make room within "
                    f"{wait_seconds:.0f} seconds and it goes on by itself."
                )
            left = deadline - time.monotonic()
            if left <= 0:
                raise DiskFullError(
                    f"{place}: the disk is still full ({_free(place)} left) after {wait_seconds:.0f} seconds. "
                    "Nothing that was committed is lost: make room and start the same command with --resume."
                ) from error
        time.sleep(min(poll, left))


def is_disk_full(error: BaseException) -> bool:
    """Whether ``error``, or one that caused it, says that the disk (or the user's quota of it) is full."""
    return any(
        (isinstance(cause, OSError) and cause.errno in _ERRNOS)
        or getattr(cause, "sqlite_errorname", None) in _SQLITE_NAMES
        or any(words in str(cause).lower() for words in _WORDS)
        for cause in _causes(error)
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        cause = waiting.pop()
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        waiting += [cause.__cause__, None if cause.__suppress_context__ else cause.__context__]


def _free(place: Path) -> str:
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    return f"{free / 2**20:.1f} MiB" if free < 2**30 else f"{free / 2**30:.1f} GiB"
