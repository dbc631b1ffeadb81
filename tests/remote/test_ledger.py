"""The ledger: on the disk before use, read again, whole after a kill; and a run killed half-way pays each call once."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.remote.server import Answer, Asked, FakeServer, completion

from loopwise.remote.client import Endpoint
from loopwise.remote.ledger import Entry, Ledger, Tokens, question_key
from loopwise.runtime import run_async

Opened = Callable[..., Endpoint]


def entry(key: str, text: str = "fine", endpoint: str = "judge") -> Entry:
    return Entry(key, endpoint, "place", text, "stop", 10, 5)


def attached(folder: Path, **more: Any) -> Ledger:
    ledger = Ledger()
    ledger.attach(folder, **more)
    return ledger


def ask(endpoint: Endpoint, place: str, **more: Any) -> str:
    message = [{"role": "user", "content": "hello"}]
    return run_async(endpoint.chat(message, place=place, max_tokens=8, **more)).text


def test_what_was_paid_before_the_folder_is_written_into_it(tmp_path: Path) -> None:
    ledger = Ledger()
    ledger.add(entry("a"))
    assert ledger.find("a") == entry("a")
    assert not list(tmp_path.iterdir())
    ledger.attach(tmp_path)
    ledger.add(entry("b", "half a \ud800 pair"))
    ledger.close()
    again = attached(tmp_path)
    assert [again.find(key) for key in "abc"] == [entry("a"), entry("b", "half a \ud800 pair"), None]
    assert again.spent("judge") == again.before("judge") == Tokens(2, 20, 10)
    again.close()


def test_a_torn_line_is_ignored_and_spoils_no_other(tmp_path: Path) -> None:
    with_two = attached(tmp_path)
    with_two.add(entry("a"))
    with_two.add(entry("b"))
    with_two.close()
    path = tmp_path / "remote.jsonl"
    whole = path.read_bytes()
    ends = {"a": whole.index(b"\n"), "b": len(whole) - 1}
    for cut in (0, 1, 50, *(end + more for end in ends.values() for more in (-1, 0, 1)), ends["a"] + 50):
        path.write_bytes(whole[:cut])
        ledger = attached(tmp_path)
        known = [key for key in "ab" if ledger.find(key)]
        assert known == [key for key, end in ends.items() if cut >= end]
        ledger.add(entry("c"))
        ledger.close()
        ledger = attached(tmp_path)
        assert [key for key in "abc" if ledger.find(key)] == [*known, "c"]
        ledger.close()


def test_lines_that_are_no_entries_are_ignored(tmp_path: Path) -> None:
    rows = ["[]", "5", '{"key": "a"}', json.dumps({**vars(entry("b")), "read": "many"}), "\x00\x00"]
    (tmp_path / "remote.jsonl").write_text("\n".join([*rows, json.dumps(vars(entry("c")))]) + "\n")
    ledger = attached(tmp_path)
    assert [ledger.find(key) for key in "abc"] == [None, None, entry("c")]
    ledger.close()


def test_each_process_writes_a_file_and_reads_all(tmp_path: Path) -> None:
    for settings in ({}, {"rank": 1, "world": 2}, {"run": "control-gold"}, {"run": "control-gold", "rank": 1}):
        ledger = attached(tmp_path, **settings)
        ledger.add(entry(str(settings)))
        ledger.close()
    names = {"remote.jsonl", "remote-1.jsonl", "remote-control-gold.jsonl", "remote-control-gold-1.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == names
    (tmp_path / "remote-2.jsonl").write_bytes((tmp_path / "remote.jsonl").read_bytes())  # the same answer is paid once
    ledger = attached(tmp_path)
    assert ledger.spent("judge").calls == 4
    ledger.attach(tmp_path)  # harmless
    with pytest.raises(RuntimeError, match=r"is written to .*remote\.jsonl already"):
        ledger.attach(tmp_path, 1)
    ledger.close()


def test_an_answer_is_on_the_disk_before_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(file), sync(file))[1])
    ledger = attached(tmp_path)
    before = len(synced)
    ledger.add(entry("a"))
    assert len(synced) == before + 1
    assert json.loads((tmp_path / "remote.jsonl").read_text())["key"] == "a"
    ledger.close()


def test_a_full_disk_pauses_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[OSError] = []

    def store(action: Callable[[], None]) -> None:
        for _ in range(3):
            try:
                return action()
            except OSError as error:
                pauses.append(error)
        raise AssertionError("never any room")

    write = os.write

    def half(file: int, data: Any) -> int:
        if len(pauses) < 2:
            write(file, bytes(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, "full")
        return write(file, data)

    ledger = attached(tmp_path, store=store)
    monkeypatch.setattr(os, "write", half)
    ledger.add(entry("a"))
    ledger.add(entry("b"))
    ledger.close()
    assert len(pauses) == 2
    again = attached(tmp_path)
    assert [again.find(key) for key in "ab"] == [entry("a"), entry("b")]
    assert again.spent("judge").calls == 2
    again.close()


def test_the_key_tells_apart_all_that_matters() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
    keys = [
        question_key("u", body, "p"),
        question_key("v", body, "p"),
        question_key("u", body, "q"),
        question_key("u", body | {"model": "n"}, "p"),
        question_key("u", body | {"temperature": 0.5}, "p"),
    ]
    assert len(set(keys)) == 5
    assert question_key("u", dict(reversed(body.items())), "p") == keys[0]


def test_the_same_question_at_the_same_place_is_paid_once(server: FakeServer, opened: Opened, tmp_path: Path) -> None:
    endpoint = opened()
    trial = ask(endpoint, "trial")
    endpoint.attach(tmp_path)
    assert ask(endpoint, "trial") == trial
    ask(endpoint, "one")
    ask(endpoint, "two")
    ask(endpoint, "two", temperature=1.0)
    endpoint.close()
    assert len(server.asked) == 4
    resumed = opened()
    resumed.attach(tmp_path)
    for place in ("trial", "one", "two"):
        ask(resumed, place)
    assert len(server.asked) == 4
    assert resumed.spent.calls == 4


def test_what_was_spent_before_counts_on_resume(server: FakeServer, opened: Opened, tmp_path: Path) -> None:
    first = opened(most_tokens=30)
    first.attach(tmp_path)
    ask(first, "a")
    ask(first, "b")
    first.close()
    resumed = opened(most_tokens=30)
    assert resumed.exhausted is None
    resumed.attach(tmp_path)
    assert resumed.exhausted == 'endpoint "local" has spent 30 tokens (most_tokens: 30)'


def test_ranks_share_what_is_left(server: FakeServer, opened: Opened, tmp_path: Path) -> None:
    first = opened(most_tokens=75)
    first.attach(tmp_path)
    ask(first, "a")
    first.close()
    ranks = [opened(most_tokens=75) for _ in range(2)]
    for rank, endpoint in enumerate(ranks):
        endpoint.attach(tmp_path, rank=rank, world=2)
    for rank, endpoint in enumerate(ranks):
        ask(endpoint, f"first of {rank}")
        assert endpoint.exhausted is None
        ask(endpoint, f"second of {rank}")
        assert endpoint.exhausted is not None


RUN = """
import sys
from pathlib import Path
from loopwise.config.blocks import EndpointConfig
from loopwise.remote.client import open_endpoints
from loopwise.runtime import run_async

