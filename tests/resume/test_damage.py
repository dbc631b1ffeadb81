"""A damaged checkpoint is found, put in quarantine, and the one before is used; a full disk pauses a run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.resume.harness import recipe
from tests.resume.test_kill import content

from loopwise.errors import CheckpointError, DiskFullError, LoopwiseError, ResumeError
from loopwise.observer import Observer
from loopwise.runs.journal import Journal
from loopwise.stages.finetune import tune


class StopAfter(Observer):
    """Ends a run as a kill would, after so many rounds."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.notes: list[str] = []

    def round_finished(self, run_id: str, summary: Any) -> None:
        if summary["round"] == self.rounds:
            raise InterruptedError("stopped by the test")

    def note(self, level: str, message: str) -> None:
        self.notes.append(message)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "out"
    tune(recipe("tune", out.parent), out)
    return content(out)


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """The same run, ended after two of three rounds."""
    out = tmp_path / "out"
    with pytest.raises(InterruptedError):
        tune(recipe("tune", tmp_path), out, observer=StopAfter(2))
    return out


def newest(out: Path) -> Path:
    with Journal.open(out / "journal.db", read_only=True) as journal:
        return out / "checkpoints" / "tune" / journal.checkpoints("tune")[0].name


def flip_byte(folder: Path) -> None:
    file = next(folder.glob("policies/*/model.safetensors"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def truncate(folder: Path) -> None:
    file = folder / "state" / "state.safetensors"
    os.truncate(file, file.stat().st_size - 7)


def remove_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize("damage", [flip_byte, truncate, remove_manifest])
def test_damaged_checkpoint_is_quarantined_and_the_one_before_used(
    damage: Callable[[Path], None], stopped: Path, whole: dict[str, Any]
) -> None:
    folder = newest(stopped)
    damage(folder)
    observer = StopAfter(99)
    tune(recipe("tune", stopped.parent), stopped, resume=True, observer=observer)
    assert content(stopped) == whole
    assert any(folder.name in note and "damaged" in note for note in observer.notes)
    assert list((stopped / "checkpoints" / "tune" / "quarantine").glob(f"{folder.name}*"))


def test_all_checkpoints_damaged_is_a_clear_error(stopped: Path) -> None:
    for folder in (stopped / "checkpoints" / "tune").glob("r*"):
        remove_manifest(folder)
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints can be used"):
        tune(recipe("tune", stopped.parent), stopped, resume=True)


def test_another_configuration_or_thread_count_is_not_resumed(stopped: Path) -> None:
    changed = recipe("tune", stopped.parent).model_copy(update={"seed": 5})
    with pytest.raises(ResumeError, match='different now: "seed"'):
        tune(changed, stopped, resume=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 14 MiB: room for the journal and a few checkpoints of 5 MB, not for the whole run."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=14m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("may not mount a tmpfs here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_full_disk_pauses_and_goes_on_when_there_is_room(small_disk: Path, whole: dict[str, Any]) -> None:
    small = recipe("tune", small_disk.parent)
    small = small.model_copy(update={"runtime": small.runtime.model_copy(update={"disk_wait": 0.0})})
    out = small_disk / "out"
    observer = StopAfter(99)
    with pytest.raises(DiskFullError, match="resume") as caught:
        tune(small, out, observer=observer)
    assert isinstance(caught.value, LoopwiseError)
    assert caught.value.exit_code == 75
    assert any(str(small_disk) in note for note in observer.notes)
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    tune(small, out, resume=True)
    assert content(out) == whole


def test_full_disk_waits_for_room(small_disk: Path, whole: dict[str, Any]) -> None:
    class MakeRoom(Observer):
        def note(self, level: str, message: str) -> None:
            subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)

    waiting = recipe("tune", small_disk.parent)
    waiting = waiting.model_copy(update={"runtime": waiting.runtime.model_copy(update={"disk_wait": 60.0})})
    out = small_disk / "out"
    tune(waiting, out, observer=MakeRoom())
    assert content(out)["weights"] == whole["weights"]
