"""The killable process: noise, state between calls, kills, orphans, and what is left behind."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loopwise.evaluate.contract import Batch, CallError, Outcome
from loopwise.evaluate.supervisor import WorkerReward
from loopwise.evaluate.worker import RULE_MEMORY


def batch(*completions: str, **columns: list[Any]) -> Batch:
    return Batch(["p"] * len(completions), list(completions), [[1]] * len(completions), columns)


def call(worker: WorkerReward, *completions: str, **columns: list[Any]) -> Outcome:
    return asyncio.run(worker(batch(*completions, **columns)))


@pytest.fixture
def worker(reward_file: Any) -> Iterator[Callable[..., WorkerReward]]:
    """Start workers on the function ``reward`` of a source text; all are closed at the end."""
    started: list[WorkerReward] = []

    def start(source: str, time_limit: float = 20.0) -> WorkerReward:
        target = {"kind": "file", "source": reward_file(source), "function": "reward"}
        started.append(WorkerReward(target, time_limit))
        return started[-1]

    yield start
    for one in started:
        one.close()


def rule_worker(name: str, **options: Any) -> WorkerReward:
    return WorkerReward({"kind": "rule", "source": name, "function": name, "options": options}, 20.0)


def alive(process: int) -> bool:
    """Whether a process runs; one that ended but was not reaped does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone_soon(process: int, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while alive(process) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(process)


def test_noise_does_not_break_the_protocol(worker: Any, capfd: pytest.CaptureFixture[str]) -> None:
    noisy = worker(
        """
        import os, subprocess, sys
        def reward(completions):
            print("to stdout")
            os.write(1, b"straight to one\\n")
            subprocess.run(["echo", "from a child"])
            print("to stderr", file=sys.stderr)
            return [1.0] * len(completions)
        """
    )
    assert call(noisy, "a").rewards == [1.0]
    out, err = capfd.readouterr()
    assert out == ""
    for text in ("to stdout", "straight to one", "from a child", "to stderr"):
        assert text in err


def test_one_process_serves_all_calls(worker: Any) -> None:
    counting = worker(
        """
        import os
        calls = 0
        async def reward(completions, log_metric, log_extra):
            global calls
            calls += 1
            log_metric("process", os.getpid())
            log_extra("object", [object() for _ in completions])
            return [calls] * len(completions)
        """
    )
    first, second = call(counting, "a"), call(counting, "b", "c")
    assert (first.rewards, second.rewards) == ([1.0], [2.0, 2.0])
    assert first.metrics == second.metrics
    assert second.extra["object"][0].startswith("<object object")


def test_async_rewards_keep_their_event_loop(worker: Any) -> None:
    looping = worker(
        """
        import asyncio
        loops = []
        async def reward(completions):
            loops.append(asyncio.get_running_loop())
            return [float(loops[0] is loops[-1])] * len(completions)
        """
    )
    assert [call(looping, "a").rewards for _ in range(2)] == [[1.0], [1.0]]


def test_neighbouring_files_can_be_imported(worker: Any, reward_file: Any) -> None:
    reward_file("VALUE = 0.25", "neighbour.py")
    assert call(worker("from neighbour import VALUE\ndef reward(completions): return [VALUE]"), "a").rewards == [0.25]


def test_any_text_and_large_batches_pass(worker: Any) -> None:
    echo = worker(
        "def reward(completions, log_extra):\n    log_extra('same', completions); return [1] * len(completions)"
    )
    texts = ["\ud800 lone surrogate", "\x00\n\u2028", "汉字 🎲", "x" * 3_000_000]
    assert call(echo, *texts).extra["same"] == texts


def test_columns(worker: Any) -> None:
    reward = worker("def reward(completions, level): return [sum(value) for value in level]")
    unused = {"when": [object()]}
    assert call(reward, "a", level=[np.array([1, 2])], **unused).rewards == [3.0]
    with pytest.raises(CallError, match='column "level" holds a set, which cannot be handed'):
        call(reward, "a", level=[{1}])
    with pytest.raises(CallError, match='needs column "level"; the columns it may see are: other, when'):
        call(reward, "a", other=[1], **unused)
    assert call(reward, "a", level=[[1.5]]).rewards == [1.5]


HANGS = {
    "sleep": "time.sleep(60)",
    "busy": "while True: pass",
    "deaf to SIGTERM": "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    while True: pass",
    "never awaited": "asyncio.run(asyncio.sleep(60))",
}


@pytest.mark.parametrize("hang", HANGS.values(), ids=HANGS)
def test_hangs_are_killed_and_the_next_call_works(worker: Any, hang: str) -> None:
    source = (
        f"import asyncio, signal, time\ndef reward(completions):\n    if 'ok' in completions: return [1.0]\n    {hang}"
    )
    hanging = worker(source, time_limit=0.5)
    started = time.monotonic()
    with pytest.raises(CallError, match=r"did not return within 0\.5 s") as failure:
        call(hanging, "a")
    assert failure.value.lost_worker
    assert time.monotonic() - started < 5
    assert call(hanging, "ok").rewards == [1.0]


@pytest.mark.parametrize(
    ("death", "status"),
    [
        ("os._exit(7)", "exit status 7"),
        ("os.kill(os.getpid(), 11)", "signal SIGSEGV"),
        ("os.closerange(3, 99)", "signal SIGKILL"),
    ],
)
def test_deaths_are_reported_and_the_next_call_works(worker: Any, death: str, status: str) -> None:
    dying = worker(f"import os\ndef reward(completions):\n    if 'ok' not in completions: {death}\n    return [1.0]")
    with pytest.raises(CallError, match=rf"its process ended \({status}") as failure:
        call(dying, "a")
    assert failure.value.lost_worker
    assert call(dying, "ok").rewards == [1.0]


def test_death_between_calls_goes_unnoticed(worker: Any) -> None:
    reward = worker("import os\ndef reward(completions): return [os.getpid()]")
    process = int(call(reward, "a").rewards[0])
    os.kill(process, signal.SIGKILL)
    assert gone_soon(process)
    assert call(reward, "a").rewards != [process]


GRANDCHILD = """
import pathlib, subprocess, sys, time
def reward(completions):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    pathlib.Path(completions[0]).write_text(str(child.pid))
    time.sleep(60 if completions[0].endswith("hang") else 0)
    return [1.0]
"""


@pytest.mark.parametrize("name", ["hang", "left behind"])
def test_grandchildren_die_too(worker: Any, tmp_path: Path, name: str) -> None:
    note = tmp_path / name
    spawning = worker(GRANDCHILD, time_limit=2.0)
    if name == "hang":
        with pytest.raises(CallError):
            call(spawning, str(note))
    else:
        call(spawning, str(note))
        assert alive(int(note.read_text()))
        spawning.close()
    assert gone_soon(int(note.read_text()))


def test_close_leaves_nothing(worker: Any) -> None:
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    reward = worker("import os\ndef reward(completions): return [os.getpid()]")
    process = int(call(reward, "a").rewards[0])
    assert alive(process)
    reward.close()
    reward.close()
    assert not Path(f"/proc/{process}").exists()
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_cancelling_a_call_kills_its_process(worker: Any, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    source = f"""
        import os, time
        def reward(completions):
            open({str(note)!r}, "w").write(str(os.getpid()))
            time.sleep(60)
        """
    hanging = worker(source)

    async def cancel() -> None:
        running = asyncio.create_task(hanging(batch("a")))
        while not (note.exists() and note.read_text()):
            await asyncio.sleep(0.02)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(asyncio.wait_for(cancel(), 20))
    assert gone_soon(int(note.read_text()))


def test_closing_cuts_off_a_running_call(worker: Any) -> None:
    hanging = worker("import time\ndef reward(completions): time.sleep(60)")

    def expect_failure() -> None:
        with pytest.raises(CallError):
            call(hanging, "a")

    caller = threading.Thread(target=expect_failure)
    caller.start()
    time.sleep(0.5)
    started = time.monotonic()
    hanging.close()
    caller.join(5)
    assert not caller.is_alive()
    assert time.monotonic() - started < 5


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
@pytest.mark.parametrize("end", ["time.sleep(60)", "while True: pass", "re.match('(a+)+$', 'a' * 60 + '!')"])
def test_the_worker_dies_with_its_parent(reward_file: Any, tmp_path: Path, end: str) -> None:
    note = tmp_path / "pid"
    source = reward_file(
        f"""
        import os, re, time
        def reward(completions):
            open({str(note)!r}, "w").write(str(os.getpid()))
            {end}
        """
    )
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import asyncio; from loopwise.evaluate.contract import Batch\n"
            "from loopwise.evaluate.supervisor import WorkerReward\n"
            f"worker = WorkerReward(dict(kind='file', source={source!r}, function='reward'), 60)\n"
            "asyncio.run(worker(Batch(['p'], ['c'], [[]], {})))",
        ]
    )
    deadline = time.monotonic() + 20
    while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process = int(note.read_text())
    assert alive(process)
    parent.kill()
    parent.wait()
    assert gone_soon(process)


def test_the_worker_loads_nothing_heavy() -> None:
    code = "import sys, loopwise.evaluate.worker; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "pydantic", "scipy", "asyncio"} & set(loaded)


def test_only_rules_have_a_limit_of_memory(worker: Callable[..., WorkerReward]) -> None:
    source = """
        import resource
        def reward(completions, **_):
            return [float(resource.getrlimit(resource.RLIMIT_AS)[0]) for _ in completions]
    """
    own = float(resource.getrlimit(resource.RLIMIT_AS)[0])
    theirs = worker(source)
    assert call(theirs, "x").rewards == [own]
    rule = rule_worker("regex", pattern="a")
    try:
        assert call(rule, "a").rewards == [1.0]
        assert rule._process is not None
        limits = Path(f"/proc/{rule._process.popen.pid}/limits")
        if not limits.exists():
            pytest.skip("needs /proc")
        assert f"Max address space         {RULE_MEMORY} " in limits.read_text()
    finally:
        rule.close()
