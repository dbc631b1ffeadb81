"""One writer per run: an advisory lock on a file in the run's folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loopwise.errors import RunBusyError


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold ``folder/.lock`` while the block runs. Raises RunBusyError, naming the process, where another holds it.

    The kernel lets go of the lock when the process dies, however it dies, so a lock is never stale. The file stays:
    deleting it would let a second process lock a new file of that name while the first still holds the old one.
    A child made by a bare ``fork`` shares the lock and keeps it for as long as it lives; spawned ones do not.
    """
    path = folder / ".lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunBusyError(
                f"{folder}: process {holder(folder) or 'unknown'} is writing this run. Wait until it is done or stop "
                "it, or give this run another --out."
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        yield
    finally:
        os.close(descriptor)


def holder(folder: Path) -> str:
    """The process that took ``folder``'s lock last, by its number; empty where none can be seen to have done so."""
    try:
        return (folder / ".lock").read_text("ascii", "replace").strip()
    except OSError:
        return ""


def is_locked(folder: Path) -> bool:
    """Whether some process is writing the run in ``folder`` right now. Changes nothing."""
    try:
        descriptor = os.open(folder / ".lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
