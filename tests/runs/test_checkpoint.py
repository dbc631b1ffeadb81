"""A checkpoint is whole or not there; a damaged one is found, set aside, and the one before is used."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from loopwise.errors import CheckpointError
from loopwise.runs.checkpoint import MANIFEST, CheckpointStore


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints")


def save(store, name, content=b"weights"):
    def write(folder):
        (folder / "weights.bin").write_bytes(content)
        (folder / "policy").mkdir()
        (folder / "policy" / "config.json").write_text("{}")

    return SimpleNamespace(name=name, hash=store.save(name, write))


def names(store):
    return sorted(path.name for path in store.folder.iterdir())


def flip_a_byte(folder):
    content = bytearray((folder / "weights.bin").read_bytes())
    content[3] ^= 1
    (folder / "weights.bin").write_bytes(content)


def swap_for_a_link(folder):
    (folder / "weights.bin").rename(folder.parent.parent / "elsewhere")
    (folder / "weights.bin").symlink_to(folder.parent.parent / "elsewhere")


def flip_in_manifest(folder):
    (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes().replace(b'"version": 1', b'"version": 2'))


def remove_all(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


DAMAGE = {
    "weights.bin was changed": flip_a_byte,
    "weights.bin has 3 bytes, its manifest says 7": lambda folder: os.truncate(folder / "weights.bin", 3),
    "weights.bin is not a plain file": swap_for_a_link,
    "weights.bin is missing": lambda folder: (folder / "weights.bin").unlink(),
    "manifest.json is missing": lambda folder: (folder / MANIFEST).unlink(),
    "manifest.json is not the one that was committed": flip_in_manifest,
    "policy/extra.txt is not in its manifest": lambda folder: (folder / "policy" / "extra.txt").write_text("?"),
    "the folder is missing": remove_all,
}


class TestSave:
    def test_is_verified(self, store):
        row = save(store, "round-0")
        folder = store.verify("round-0", row.hash)
        assert (folder / "weights.bin").read_bytes() == b"weights"
        assert names(store) == ["round-0"]

    def test_same_content_same_hash(self, store):
        first, second = save(store, "round-0"), save(store, "round-0")
        assert first.hash == second.hash
        assert save(store, "round-1").hash == first.hash
        assert save(store, "round-2", b"other").hash != first.hash

    @pytest.mark.parametrize("damage", [lambda folder: None, flip_a_byte], ids=["sound", "damaged"])
    @pytest.mark.parametrize("content", [b"weights", b"other"])
    def test_again_replaces_what_is_there(self, store, damage, content):
        save(store, "round-0")
        damage(store.folder / "round-0")
        row = save(store, "round-0", content)
        assert (store.verify("round-0", row.hash) / "weights.bin").read_bytes() == content
        assert names(store) == ["round-0"]

    def test_that_fails_leaves_nothing(self, store):
        row = save(store, "round-0")

        def write(folder):
            (folder / "weights.bin").write_bytes(b"half")
            raise RuntimeError("out of memory")

        with pytest.raises(RuntimeError, match="out of memory"):
            store.save("round-0", write)
        assert names(store) == ["round-0"]
        store.verify("round-0", row.hash)

    def test_takes_plain_files_only(self, store):
        with pytest.raises(ValueError, match="plain files"):
            store.save("a", lambda folder: (folder / "link").symlink_to("/"))
        with pytest.raises(ValueError, match=r"its own manifest\.json"):
            store.save("a", lambda folder: (folder / MANIFEST).write_text("{}"))

    @pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", ".tmp-a", "quarantine"])
    def test_refuses_names_that_are_no_folder_of_its_own(self, store, name):
        with pytest.raises(ValueError, match="cannot name a checkpoint"):
            save(store, name)

    def test_everything_is_on_the_disk_before_it_takes_its_name(self, store, monkeypatch):
        calls = []
        real_rename, real_fsync = os.rename, os.fsync

        def rename(source, target):
            calls.append("rename")
            real_rename(source, target)

        def fsync(descriptor):
            calls.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
            real_fsync(descriptor)

        monkeypatch.setattr(os, "rename", rename)
        monkeypatch.setattr(os, "fsync", fsync)
        save(store, "round-0")
        before, after = calls[: calls.index("rename")], calls[calls.index("rename") + 1 :]
        assert {"weights.bin", "config.json", "policy"} <= set(before)
        assert before[-2:] == [MANIFEST, ".tmp-round-0"]
        assert after == ["checkpoints"]


class TestDamage:
    @pytest.mark.parametrize("fault", DAMAGE)
    def test_is_found_set_aside_and_the_one_before_used(self, store, fault):
        rows = [save(store, "round-1"), save(store, "round-0", b"before")]
        DAMAGE[fault](store.folder / "round-1")
        with pytest.raises(CheckpointError, match=fault):
            store.verify("round-1", rows[0].hash)
        told = []
        row, folder = store.load_newest(rows, lambda name, reason: told.append((name, reason)))
        assert (row, folder) == (rows[1], store.folder / "round-0")
        [(name, reason)] = told
        assert name == "round-1"
        assert fault in reason
        assert not (store.folder / "round-1").exists()
        assert (store.folder / "quarantine" / "round-1-1").exists() == (fault != "the folder is missing")

    def test_a_sound_newest_one_is_used_and_nothing_told(self, store):
        rows = [save(store, "round-1"), save(store, "round-0")]
        assert store.load_newest(rows, pytest.fail) == (rows[0], store.folder / "round-1")

    def test_no_rows(self, store):
        assert store.load_newest([], pytest.fail) is None

    def test_all_bad(self, store):
        rows = [save(store, "round-1"), save(store, "round-0")]
        for row in rows:
            flip_a_byte(store.folder / row.name)
        with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints(.|\n)*round-0(.|\n)*another --out"):
            store.load_newest(rows, lambda name, reason: None)

    def test_quarantine_keeps_every_one_of_a_name(self, store):
        for number in (1, 2):
            save(store, "round-0")
            assert store.quarantine("round-0") == store.folder / "quarantine" / f"round-0-{number}"
        assert names(store) == ["quarantine"]

    def test_what_may_not_be_read_is_not_called_damaged(self, store, monkeypatch):
        row = save(store, "round-0")

        def refuse(*arguments):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("loopwise.runs.checkpoint._sha256", refuse)
        with pytest.raises(PermissionError):
            store.load_newest([row], pytest.fail)
        assert names(store) == ["round-0"]

    def test_a_bad_sector_is_damage(self, store, monkeypatch):
        row = save(store, "round-0")

        def fail(path):
            raise OSError(5, "Input/output error", str(path))

        monkeypatch.setattr("loopwise.runs.checkpoint._sha256", fail)
        with pytest.raises(CheckpointError, match="cannot be read \\(Input/output error\\)"):
            store.verify("round-0", row.hash)


class TestCollect:
    def test_leaves_the_newest_committed(self, store):
        for name in ("c1", "c2", "c3", "c4", "uncommitted"):
            save(store, name)
        save(store, "bad")
        store.quarantine("bad")
        (store.folder / ".tmp-c5").mkdir()
        store.collect(["c5", "c4", "c3", "c2", "c1"])
        assert names(store) == ["c3", "c4", "quarantine"]

    def test_counts_only_those_that_are_there(self, store):
        for name in ("c1", "c2", "c3"):
            save(store, name)
        store.quarantine("c3")
        store.collect(["c3", "c2", "c1"])
        assert names(store) == ["c1", "c2", "quarantine"]

    def test_without_a_folder(self, store):
        store.collect(["c1"])

    def test_keeps_at_least_one(self, tmp_path):
        with pytest.raises(ValueError, match="at least 1"):
            CheckpointStore(tmp_path, keep=0)


WRITER = """
import itertools, pathlib, sys
from loopwise.runs.checkpoint import CheckpointStore
store = CheckpointStore(pathlib.Path(sys.argv[1]))

def write(folder):
    (folder / "part").mkdir()
    for number in range(5):
        (folder / "part" / str(number)).write_bytes(bytes([number]) * 50_000)

for number in itertools.count(int(sys.argv[2])):
    name = f"c{number % 4}"
    print(name, store.save(name, write), flush=True)
    store.collect([f"c{past % 4}" for past in range(number, number - 3, -1)])
"""


def test_sigkill_leaves_only_whole_checkpoints(store):
    """Whatever bears a checkpoint's name verifies, and what was committed before the kill is still there."""
    chance = random.Random(0)
    hashes = set()
    for attempt in range(12):
        command = [sys.executable, "-c", WRITER, str(store.folder), str(attempt)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        first = process.stdout.readline().split()
        time.sleep(chance.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        lines = [first, *(line.split() for line in process.stdout.read().splitlines())]
        process.stdout.close()
        process.wait()
        hashes |= {line[1] for line in lines}
        [manifest_hash] = hashes
        found = [path.name for path in store.folder.iterdir() if not path.name.startswith(".tmp-")]
        for name in found:
            store.verify(name, manifest_hash)
        assert lines[-1][0] in found