url, folder = sys.argv[1:]
judge = open_endpoints({"judge": EndpointConfig(url=url, model="m", concurrency=1, key_env="MY_KEY")})["judge"]
judge.attach(Path(folder))
for number in range(8):
    message = [{"role": "user", "content": f"question {number}"}]
    print(run_async(judge.chat(message, place=str(number), max_tokens=8)).text, flush=True)
judge.close()
"""


def test_a_run_killed_half_way_pays_for_each_answer_once(server: FakeServer, tmp_path: Path) -> None:
    def run() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", RUN, server.url, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "MY_KEY": "sesame"},
        )

    running: list[subprocess.Popen[str]] = []

    def reply(asked: Asked, number: int) -> Answer:
        if number == 5:  # instead of an answer
            running[0].send_signal(signal.SIGKILL)
            running[0].wait()
        return completion(f"answer to {asked.said}")

    server.reply = reply
    running.append(run())
    killed, _ = running[0].communicate(timeout=60)
    assert running[0].returncode == -signal.SIGKILL
    assert killed.splitlines() == [f"answer to question {n}" for n in range(4)]
    resumed, _ = run().communicate(timeout=60)
    assert resumed.splitlines() == [f"answer to question {n}" for n in range(8)]
    counts = [sum(asked.said == f"question {n}" for asked in server.asked) for n in range(8)]
    assert counts == [1, 1, 1, 1, 2, 1, 1, 1]  # the one that was never answered is asked again
    assert "sesame" not in (tmp_path / "remote.jsonl").read_text()
