"""A full disk pauses; room lets it go on; nothing committed is lost."""

from __future__ import annotations

import errno
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import sqlalchemy

from loopwise.errors import DiskFullError
from loopwise.runs.checkpoint import CheckpointStore
from loopwise.runs.disk import is_disk_full, with_room
from loopwise.runs.journal import Journal, Place
from loopwise.types import Problem


def full(code=errno.ENOSPC):
    return OSError(code, "No space left on device")


class Failing:
    """An action that fails ``times`` times."""

    def __init__(self, times, error=None):
        self.times, self.error = times, error or full()

    def __call__(self):
        self.times -= 1
        if self.times >= 0:
            raise self.error
        return "done"


def test_waits_until_there_is_room(tmp_path):
    told = []
    assert with_room(Failing(3), place=tmp_path, wait_seconds=9, on_pause=told.append, poll=0.001) == "done"
    [message] = told
    assert message.startswith(f"{tmp_path}: the disk is full (")
    assert "make room within 9 seconds" in message


def test_says_nothing_where_there_is_room(tmp_path):
    assert with_room(Failing(0), place=tmp_path, wait_seconds=0, on_pause=pytest.fail) == "done"


def test_gives_up(tmp_path):
    told = []
    with pytest.raises(DiskFullError, match=r"Nothing that was committed is lost.*--resume") as caught:
        with_room(Failing(10**9), place=tmp_path / "later", wait_seconds=0.05, on_pause=told.append, poll=0.01)
    assert len(told) == 1
    assert caught.value.exit_code == 75
    assert isinstance(caught.value.__cause__, OSError)


def test_other_errors_are_not_waited_for(tmp_path):
    with pytest.raises(OSError, match="Input/output"):
        with_room(
            Failing(1, OSError(errno.EIO, "Input/output error")), place=tmp_path, wait_seconds=9, on_pause=pytest.fail
        )


def raised(raising):
    """The error that ``raising`` raises, with its chain."""
    with pytest.raises(Exception) as caught:
        raising()
    return caught.value


def fail_because_full():
    try:
        raise full()
    except OSError as error:
        raise RuntimeError("could not save") from error


def fail_while_full():
    try:
        raise full()
    except OSError:
        raise KeyError("something else") from None


def test_is_found_in_the_chain_of_causes():
    assert is_disk_full(full(errno.EDQUOT))
    assert is_disk_full(raised(fail_because_full))
    assert not is_disk_full(raised(fail_while_full)), "a suppressed context is not a cause"


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not mount or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    with (folder / "fill").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return folder / "fill"


def test_a_checkpoint_on_a_full_disk(small_disk):
    store = CheckpointStore(small_disk / "checkpoints")
    before = store.save("before", lambda folder: (folder / "a").write_bytes(b"a"))
    filler = fill(small_disk)
    told = []

    def make_room(message):
        told.append(message)
        filler.unlink()

    def save():
        tensors = {"a": np.arange(100_000, dtype=np.float32)}
        return store.save("after", lambda folder: safetensors.numpy.save_file(tensors, folder / "weights.safetensors"))

    after = with_room(save, place=small_disk, wait_seconds=9, on_pause=make_room, poll=0.01)
    assert len(told) == 1
    assert "0.0 MiB left" in told[0]
    store.verify("before", before)
    store.verify("after", after)
    assert sorted(path.name for path in store.folder.iterdir()) == ["after", "before"]


@pytest.mark.parametrize("closed", [False, True], ids=["while open", "just opened"])
def test_a_journal_on_a_full_disk(small_disk, make_sample, closed):
    """SQLite says it in two ways: its log cannot grow, or (just opened) its shared-memory file cannot."""
    path, place = small_disk / "journal.db", Place("run", 0, 0, "train")
    journal = Journal.open(path, create=True)
    journal.create_run("run", "improve", {}, "", {}, {}, 1)
    journal.add_problems("run", [Problem("p0", "1+1=")])
    if closed:
        journal.close()
    filler = fill(small_disk)
    told = []

    def make_room(message):
        told.append(message)
        filler.unlink()

    samples = [make_sample(problem_id="p0", text="x" * 200_000)]
    with_room(lambda: journal.add_samples(place, samples), place=path, wait_seconds=9, on_pause=make_room, poll=0.01)
    assert len(told) == 1
    assert list(journal.samples_at(place).values()) == samples
    with journal._engine.connect() as connection:
        assert connection.execute(sqlalchemy.text("PRAGMA integrity_check")).scalar_one() == "ok"
    journal.close()
