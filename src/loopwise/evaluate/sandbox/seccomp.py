"""The system calls that a generated program may not make, as a filter for the kernel (seccomp, classic BPF).

A list of refusals, not of permissions: what Python needs differs from release to release, and the namespaces, the empty
capabilities and the read-only system stand behind it. What a later kernel adds is refused as unknown.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

# Offsets into struct seccomp_data; of an argument its low word (both machines are little-endian).
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
# Codes of BPF instructions: load a word; jump if it equals, is at least, has any bit of a constant; return.
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000

_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_MACHINES = ("x86_64", "aarch64")
_X32 = 0x40000000
_NEWEST = 462
"""The last call that was looked at (mseal, Linux 6.10); beyond it numbers are the same on all machines."""

CLONE_THREAD = 0x00010000
NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""
_AF_UNIX = 1
_TERMINAL_INPUT, _TERMINAL_CONTROL = 0x5412, 0x541C
"""ioctl TIOCSTI and TIOCLINUX, which type into the terminal of whoever started us."""

_ABSENT = -1
REFUSED: dict[str, tuple[int, int]] = {
    # other processes: look into them, change them, start them
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "fork": (57, _ABSENT),
    "vfork": (58, _ABSENT),
    # namespaces and mounts
    "unshare": (272, 97),
    "setns": (308, 268),
    "chroot": (161, 51),
    "pivot_root": (155, 41),
    "mount": (165, 40),
    "umount2": (166, 39),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    # the kernel itself: its programs, keys, modules, clocks, log
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "personality": (135, 92),
    "vhangup": (153, 58),
    "iopl": (172, _ABSENT),
    "ioperm": (173, _ABSENT),
    "modify_ldt": (154, _ABSENT),
    "uselib": (134, _ABSENT),
    # memory that no resource limit counts
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "vmsplice": (278, 75),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
}
"""Calls that fail with EPERM, whatever their arguments, with their numbers on x86_64 and aarch64."""
_CLONE, _CLONE3, _SOCKET, _SOCKETPAIR, _IOCTL = (56, 220), (435, 435), (41, 198), (53, 199), (16, 29)


def program_filter(machine: str) -> bytes:
    """The filter for ``machine`` (as ``platform.machine()`` names it), an array of struct sock_filter.

    A new process, a new namespace, a socket that is not AF_UNIX and the calls of REFUSED fail with EPERM; threads are
    allowed. ``clone3``, whose flags a filter cannot read, and calls unknown here fail with ENOSYS, upon which the C
    library takes the older one. Calls of another architecture kill. Raises KeyError on a machine not known here.
    """
    architecture = _AUDIT[machine]
    return b"".join(struct.pack("=HBBI", *step) for step in _steps(_MACHINES.index(machine), architecture))


_Step = tuple[int, int, int, int]
_REFUSE: _Step = (_RETURN, 0, 0, _ERROR | errno.EPERM)
_UNKNOWN: _Step = (_RETURN, 0, 0, _ERROR | errno.ENOSYS)


def _steps(machine: int, architecture: int) -> Iterator[_Step]:
    yield (_LOAD, 0, 0, _ARCHITECTURE)
    yield (_EQUAL, 1, 0, architecture)
    yield (_RETURN, 0, 0, _KILL)
    yield (_LOAD, 0, 0, _NUMBER)
    yield (_AT_LEAST, 0, 1, _X32)
    yield (_RETURN, 0, 0, _KILL)
    yield (_AT_LEAST, 0, 1, _NEWEST + 1)
    yield _UNKNOWN
    yield (_EQUAL, 0, 1, _CLONE3[machine])
    yield _UNKNOWN
    for numbers in REFUSED.values():
        if numbers[machine] != _ABSENT:
            yield (_EQUAL, 0, 1, numbers[machine])
            yield _REFUSE
    yield (_EQUAL, 0, 6, _CLONE[machine])
    yield (_LOAD, 0, 0, _ARGUMENTS)
    yield (_ANY_BIT, 0, 1, NEW_NAMESPACES)
    yield _REFUSE
    yield (_ANY_BIT, 1, 0, CLONE_THREAD)
    yield _REFUSE
    yield (_RETURN, 0, 0, _ALLOW)
    for call in (_SOCKET, _SOCKETPAIR):
        yield (_EQUAL, 0, 4, call[machine])
        yield (_LOAD, 0, 0, _ARGUMENTS)
        yield (_EQUAL, 1, 0, _AF_UNIX)
        yield _REFUSE
        yield (_RETURN, 0, 0, _ALLOW)
    yield (_EQUAL, 0, 4, _IOCTL[machine])
    yield (_LOAD, 0, 0, _ARGUMENTS + 8)
    yield (_EQUAL, 1, 0, _TERMINAL_INPUT)
    yield (_EQUAL, 0, 1, _TERMINAL_CONTROL)
    yield _REFUSE
    yield (_RETURN, 0, 0, _ALLOW)
