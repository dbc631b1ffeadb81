"""Rewards as a feedback source: the call, references, masks, and what failures do."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loopwise.config.blocks import RewardConfig
from loopwise.errors import ConfigError, RewardError
from loopwise.evaluate import supervisor
from loopwise.evaluate.loading import load_feedback
from loopwise.evaluate.rewards import RewardSum
from loopwise.types import Feedback

Rows = Callable[..., Any]


def judge(functions: list[Callable[..., Any]], rows: Any, **options: Any) -> Feedback:
    return asyncio.run(RewardSum.from_functions(functions, **options).judge(*rows))


def load(*configs: dict[str, Any], label_free: bool = False) -> RewardSum:
    parsed = [RewardConfig(**config) for config in configs]
    return load_feedback(parsed, reference_columns=["answer"], label_free=label_free)


def test_weighted_sum_of_sync_and_async(rows: Rows) -> None:
    def length(completions: list[str], **_: Any) -> list[float]:
        return [float(len(text)) for text in completions]

    async def level(level: list[int]) -> list[float | None]:
        await asyncio.sleep(0)
        return [None if value < 0 else value for value in level]

    feedback = judge([length, level], rows(["a", "bb", ""], level=[1, 2, -1]), weights=[1.0, 0.5])
    assert feedback.parts == ("length", "level")
    assert feedback.weights == (1.0, 0.5)
    np.testing.assert_array_equal(feedback.rewards, [[1, 1], [2, 2], [0, np.nan]])
    np.testing.assert_array_equal(feedback.mask, [[True, True], [True, True], [True, False]])
    np.testing.assert_array_equal(feedback.totals, [1.5, 3.0, 0.0])
    assert feedback.metrics == {"failed/length": 0, "failed/level": 0}


def test_the_call_is_trls(rows: Rows) -> None:
    seen: dict[str, Any] = {}

    def reward(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
        seen.update(columns, prompts=prompts, completions=completions, completion_ids=completion_ids)
        columns["log_extra"]("words", [len(c) for c in completions])
        columns["log_metric"]("calls", 1)
        columns["log_metric"]("calls", 3)
        return [1, True]  # type: ignore[list-item]

    feedback = judge([reward], rows(["x", "y"], topic=["t", "u"]))
    assert seen["prompts"] == ["prompt 0", "prompt 1"]
    assert seen["completions"] == ["x", "y"]
    assert seen["completion_ids"] == [[0, 1], [1, 2]]
    assert seen["topic"] == ["t", "u"]
    assert feedback.extra == ({"words": 1}, {"words": 1})
    assert feedback.metrics == {"calls": 2.0, "failed/reward": 0}


def test_chat_prompts_give_message_completions(rows: Rows) -> None:
    chat = ({"role": "user", "content": "2+2?"},)

    def reward(prompts: Any, completions: Any) -> list[float]:
        assert prompts == [list(chat)]
        assert completions == [[{"role": "assistant", "content": "4"}]]
        return [1.0]

    assert judge([reward], rows(["4"], prompts=[chat])).totals.tolist() == [1.0]


def test_samples_find_their_problems(rows: Rows) -> None:
    problems, samples = rows(["a", "b"], answer=["x", "y"])
    feedback = asyncio.run(
        RewardSum.from_functions([lambda answer: [float(a == "y") for a in answer]]).judge(problems, [samples[1]] * 2)
    )
    assert feedback.totals.tolist() == [1.0, 1.0]


def test_namesakes_are_told_apart(rows: Rows) -> None:
    def reward(completions: list[str]) -> list[float]:
        return [1.0] * len(completions)

    feedback = judge([reward, reward], rows(["a"]))
    assert feedback.parts == ("reward", "reward_2")
    with pytest.raises(ConfigError, match="1 weights for 2 rewards"):
        RewardSum.from_functions([reward, reward], [1.0])


def test_nothing_to_judge(rows: Rows) -> None:
    def reward() -> list[float]:
        raise AssertionError("must not be called")

    assert judge([reward], ([], [])).rewards.shape == (0, 1)
    assert judge([], rows(["a"])).rewards.shape == (1, 0)


@pytest.mark.parametrize("label_free", [False, True])
def test_references_reach_only_their_users(rows: Rows, label_free: bool) -> None:
    def reward(completions: list[str], **columns: Any) -> list[float]:
        return [float("answer" in columns)] * len(completions)

    feedback = RewardSum.from_functions([reward], reference_columns=["answer"], label_free=label_free)
    assert feedback.uses_reference is not label_free
    judged = asyncio.run(feedback.judge(*rows(["a"], answer=["a"], topic=["t"])))
    assert judged.totals.tolist() == [float(not label_free)]


SEES = """
def sees(completions, **columns):
    return [float("answer" in columns)] * len(completions)
