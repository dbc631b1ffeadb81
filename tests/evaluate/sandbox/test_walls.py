"""What a program can reach: nothing of the machine but Python's own files and a folder of its own."""

from __future__ import annotations

import os
import secrets
import socket
import sys
import tempfile
from pathlib import Path

import pytest
from tests.evaluate.sandbox.conftest import Judge
from tests.evaluate.sandbox.deeds import ACHIEVED

from loopwise.evaluate.sandbox.launching import Launcher
from loopwise.evaluate.sandbox.limits import Limits
from loopwise.evaluate.sandbox.outcomes import ProgramOutcome

PASSED = ProgramOutcome.PASSED


def test_reads_outside(judge: Judge, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    folders = ["/etc", "/home", "/sys", "/proc", "/proc/1", "/var", "/run", "/boot", "/usr/bin", str(tmp_path)]
    folders += [str(Path(__file__).parent), str(Path(pytest.__file__).parent)]
    files = ["/etc/passwd", "/etc/shadow", "/proc/1/environ", "/proc/self/environ", "/proc/self/maps"]
    files += ["/dev/mem", "/dev/sda", "/dev/tty", "/dev/kmsg", str(secret), __file__, pytest.__file__]
    source = f"""{ACHIEVED}
def f(folders, files):
    return achieved(each(os.listdir, *folders) | each(lambda name: open(name, "rb").read(1), *files))
"""
    assert judge(source, "f", ([folders, files], [])).reason == ""


def test_writes_outside(judge: Judge) -> None:
    mark = f"mark-{secrets.token_hex(8)}"
    library = os.path.dirname(os.__file__)
    folders = ["/", "/dev", "/usr", "/usr/lib", library, f"{library}/json", str(Path(__file__).parent)]
    source = f"""{ACHIEVED}
def f(folders, library, mark):
    open("/tmp/" + mark, "w").close()
    return achieved({{
        **each(lambda folder: open(folder + "/" + mark, "w"), *folders),
        **each(lambda folder: os.mkdir(folder + "/" + mark + "-folder"), *folders),
        **each(lambda file: open(file, "a"), "/inside.py", library),
        "mode": lambda: os.chmod(library, 0o666),
        "name": lambda: os.rename(library, library + "x"),
    }})
"""
    assert judge(source, "f", ([folders, os.__file__, mark], [])).reason == ""
    assert not [folder for folder in (*folders, tempfile.gettempdir()) if os.path.exists(os.path.join(folder, mark))]


def test_symbolic_links(judge: Judge) -> None:
    source = f"""{ACHIEVED}
def look(target):
    os.symlink(target, "/tmp/link")
    try:
        return os.listdir("/tmp/link") if os.path.isdir("/tmp/link") else open("/tmp/link").read()
    finally:
        os.unlink("/tmp/link")

def f():
    return achieved(each(look, "/etc", "/etc/passwd", "/proc", "/proc/self/root", "/home", "../../etc/passwd"))
"""
    assert judge(source, "f", ([], [])).reason == ""


def test_the_network(judge: Judge) -> None:
    name = f"\0{secrets.token_hex(8)}"
    source = f"""{ACHIEVED}
def connect(name):
    with socket.socket(socket.AF_UNIX) as local:
        local.connect(name)

def f(name):
    return achieved({{
        **each(lambda family: socket.socket(family), *range(2, 46)),
        "address": lambda: socket.create_connection(("127.0.0.1", 22), 1),
        "a local socket of the machine": lambda: connect(name),
    }})
"""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        assert judge(source, "f", ([name], [])).reason == ""


def test_calls_into_the_kernel(judge: Judge) -> None:
    source = f"""{ACHIEVED}
import resource
def f():
    return achieved({{
        "ptrace": lambda: call("ptrace", 0, 0, 0, 0),
        "ptrace attach": lambda: call("ptrace", 16, 1, 0, 0),
        "mount": lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
        "umount": lambda: call("umount2", b"/tmp", 2),
        "unshare": lambda: call("unshare", 0x10000000),
        "setns": lambda: call("setns", 0, 0),
        "chroot": lambda: os.chroot("/tmp"),
        "user": lambda: os.setuid(0),
        "groups": lambda: os.setgroups([0]),
        "clock": lambda: call("settimeofday", bytes(16), None),
        "host name": lambda: call("sethostname", b"x", 1),
        "terminal": lambda: call("ioctl", 0, 0x5412, b"x"),
        "personality": lambda: call("personality", 0x0040000),
        "memory of another": lambda: call("process_vm_readv", 1, None, 0, None, 0, 0),
        "limits": lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40)),
        "priority": lambda: os.nice(-5),
        "device": lambda: os.mknod("/tmp/device", 0o020666, os.makedev(1, 1)),
    }})
"""
    assert judge(source, "f", ([], [])).reason == ""


def test_it_is_nobody(judge: Judge) -> None:
    source = "import os\ndef f(): return 0 in (os.getuid(), os.geteuid(), os.getgid(), os.getegid(), *os.getgroups())"
    assert judge(source, "f", ([], False)).outcome is PASSED


def test_the_environment_and_the_terminal(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPWISE_SECRET", "hunter2")
    source = """
        import os, sys
        def f():
            known = {"LC_CTYPE", "OPENBLAS_NUM_THREADS", "PWD", "PYTHONHASHSEED"}
            return [set(os.environ) <= known, sys.stdin.read(), os.isatty(0), os.getcwd(), os.listdir("/dev")]
    """
    assert judge(source, "f", ([], [True, "", False, "/tmp", ["null"]])).reason == ""


def test_only_the_standard_library_can_be_imported(judge: Judge) -> None:
    source = """
        import importlib
        def f(*names):
            found = []
            for name in names:
                try:
                    importlib.import_module(name)
                    found.append(name)
                except ImportError:
                    pass
            return found
    """
    wanted = ["math", "typing", "dataclasses", "heapq", "ctypes", "decimal", "numpy", "loopwise", "pytest", "pip"]
    assert judge(source, "f", (wanted, wanted[:6])).reason == ""


def test_the_command_binds_nothing_of_ours(sandboxes: None) -> None:
    command = Launcher.of(Limits()).command
    bound = [command[place + 1] for place, word in enumerate(command) if "bind" in word and "dev" not in word]
    environment = Path(sys.prefix).resolve()
    ours = [path for path in bound if Path(path).is_relative_to(environment)] if sys.prefix != sys.base_prefix else []
    script = [path for path in bound if path.endswith("inside.py")]
    assert ours == []
    assert len(script) == 1
    assert all(os.path.isfile(path) for path in script)
