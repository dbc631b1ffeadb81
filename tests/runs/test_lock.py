"""One process writes a run; its death frees the lock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from loopwise.errors import RunBusyError
from loopwise.runs.lock import run_lock

HOLDER = """
import pathlib, subprocess, sys, time
from loopwise.runs.lock import run_lock
with run_lock(pathlib.Path(sys.argv[1])):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print(child.pid, flush=True)
    time.sleep(60)
"""


def test_is_free_again_afterwards(tmp_path):
    for _ in range(2):
        with run_lock(tmp_path):
            assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_is_free_again_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path):
        raise ZeroDivisionError
    with run_lock(tmp_path):
        pass


def test_twice_in_one_process(tmp_path):
    with run_lock(tmp_path), pytest.raises(RunBusyError, match=f"process {os.getpid()} is writing"), run_lock(tmp_path):
        pass


def test_another_process_holds_it_until_it_is_killed(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(RunBusyError, match=f"process {holder.pid} is writing this run"), run_lock(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        os.kill(child, 0)  # a worker that outlives it does not keep the lock
        with run_lock(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
        os.kill(child, signal.SIGKILL)
