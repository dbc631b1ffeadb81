"""What one generated program may take."""

from __future__ import annotations

import math
from dataclasses import dataclass

MIB = 1 << 20
MOST_OUTPUT = MIB
"""Characters of JSON, or bytes of standard output, that one test's output may have."""
MOST_INPUT = 8 * MIB
"""Characters of JSON that one test's input may have."""
FOLDER = 32 * MIB
"""Bytes of /tmp, the one place that can be written to."""
MOST_FILES = 1000
"""Files, folders and links that may lie in /tmp at a time: empty ones take memory of the kernel's, none of /tmp's."""
_FILE = 16 * MIB
_FILES = 64
_THREADS = 32
_STACK = 64 * MIB


@dataclass(frozen=True)
class Limits:
    """``seconds`` of wall time for all tests of a program, ``memory`` in MiB of address space, interpreter included."""

    seconds: float = 5.0
    memory: int = 256

    @property
    def of_resources(self) -> dict[str, int]:
        """The limits of setrlimit, without their RLIMIT_.

        Processor time is a second line behind the deadline, and leaves room for two threads. Processes counts threads
        too; a second process is refused by the filter of system calls, so that ``memory`` is all a program can have.
        """
        return {
            "AS": self.memory * MIB,
            "CPU": 2 * math.ceil(self.seconds) + 1,
            "FSIZE": _FILE,
            "NOFILE": _FILES,
            "NPROC": _THREADS,
            "STACK": min(_STACK, self.memory * MIB),
            "CORE": 0,
            "MEMLOCK": 0,
            "MSGQUEUE": 0,
        }
