"""Checkpoints on disk: written whole or not at all, verified before use, set aside when damaged."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from loopwise.errors import CheckpointError
from loopwise.runs.files import TEMPORARY, fsync

MANIFEST = "manifest.json"
QUARANTINE = "quarantine"


class Committed(Protocol):
    """A checkpoint some commit names: its folder and the hash of its manifest."""

    @property
    def name(self) -> str: ...
    @property
    def hash(self) -> str: ...


Row = TypeVar("Row", bound=Committed)


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints in ``folder``, which holds nothing else. ``collect`` leaves the newest ``keep`` (at least 1)."""

    folder: Path
    keep: int = 2

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"keep must be at least 1, found {self.keep}: a run without a checkpoint is lost")

    def save(self, name: str, write: Callable[[Path], None]) -> str:
        """Have ``write`` fill a folder and keep it as ``name``. Returns the SHA-256 of its manifest, for the commit.

        The folder takes its name only when every byte of it is on the disk. A folder of that name already there is
        left as it is where it is equal, and replaced where it is not: it is what a killed process left behind
        between writing and committing. What ``write`` raises is raised on, with nothing left behind.
        """
        target = self._path(name)
        temporary = self.folder / f"{TEMPORARY}{name}"
        if not self.folder.exists():
            self.folder.mkdir(parents=True)
            fsync(self.folder.parent)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            write(temporary)
            manifest_hash = _seal(temporary)
            if not self._holds(name, manifest_hash):
                if target.exists():
                    self._delete(target)
                os.rename(temporary, target)
            fsync(self.folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return manifest_hash

    def verify(self, name: str, expected_hash: str) -> Path:
        """The folder of checkpoint ``name`` after every byte of it was checked.

        Raises CheckpointError naming the file and its fault.
        """
        folder = self._path(name)
        try:
            fault = _fault(folder, expected_hash)
        except PermissionError:
            raise  # says nothing about the bytes: a sound checkpoint must not be set aside for it
        except OSError as error:
            fault = f"{error.filename or folder}: cannot be read ({error.strerror or error})"
        if fault:
            raise CheckpointError(f"{folder}: {fault}. Use the checkpoint before it.")
        return folder

    def quarantine(self, name: str) -> Path:
        """Move checkpoint ``name`` out of the way, for a person to look at. Returns where it lies now."""
        folder = self.folder / QUARANTINE
        folder.mkdir(exist_ok=True)
        places = (folder / f"{name}-{number}" for number in itertools.count(1))
        place = next(place for place in places if not place.exists())
        os.rename(self._path(name), place)
        fsync(folder)
        fsync(self.folder)
        return place

    def collect(self, committed: Sequence[str]) -> None:
        """Delete what no commit names, temporary folders, and committed checkpoints but the newest ``keep``.

        ``committed`` is newest first, as the journal lists them.
        """
        if not self.folder.is_dir():
            return
        there = [name for name in committed if self._path(name).is_dir()]
        stay = {QUARANTINE, *there[: self.keep]}
        for path in list(self.folder.iterdir()):
            if path.is_dir() and path.name not in stay:
                self._delete(path)

    def load_newest(self, rows: Sequence[Row], on_bad: Callable[[str, str], None]) -> tuple[Row, Path] | None:
        """The first of ``rows`` (newest first) whose folder is sound, with that folder; None where there are no rows.

        A damaged one is put in quarantine and told to ``on_bad(name, reason)``. Raises CheckpointError where all are.
        """
        faults: list[str] = []
        for row in rows:
            try:
                return row, self.verify(row.name, row.hash)
            except CheckpointError as error:
                faults.append(str(error))
                if self._path(row.name).exists():
                    self.quarantine(row.name)
                on_bad(row.name, str(error))
        if not faults:
            return None
        listed = "\n  ".join(faults)
        raise CheckpointError(
            f"{self.folder}: none of the {len(faults)} checkpoints can be used:\n  {listed}\n"
            f"What is left of them lies in {self.folder / QUARANTINE}. Restore one from a backup under its name, "
            "or start the run again with another --out."
        )

    def _path(self, name: str) -> Path:
        if not name or name != Path(name).name or name.startswith(".") or name == QUARANTINE:
            raise ValueError(f'"{name}" cannot name a checkpoint: use letters, digits and dashes')
        return self.folder / name

    def _holds(self, name: str, manifest_hash: str) -> bool:
        try:
            self.verify(name, manifest_hash)
        except CheckpointError:
            return False
        return True

    def _delete(self, path: Path) -> None:
        """Delete a folder. It loses its name first, so that a kill half-way leaves no half checkpoint."""
        doomed = path
        if not path.name.startswith(TEMPORARY):
            doomed = self.folder / f"{TEMPORARY}old-{path.name}"
            shutil.rmtree(doomed, ignore_errors=True)
            os.rename(path, doomed)
        shutil.rmtree(doomed)


def _seal(folder: Path) -> str:
    """Force everything in ``folder`` onto the disk, the manifest last. Returns the SHA-256 of the manifest."""
    files = {}
    for name, path in _files(folder).items():
        if name == MANIFEST or not _is_plain(path):
            raise ValueError(
                f"{path}: a checkpoint holds plain files, and writes its own {MANIFEST}. Rename or copy it."
            )
        fsync(path)
        files[name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    content = json.dumps({"version": 1, "files": files}, sort_keys=True, indent=1).encode()
    for subfolder, _, _ in os.walk(folder):
        fsync(Path(subfolder))
    manifest = folder / MANIFEST
    manifest.write_bytes(content)
    fsync(manifest)
    fsync(folder)
    return hashlib.sha256(content).hexdigest()


def _fault(folder: Path, expected_hash: str) -> str | None:
    """What is wrong with the checkpoint in ``folder``; None where it is what was committed."""
    if not folder.is_dir():
        return "the folder is missing"
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return f"{MANIFEST} is missing"
    content = manifest.read_bytes()
    if hashlib.sha256(content).hexdigest() != expected_hash:
        return f"{MANIFEST} is not the one that was committed"
    listed = json.loads(content)["files"]
    found = _files(folder)
    del found[MANIFEST]
    for name in sorted(listed.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in listed:
            return f"{name} is not in its manifest"
        if not _is_plain(found[name]):
            return f"{name} is not a plain file"
        if (size := found[name].stat().st_size) != listed[name]["bytes"]:
            return f"{name} has {size:,} bytes, its manifest says {listed[name]['bytes']:,}"
        if _sha256(found[name]) != listed[name]["sha256"]:
            return f"{name} was changed after it was written (another SHA-256)"
    return None


def _files(folder: Path) -> dict[str, Path]:
    """All that is no folder inside ``folder``, by its name relative to it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix(): path for path in paths}


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
