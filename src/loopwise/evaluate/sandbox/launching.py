"""The command that starts a sandbox: what of the machine is in it, and what is not."""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from loopwise.evaluate.sandbox.limits import FOLDER, MOST_OUTPUT, Limits
from loopwise.evaluate.sandbox.seccomp import program_filter

INSTALL_HINT = "Install it (Debian, Ubuntu: apt install bubblewrap)"
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_NOBODY = 65534
_USERS = range(61184, 65520)
"""Numbers that no person has and that every container can map. Each sandbox draws one, so that their threads are
counted apart."""
_SCRIPT = "/inside.py"
_BASE = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix, "installed_base": sys.base_prefix}
"""Python's own folders, also where we run in a virtual environment."""


class UnavailableError(Exception):
    """This machine cannot start sandboxes. Never leaves this package; says why, and the mend."""


@dataclass(frozen=True)
class Launcher:
    """How each sandbox is started: the ``command`` up to its settings, and its ``filter`` of system calls."""

    command: tuple[str, ...]
    filter: bytes
    limits: Limits
    drops_user: bool
    path: tuple[str, ...]

    @staticmethod
    def of(limits: Limits, *, packages: bool = False) -> Launcher:
        """Sandboxes with these limits; ``packages``: the installed packages of this interpreter can be imported.

        Raises UnavailableError where this machine cannot have one.
        """
        bubblewrap = shutil.which("bwrap")
        if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
            here = f"{sys.platform} on {platform.machine()}"
            raise UnavailableError(f"it needs Linux on x86_64 or aarch64, found {here}. Use another machine.")
        if bubblewrap is None:
            raise UnavailableError(f"bubblewrap is not installed (no bwrap on the path). {INSTALL_HINT}.")
        as_root = os.geteuid() == 0
        folders = _package_folders() if packages else []
        command = [
            *(bubblewrap, "--die-with-parent", "--clearenv"),
            *("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"),
            *(_root_rights() if as_root else _user_rights()),
            *_files(folders),
            *("--setenv", "PYTHONHASHSEED", "0", "--setenv", "OPENBLAS_NUM_THREADS", "1"),
        ]
        return Launcher(tuple(command), program_filter(platform.machine()), limits, as_root, tuple(folders))

    def arguments(self, filter_descriptor: int, told_descriptor: int) -> list[str]:
        """The whole command of one sandbox, which reads its filter from one descriptor, and writes to the other which
        process is the first inside."""
        settings = {
            "user": secrets.choice(_USERS) if self.drops_user else None,
            "limits": self.limits.of_resources,
            "output": MOST_OUTPUT,
            "path": self.path,
        }
        # -S -P: no search for packages; the fixed seed of hashes in place of -I, which would ignore it: an empty
        # environment isolates as well, and the same program has to behave the same tomorrow.
        python = [interpreter(), "-s", "-P", "-S", "-B", "-X", "utf8", _SCRIPT, json.dumps(settings)]
        return [*self.command, "--seccomp", str(filter_descriptor), "--info-fd", str(told_descriptor), "--", *python]


def _root_rights() -> list[str]:
    """As root no user namespace is needed; what is kept is what it takes to become another user inside."""
    return ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]


def _user_rights() -> list[str]:
    return ["--unshare-user", "--uid", str(_NOBODY), "--gid", str(_NOBODY)]


def _files(packages: list[str]) -> list[str]:
    """The file system: system libraries, Python's own, one null device, and /tmp; all but that read-only."""
    library, compiled = (Path(sysconfig.get_path(name, vars=_BASE)).resolve() for name in ("stdlib", "platstdlib"))
    # The folder above the standard library holds libpython too, where there is one.
    python = {library.parent, compiled.parent, Path(interpreter())}
    bound = [str(path) for path in sorted(python) if not any(map(path.is_relative_to, _LIBRARIES))]
    script = str(Path(__file__).with_name("inside.py"))
    # First, for Python may lie below it.
    arguments = ["--perms", "1777", "--size", str(FOLDER), "--tmpfs", "/tmp"]
    # Made by themselves, the folders above what is bound would be closed to anybody but root.
    above = {str(folder) for path in (*_LIBRARIES, *bound, *packages, "/dev/null") for folder in Path(path).parents}
    for folder in sorted(above - {"/", "/tmp"}):
        arguments += ["--dir", folder]
    for folder in _LIBRARIES:
        if os.path.islink(folder):
            arguments += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            arguments += ["--ro-bind", folder, folder]
    for path in bound:
        arguments += ["--ro-bind", path, path]
    for folder in _foreign_packages(library):
        arguments += ["--size", "4096", "--tmpfs", folder, "--remount-ro", folder]
    for folder in packages:
        arguments += ["--ro-bind", folder, folder]
    arguments += ["--ro-bind", script, _SCRIPT, "--dev-bind", "/dev/null", "/dev/null"]
    return [*arguments, "--remount-ro", "/", "--chdir", "/tmp"]


def _foreign_packages(library: Path) -> list[str]:
    """Folders of installed packages that lie among the standard library, and are no part of it."""
    places = (library / "site-packages", library / "dist-packages", library.parent / "python3/dist-packages")
    return [str(place) for place in places if place.is_dir()]


def _package_folders() -> list[str]:
    folders = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
    return sorted(str(folder) for folder in folders if folder.is_dir())


def interpreter() -> str:
    """The Python below a virtual environment: the one that sandboxes run."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))
