"""The ledger of paid answers: each is on the disk before it is used, and is never paid for again."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loopwise.runs.files import fsync

STEM = "remote"


@dataclass(frozen=True)
class Entry:
    """One paid answer. ``read`` and ``written`` are tokens, ``estimated`` where the server did not count them."""

    key: str
    endpoint: str
    place: str
    text: str
    finish_reason: str
    read: int
    written: int
    estimated: bool = False


@dataclass(frozen=True)
class Tokens:
    """What one endpoint was paid for."""

    calls: int = 0
    read: int = 0
    written: int = 0

    @property
    def all(self) -> int:
        return self.read + self.written

    def plus(self, entry: Entry) -> Tokens:
        return Tokens(self.calls + 1, self.read + entry.read, self.written + entry.written)


def question_key(url: str, body: Mapping[str, Any], place: str) -> str:
    """What an answer is filed under: the SHA-256 of who is asked, all that is said, and where in the run."""
    return hashlib.sha256(json.dumps([url, body, place], sort_keys=True).encode()).hexdigest()


class Ledger:
    """Paid answers by the key of their question.

    Before ``attach`` they wait in memory: a recipe is tried before its run has a folder. Any thread may use it.
    """

    def __init__(self) -> None:
        self._known: dict[str, Entry] = {}
        self._spent: dict[str, Tokens] = {}
        self._before: dict[str, Tokens] = {}
        self._waiting: list[Entry] = []
        self._writing = threading.Lock()
        self._store: Callable[[Callable[[], None]], None] = _at_once
        self._file: int | None = None
        self._path = Path()
        self._torn = False
        self.world = 1

    def attach(
        self,
        folder: Path,
        rank: int = 0,
        *,
        world: int = 1,
        run: str = "",
        store: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        """Write to ``folder`` from now on, and know what was paid for there before, by whichever process.

        Each process has a file of its own: ``remote.jsonl``, with ``run`` and ``rank`` in its name where there are
        several. ``store`` wraps each write, which can be repeated as a whole (as ``runs.disk.with_room`` has to).
        Harmless when done twice. Raises RuntimeError for a second folder.
        """
        own = folder / ("-".join([STEM, *([run] if run else []), *([str(rank)] if rank else [])]) + ".jsonl")
        with self._writing:
            if self._file is not None:
                if own == self._path:
                    return
                raise RuntimeError(f"{own}: this ledger is written to {self._path} already")
            for path in sorted(folder.glob(f"{STEM}*.jsonl")):
                for entry in _entries(path):
                    if entry.key not in self._known:
                        self._count(entry)
            self._before = dict(self._spent)
            self.world = world
            self._store = store or _at_once
            self._path = own
            self._torn = _is_torn(own)
            self._file = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            fsync(folder)
            if self._waiting:
                self._store(self._write)

    def find(self, key: str) -> Entry | None:
        """The answer that was paid for under this key."""
        return self._known.get(key)

    def add(self, entry: Entry) -> None:
        """Keep a paid answer; on the disk when it returns. Raises what ``store`` raises where there is no room."""
        self._waiting.append(entry)
        with self._writing:
            # Whoever waited here may find its entry written by the one before: one fsync serves several.
            if self._file is not None and any(waiting is entry for waiting in self._waiting):
                self._store(self._write)
            self._count(entry)

    def spent(self, endpoint: str) -> Tokens:
        """What an endpoint was paid for in all of the run, as far as this process knows."""
        return self._spent.get(endpoint, Tokens())

    def before(self, endpoint: str) -> Tokens:
        """What of it was paid before ``attach``."""
        return self._before.get(endpoint, Tokens())

    def close(self) -> None:
        """Let go of the file. Harmless when done twice."""
        with self._writing:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def _count(self, entry: Entry) -> None:
        self._known[entry.key] = entry
        self._spent[entry.endpoint] = self.spent(entry.endpoint).plus(entry)

    def _write(self) -> None:
        """Write all that waits. One that failed half-way leaves a torn line, which the next line break ends."""
        assert self._file is not None
        entries = list(self._waiting)  # more may come meanwhile
        lines = b"".join(json.dumps(asdict(entry)).encode() + b"\n" for entry in entries)
        left = memoryview(b"\n" + lines if self._torn else lines)
        self._torn = True
        while left:
            left = left[os.write(self._file, left) :]
        os.fsync(self._file)
        self._torn = False
        del self._waiting[: len(entries)]


def _at_once(action: Callable[[], None]) -> None:
    action()


def _is_torn(path: Path) -> bool:
    """Whether a file ends in the middle of a line."""
    if not path.exists() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def _entries(path: Path) -> Iterator[Entry]:
    with path.open("rb") as file:
        yield from _read(file)


def _read(lines: Iterable[bytes]) -> Iterator[Entry]:
    """The entries of a file's lines. A torn line is none: its answer was never used, so asking again is right."""
    for line in lines:
        try:
            row = json.loads(line)
            entry = Entry(**row)
        except (ValueError, TypeError):
            continue
        texts = (entry.key, entry.endpoint, entry.place, entry.text, entry.finish_reason)
        if all(isinstance(value, str) for value in texts) and all(type(n) is int for n in (entry.read, entry.written)):
            yield entry
