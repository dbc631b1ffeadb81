"""The filter of system calls, run by an interpreter of its instructions: on both machines, whatever this one is."""

from __future__ import annotations

import errno
import platform
import re
import struct
from pathlib import Path

import pytest

from loopwise.evaluate.sandbox.seccomp import CLONE_THREAD, NEW_NAMESPACES, REFUSED, program_filter

ALLOW, KILL = 0x7FFF0000, 0x80000000
REFUSE, UNKNOWN = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CALLS = {
    "x86_64": {"read": 0, "exit_group": 231, "clone": 56, "clone3": 435, "socket": 41, "socketpair": 53, "ioctl": 16},
    "aarch64": {
        "read": 63,
        "exit_group": 94,
        "clone": 220,
        "clone3": 435,
        "socket": 198,
        "socketpair": 199,
        "ioctl": 29,
    },
}
HEADERS = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "/usr/include/asm-generic/unistd.h"}
each_machine = pytest.mark.parametrize("machine", CALLS)


def verdict(machine: str, number: int, *arguments: int, architecture: int | None = None) -> int:
    """What the filter says to a call."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    seen = struct.pack("<IIQ6Q", number, AUDIT[machine] if architecture is None else architecture, 0, *padded)
    steps = list(struct.iter_unpack("=HBBI", program_filter(machine)))
    place, word = 0, 0
    while True:
        code, when_true, when_false, constant = steps[place]
        place += 1
        match code:
            case 0x20:
                (word,) = struct.unpack_from("<I", seen, constant)
            case 0x06:
                return int(constant)
            case _:
                true = {0x15: word == constant, 0x35: word >= constant, 0x45: bool(word & constant)}[code]
                place += when_true if true else when_false


@each_machine
def test_what_programs_live_on_is_allowed(machine: str) -> None:
    for name in ("read", "exit_group"):
        assert verdict(machine, CALLS[machine][name]) == ALLOW


@each_machine
def test_every_refused_call_is_refused(machine: str) -> None:
    for name, numbers in REFUSED.items():
        number = numbers[list(AUDIT).index(machine)]
        if number >= 0:
            assert verdict(machine, number) == REFUSE, name


@each_machine
def test_threads_are_allowed_and_processes_and_namespaces_are_not(machine: str) -> None:
    clone = CALLS[machine]["clone"]
    thread = 0x3D0F00
    assert thread & CLONE_THREAD
    assert verdict(machine, clone, thread) == ALLOW
    assert verdict(machine, clone, 17) == REFUSE
    assert verdict(machine, clone, 0x4100 | 17) == REFUSE
    for bit in range(32):
        if NEW_NAMESPACES >> bit & 1:
            assert verdict(machine, clone, thread | 1 << bit) == REFUSE
    assert verdict(machine, CALLS[machine]["clone3"]) == UNKNOWN


@each_machine
def test_only_local_sockets(machine: str) -> None:
    for name in ("socket", "socketpair"):
        allowed = [family for family in range(50) if verdict(machine, CALLS[machine][name], family, 1) == ALLOW]
        assert allowed == [1]


@each_machine
def test_nothing_types_into_a_terminal(machine: str) -> None:
    ioctl = CALLS[machine]["ioctl"]
    assert verdict(machine, ioctl, 0, 0x5412) == REFUSE
    assert verdict(machine, ioctl, 0, 0x541C) == REFUSE
    assert verdict(machine, ioctl, 0, 0x5401) == ALLOW


@each_machine
def test_other_architectures_are_killed_and_later_calls_unknown(machine: str) -> None:
    assert verdict(machine, 0, architecture=0x40000003) == KILL
    assert verdict(machine, 0x40000000) == KILL
    assert verdict(machine, 470) == UNKNOWN


@each_machine
def test_numbers_are_those_of_the_kernel_s_headers(machine: str) -> None:
    header = Path(HEADERS[machine])
    if not header.is_file():
        pytest.skip(f"no kernel headers here ({header})")
    defined = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text(encoding="utf-8"))
    known = {name: int(number) for name, number in defined} | {"name_to_handle_at": None, "open_by_handle_at": None}
    checked = {name: numbers[list(AUDIT).index(machine)] for name, numbers in REFUSED.items()} | CALLS[machine]
    for name, number in checked.items():
        # A call that is not in older headers, or that this machine does not have.
        assert known.get(name) in (None, number), name


def test_this_machine_has_a_filter() -> None:
    if platform.machine() not in AUDIT:
        pytest.skip(f"no sandbox on {platform.machine()}")
    assert len(program_filter(platform.machine())) % 8 == 0
