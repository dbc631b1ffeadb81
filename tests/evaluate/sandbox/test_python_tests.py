"""The source ``python_tests``: from rows and completions to rewards and critiques."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import yaml
from tests.docs.documents import ROOT, code_blocks, named_files

from loopwise.config.blocks import RewardConfig
from loopwise.errors import ConfigError
from loopwise.evaluate.loading import load_feedback
from loopwise.evaluate.parts import Judged
from loopwise.evaluate.programs import PythonTests, python_code
from loopwise.evaluate.sandbox.outcomes import ProgramOutcome, Verdict
from loopwise.evaluate.sandbox.pool import SandboxPool
from loopwise.evaluate.sources import Surroundings, sources
from loopwise.types import Problem, Sample

ADDITION = {
    "function": "add",
    "tests": [{"input": [1, 2], "output": 3}, {"input": [2, 2], "output": 4}, {"input": [-1, 0.5], "output": -0.5}],
}
RIGHT, PRODUCT = "def add(a, b):\n    return a + b", "def add(a, b):\n    return a * b"
Make = Callable[..., PythonTests]


@pytest.fixture
def make(sandboxes: None) -> Iterator[Make]:
    """Build the judge, and close it afterwards."""
    made: list[PythonTests] = []

    def make(**options: Any) -> PythonTests:
        judge = sources()["python_tests"].make(Surroundings(), {"workers": 1, "seconds": 10} | options)
        assert isinstance(judge, PythonTests)
        made.append(judge)
        return judge

    yield make
    for judge in made:
        judge.close()


def judged(judge: PythonTests, *pairs: tuple[Mapping[str, Any], str], prompt: Any = "") -> Judged:
    problems = [Problem(f"p{place}", prompt, row) for place, (row, _) in enumerate(pairs)]
    samples = [Sample(f"s{n}", f"p{n}", n, 0, "policy", text, "stop") for n, (_, text) in enumerate(pairs)]
    return asyncio.run(judge.judge(problems, samples))


def test_rewards_and_critiques(make: Make) -> None:
    found = judged(make(), (ADDITION, RIGHT), (ADDITION, PRODUCT), (ADDITION, "I do not know."), (ADDITION, ""))
    assert found.rewards == [1.0, 0.0, 0.0, 0.0]
    assert found.critiques == [
        None,
        "Test 1 of 3: add(1, 2) gave 2.",
        "The program raised SyntaxError: invalid syntax (program.py, line 1).",
        "The program raised NameError: there is no function add.",
    ]
    assert [extra["outcome"] for extra in found.extra] == ["passed", "failed", "crashed", "crashed"]
    assert found.metrics["programs/passed"] == [1.0, 0.0, 0.0, 0.0]
    assert found.errors == {}


def test_part_of_the_tests_is_part_of_the_reward(make: Make) -> None:
    found = judged(make(partial=True), (ADDITION, PRODUCT), (ADDITION, RIGHT))
    assert found.rewards == [pytest.approx(2 / 3), 1.0]
    assert found.extra[0]["tests_passed"] == 2


def test_whole_programs_as_json_text_of_a_column_of_another_name(make: Make) -> None:
    row = {"io": json.dumps([{"stdin": "1 2\n", "stdout": "3\n"}, {"stdin": "2 5", "stdout": "7"}])}
    found = judged(make(tests="io"), (row, "print(sum(map(int, input().split())))"), (row, "print(3)"))
    assert found.rewards == [1.0, 0.0]
    assert found.critiques[1] == 'Test 2 of 2: with "2 5" on standard input, the program printed "3\\n".'


def test_the_prompt_before_the_completion(make: Make) -> None:
    judge = make(prefix=True)
    found = judged(judge, (ADDITION, "    return a + b\n"), prompt="def add(a, b):\n")
    assert found.rewards == [1.0]
    found = judged(judge, (ADDITION, RIGHT), prompt=({"role": "user", "content": "Add."},))
    assert "conversation" in found.errors[0]


def test_tolerance(make: Make) -> None:
    row = {"function": "add", "tests": [{"input": [0.1, 0.2], "output": 0.3}]}
    assert judged(make(), (row, RIGHT)).rewards == [1.0]
    assert judged(make(tolerance=0), (row, RIGHT)).rewards == [0.0]


def test_installed_packages_only_where_asked(make: Make) -> None:
    row = {"function": "mean", "tests": [{"input": [[1, 2, 3]], "output": 2.0}]}
    source = "import yaml\ndef mean(x): return sum(x) / len(yaml.safe_load(str(x)))"
    assert judged(make(), (row, source)).rewards == [0.0]
    found = judged(make(packages=True), (row, source))
    assert (found.critiques, found.rewards) == ([None], [1.0])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, 'column "tests": expected a list of tests, found nothing'),
        ({"tests": []}, "expected a list of tests"),
        ({"tests": "[1"}, "no JSON"),
        ({"tests": [{"input": [1], "output": 2}]}, 'there is no "function"'),
        ({"tests": [{"stdin": "", "stdout": ""}], "function": "f"}, 'test 1: expected {"input": …, "output": …}'),
        ({"tests": [{"input": 1, "output": 2}], "function": "f"}, "input must be the list of arguments"),
        ({"tests": [{"stdin": 1, "stdout": "2"}]}, "must be text"),
        ({"tests": [{"stdin": "", "stdout": "x" * (1 << 20)}]}, "longer than"),
        ({"tests": [{"input": [1], "output": {1}}], "function": "f"}, "not JSON serializable"),
    ],
)
def test_a_row_that_cannot_be_tested_is_masked(make: Make, row: dict[str, Any], reason: str) -> None:
    found = judged(make(), (row, "print()"), (ADDITION, RIGHT))
    assert found.rewards == [None, 1.0]
    assert reason in found.errors[0]


def test_a_lost_sandbox_is_masked_and_never_a_zero(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = make()
    lost = Verdict(ProgramOutcome.INFRASTRUCTURE, reason="bwrap was ended by SIGKILL")
    monkeypatch.setattr(SandboxPool, "_judge", lambda *_: lost)
    found = judged(judge, (ADDITION, RIGHT))
    assert found.rewards == [None]
    assert found.errors == {0: "its sandbox failed: bwrap was ended by SIGKILL"}


def test_many_are_judged_without_holding_up_the_loop(make: Make) -> None:
    judge = make(workers=2)
    longest = 0.0

    async def both() -> Judged:
        nonlocal longest
        problems = [Problem(str(n), "", ADDITION) for n in range(12)]
        samples = [Sample(f"s{n}", str(n), n, 0, "policy", PRODUCT if n % 2 else RIGHT, "stop") for n in range(12)]
        judging = asyncio.ensure_future(judge.judge(problems, samples))
        while not judging.done():
            began = time.monotonic()
            await asyncio.sleep(0.001)
            longest = max(longest, time.monotonic() - began)
        return judging.result()

    assert asyncio.run(both()).rewards == [1.0, 0.0] * 6
    assert longest < 1.0


def test_as_reward_and_critic_of_a_recipe(sandboxes: None) -> None:
    config = RewardConfig(use="python_tests", options={"workers": 1})
    columns = ("tests", "function")
    with load_feedback([config], reference_columns=columns, label_free=False, critics=[config]) as feedback:
        problem = Problem("1", "", ADDITION)
        found = asyncio.run(feedback.judge([problem], [Sample("s", "1", 0, 0, "policy", PRODUCT, "stop")]))
    assert found.totals.tolist() == [0.0]
    assert found.critiques == ("Test 1 of 3: add(1, 2) gave 2.",)
    with pytest.raises(ConfigError, match="uses references"):
        load_feedback([config], reference_columns=columns, label_free=True)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("tests", 1, "must be text"),
        ("partial", "yes", "must be true or false"),
        ("seconds", 0, "at least 0.01"),
        ("seconds", float("nan"), "at least 0.01"),
        ("memory", 1.5, "a whole number of at least 64"),
        ("workers", True, "a whole number of at least 0"),
        ("tolerance", -1, "at least 0"),
        ("timeout", 1, "unknown option"),
    ],
)
def test_wrong_options_are_told(option: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        sources()["python_tests"].make(Surroundings(), {option: value})
    assert 'source "python_tests"' in str(error.value)


def test_without_a_sandbox_nothing_is_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"apt install bubblewrap.*docs/sandbox\.md"):
        sources()["python_tests"].make(Surroundings(), {})


def test_a_pool_that_cannot_start_is_an_error_of_the_recipe(sandboxes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loopwise.evaluate.sandbox.launching.program_filter", lambda _: b"no filter")
    with pytest.raises(ConfigError, match="bwrap cannot start a sandbox here"):
        sources()["python_tests"].make(Surroundings(), {"workers": 1})


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        ("x = 1", "x = 1"),
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```python\nx = 1\n```\nor\n```python\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1\n```\nIt prints:\n```\n1\n```", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```py\nx = 1\n", "x = 1\n"),
        ("```Python3\nx = 1\n```", "x = 1\n"),
        ("```python\nx = '```'\n```", "x = '```'\n"),
        ("```bash\nls\n```", "```bash\nls\n```"),
        ("```\nplain\n```\n ```python x\nfirst\n```\n```py\nlast\n``` end", "last\n"),
        ("```\nx = 1\n```\n```", "x = 1\n"),
        ("```\ns = '\u2028```'\n```", "s = '\u2028```'\n"),
    ],
)
def test_the_code_of_a_completion(completion: str, code: str) -> None:
    assert python_code(completion) == code


def test_a_long_completion_without_a_closing_fence_is_read_in_no_time() -> None:
    began = time.process_time()
    assert python_code("```python\n" + " " * 400_000) == " " * 400_000
    assert python_code("```" + " " * 400_000).startswith("```")
    assert python_code("\n" * 400_000) == "\n" * 400_000
    assert time.process_time() - began < 2


def test_a_cancelled_judgement_leaves_the_judge_usable(make: Make) -> None:
    judge = make(seconds=2)

    async def cut_off() -> None:
        problems = [Problem(str(n), "", ADDITION) for n in range(3)]
        samples = [Sample(f"s{n}", str(n), n, 0, "policy", "while True: pass", "stop") for n in range(3)]
        await asyncio.wait_for(judge.judge(problems, samples), 0.2)

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        asyncio.run(cut_off())
    assert judged(judge, (ADDITION, RIGHT)).rewards == [1.0]
    # The one under way was waited for, those behind it were not begun.
    assert time.monotonic() - began < 5


def test_the_rows_of_the_page(make: Make) -> None:
    page = ROOT / "docs/sandbox.md"
    addition, printing = (json.loads(block.text) for block in code_blocks(page, "json"))
    found = judged(make(), (addition, RIGHT), (printing, "print(sum(map(int, input().split())))"))
    assert found.rewards == [1.0, 1.0]
    options = yaml.safe_load(named_files(page)["programs.yaml"])["rewards"][0]["options"]
    assert judged(make(**options), (addition, PRODUCT)).rewards == [0.0]