"""


@pytest.mark.parametrize(
    ("declared", "label_free", "sees"),
    [(None, False, 1.0), (None, True, 0.0), (False, False, 0.0), (True, False, 1.0), (False, True, 0.0)],
)
def test_references_of_files(
    rows: Rows, reward_file: Any, declared: bool | None, label_free: bool, sees: float
) -> None:
    use = f"{reward_file(SEES)}:sees"
    with load({"use": use, "uses_reference": declared}, label_free=label_free) as feedback:
        assert feedback.uses_reference is bool(sees)
        assert asyncio.run(feedback.judge(*rows(["a"], answer=["a"]))).totals.tolist() == [sees]


def test_label_free_refuses_references(reward_file: Any) -> None:
    for config in ({"use": "number"}, {"use": f"{reward_file(SEES)}:sees", "uses_reference": True}):
        with pytest.raises(ConfigError, match="label_free promises that no training signal sees one"):
            load(config, label_free=True)
    assert load({"use": "regex", "options": {"pattern": "a"}}, label_free=True).uses_reference is False


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use": "exact_mach"}, 'no such rule. Did you mean "exact_match"'),
        ({"use": "rewards.py"}, "path/to/file.py:function"),
        ({"use": "no/such/file.py:f"}, "there is no file"),
        ({"use": "number", "uses_reference": False}, "uses_reference is true for this rule"),
        ({"use": "some.function", "options": {"a": 1}}, "options are for built-in rules"),
        ({"use": "number", "options": {"x": 1}}, 'unknown option "x"'),
    ],
)
def test_bad_configs(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(config)


def test_rules_and_files_together(rows: Rows, reward_file: Any) -> None:
    file = reward_file("async def long(completions):\n    return [float(len(c) > 2) for c in completions]")
    with load({"use": f"{file}:long", "weight": 0.5}, {"use": "number"}) as feedback:
        assert feedback.name == "long + number"
        for _ in range(2):
            judged = asyncio.run(feedback.judge(*rows(["72", "it is 73", "72"], answer=["#### 72", "73", "none"])))
            np.testing.assert_array_equal(judged.rewards, [[0, 1], [1, 1], [0, np.nan]])
            assert judged.totals.tolist() == [1.0, 1.5, 0.0]


BREACHES: list[tuple[Any, str]] = [
    (lambda completions: [1.0], r"returned 1 rewards for 3 completions, on all 3 samples at once"),
    (lambda completions: [0.0, math.nan, 0.0][: len(completions)], r'returned nan as a reward, on prompt "prompt 1"'),
    (lambda completions: [math.inf] * len(completions), r'returned inf as a reward, on prompt "prompt 0"'),
    (lambda completions: ["1"] * len(completions), r"returned '1' \(str\) as a reward, on prompt \"prompt 0\""),
    (lambda completions: [[1.0]] * len(completions), r"returned \[1.0\] \(list\) as a reward"),
    (lambda completions: 1.0, r"returned 1.0, not a list"),
    (lambda completions: None, r"returned None, not a list"),
    (lambda gold: [1.0], r'needs column "gold"; the columns it may see are: answer'),
    (lambda completions: [1 / (c != "b") for c in completions], r'raised ZeroDivisionError: .*, on prompt "prompt 1"'),
    (lambda completions, log_extra: log_extra("x", [1]), r'called log_extra\("x"\) with 1 values for 3 completions'),
]


@pytest.mark.parametrize(("reward", "message"), BREACHES)
def test_check_names_reward_fault_and_prompt(rows: Rows, reward: Any, message: str) -> None:
    feedback = RewardSum.from_functions([reward])
    with pytest.raises(RewardError, match=r'reward "<lambda>": it .*' + message):
        asyncio.run(feedback.check(*rows(["a", "b", "c"], answer=["a", "b", "c"])))


def test_check_returns_what_rewards_said(rows: Rows) -> None:
    feedback = asyncio.run(RewardSum.from_functions([lambda completions: [None, np.float32(0.5)]]).check(*rows("ab")))
    np.testing.assert_array_equal(feedback.rewards, [[np.nan], [0.5]])


def test_check_names_a_missing_reference_column(rows: Rows) -> None:
    with pytest.raises(RewardError, match=r'reward "number": it needs column "answer"; .* are: solution'):
        asyncio.run(load({"use": "number"}).check(*rows(["1"], solution=["1"])))


def test_a_failing_reward_spoils_only_its_samples(rows: Rows) -> None:
    def picky(completions: list[str], log_metric: Any) -> list[float]:
        log_metric("seen", len(completions))
        return [1 / (text != "b") for text in completions]

    def odd(completions: list[str]) -> list[Any]:
        return ["bad" if text == "b" else math.nan if text == "c" else 2 for text in completions]

    feedback = judge([picky, odd], rows(["a", "b", "c"]))
    np.testing.assert_array_equal(feedback.rewards, [[1, 2], [np.nan, np.nan], [np.nan, np.nan]])
    np.testing.assert_array_equal(feedback.totals, [3, np.nan, np.nan])
    assert "error" not in feedback.extra[0]
    assert "picky: it raised ZeroDivisionError" in feedback.extra[1]["error"]
    assert "test_rewards.py line" in feedback.extra[1]["error"]
    assert "; odd: it returned 'bad'" in feedback.extra[1]["error"]
    assert feedback.extra[2]["error"] == "odd: it returned nan as a reward"
    # What a failed call logged does not count: three calls of one sample each, one of which failed.
    assert feedback.metrics == {"seen": 1.0, "failed/picky": 1, "failed/odd": 2}


def test_a_penalty_that_failed_is_not_a_penalty_of_0(rows: Rows) -> None:
    def right(completions: list[str]) -> list[float]:
        return [1.0] * len(completions)

    def cheats(completions: list[str]) -> list[float | None]:
        if "broken" in completions:
            raise ValueError("no verdict")
        return [None if text == "n/a" else float(text == "cheat") for text in completions]

    feedback = judge([right, cheats], rows(["fair", "cheat", "broken", "n/a"]), weights=[1.0, -1.0])
    np.testing.assert_array_equal(feedback.totals, [1.0, 0.0, np.nan, 1.0])
    assert not feedback.mask[2].any()
    assert feedback.extra[2]["error"].startswith("cheats: it raised ValueError: no verdict")
    assert feedback.metrics == {"failed/right": 0, "failed/cheats": 1}


def test_an_interrupt_is_no_failure_of_the_reward(rows: Rows) -> None:
    def reward(completions: list[str]) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge([reward], rows(["a"]))


def test_hangs_are_cut_off_sample_by_sample(rows: Rows, reward_file: Any) -> None:
    use = reward_file(
        """
        import time
        def slow(completions):
            time.sleep(60 if any(c.startswith("hang") for c in completions) else 0)
            return [1.0] * len(completions)
        """
    )
    with load({"use": f"{use}:slow", "time_limit": 0.5}) as feedback:
        judged = asyncio.run(feedback.judge(*rows(["ok", "hang", "ok", "hang", "hang", "ok", "hang"])))
        np.testing.assert_array_equal(judged.mask[:, 0], [True, False, True, False, False, False, False])
        assert "did not return within 0.5 s" in judged.extra[1]["error"]
        assert "hung or crashed too often" in judged.extra[5]["error"]
        assert judged.metrics["failed/slow"] == 5
        assert asyncio.run(feedback.judge(*rows(["ok"]))).totals.tolist() == [1.0]


def test_a_crash_spoils_only_its_sample(rows: Rows, reward_file: Any) -> None:
    use = reward_file(
        """
        import os
        def crash(completions):
            if "die" in completions:
                os._exit(3)
            return [1.0] * len(completions)
        """
    )
    with load({"use": f"{use}:crash"}) as feedback:
        judged = asyncio.run(feedback.judge(*rows(["a", "die", "b"])))
        np.testing.assert_array_equal(judged.rewards[:, 0], [1, np.nan, 1])
        assert "its process ended (exit status 3)" in judged.extra[1]["error"]
        with pytest.raises(RewardError, match=r'"crash": its process ended \(exit status 3\), on prompt "prompt 1"'):
            asyncio.run(feedback.check(*rows(["a", "die"])))


def test_check_reports_a_hang(rows: Rows, reward_file: Any) -> None:
    use = reward_file("def hang(completions):\n    while True: pass")
    with (
        load({"use": f"{use}:hang", "time_limit": 0.3}) as feedback,
        pytest.raises(RewardError, match=r'"hang": it did not return within 0.3 s, on prompt "prompt 0"'),
    ):
        asyncio.run(feedback.check(*rows(["a", "b"])))


@pytest.mark.parametrize(
    ("source", "function", "message"),
    [
        ("import json\nimport no_such_module_here", "f", r"ModuleNotFoundError: .* \(.*my_rewards.py line 2\)"),
        ("def f(:\n    pass", "f", r"SyntaxError: .* \(.*my_rewards.py line 1\)"),
        ("\n\n1 / 0", "f", r"ZeroDivisionError: .* \(.*my_rewards.py line 3\)"),
        ("import json\njson.loads('{')", "f", r"JSONDecodeError: .* \(.*my_rewards.py line 2\)"),
        ("raise SystemExit(1)", "f", r"SystemExit: 1 \(.*my_rewards.py line 1\)"),
        ("def good(): pass\ndef _own(): pass", "f", r'has no function "f", on .* Its functions: good\.'),
    ],
)
def test_import_failures_name_file_and_line(
    rows: Rows, reward_file: Any, source: str, function: str, message: str
) -> None:
    with (
        load({"use": f"{reward_file(source)}:{function}"}) as feedback,
        pytest.raises(RewardError, match=r'reward "f": it cannot be loaded: .*' + message),
    ):
        asyncio.run(feedback.check(*rows(["a"])))


def test_an_import_that_hangs(rows: Rows, reward_file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "START_LIMIT", 0.5)
    use = reward_file("import time\ntime.sleep(60)")
    with (
        load({"use": f"{use}:f"}) as feedback,
        pytest.raises(RewardError, match=r"cannot be loaded: it did not return within 0.5 s"),
    ):
        asyncio.run(feedback.check(*rows(["a"])))


def test_modules(rows: Rows, reward_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reward_file("def half(completions):\n    return [0.5] * len(completions)", "shop_rewards.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    with load({"use": "shop_rewards.half"}) as feedback:
        assert asyncio.run(feedback.check(*rows(["a"]))).totals.tolist() == [0.5]
    with (
        load({"use": "shop_rewardz.half"}) as feedback,
        pytest.raises(RewardError, match=r'there is no module "shop_rewardz".*path/to/file.py:function'),
    ):
        asyncio.run(feedback.check(*rows(["a"])))


def test_a_pattern_that_backtracks_forever_is_cut_off(rows: Rows) -> None:
    with load({"use": "regex", "options": {"pattern": "(a+)+$"}, "time_limit": 0.5}) as feedback:
        judged = asyncio.run(feedback.judge(*rows(["aaa", "a" * 60 + "!"])))
        np.testing.assert_array_equal(judged.rewards[:, 0], [1, np.nan])
