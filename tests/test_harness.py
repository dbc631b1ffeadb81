"""lm-evaluation-harness on folders of ours, beside our own figures of the same rows."""

from __future__ import annotations

import builtins
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.models.tiny import tiny_lstm

from loopwise.errors import ConfigError, LoopwiseError, ModelError, PromptTooLongError
from loopwise.evaluate.likelihood import mean_logps
from loopwise.models.folders import load_policy, save_policy
from loopwise.models.policy import Policy
from loopwise.runtime import Runtime
from loopwise.stages.generation import Speaker
from loopwise.stages.harness import _choice, run_harness
from loopwise.types import Problem, PromptState, Sampling

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
PROMPTS = [f"{a}+{b}=" for a in range(3) for b in range(2)]
TOKENS = 4


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def answers(folder: Path, runtime: Runtime) -> list[str]:
    """What our own generator has the model say, greedily."""
    speaker = Speaker(load_policy(folder, runtime), runtime, Sampling(temperature=0.0), TOKENS)
    problems = [Problem(str(place), prompt) for place, prompt in enumerate(PROMPTS)]
    return [sample.text for batch in speaker.draw(problems, 1) for sample in batch]


@pytest.mark.parametrize("make", ["gpt2", "lstm"])
def test_it_generates_what_we_do(make: str, tmp_path: Path, policy: Policy, tokenizer: Any, runtime: Runtime) -> None:
    save_policy(policy if make == "gpt2" else tiny_lstm(tokenizer), tmp_path / "model")
    said = answers(tmp_path / "model", runtime)
    rows = [{"prompt": p, "answer": text} for p, text in zip(PROMPTS, said, strict=True)]
    rows[0]["answer"] = rows[3]["answer"] = "wrong"
    found = run_harness(str(tmp_path / "model"), write(tmp_path / "rows.jsonl", *rows), max_tokens=TOKENS, device="cpu")
    assert found["exact_match"] == pytest.approx(4 / 6)
    # The standard error of a mean: sqrt(p (1 - p) / (n - 1)).
    assert found["exact_match_stderr"] == pytest.approx((4 / 6 * 2 / 6 / 5) ** 0.5)
    assert (found["kind"], found["rows"]) == ("generate_until", 6)
    assert "left_out" not in found


def test_it_finds_choices_as_likely_as_we_do(folder: Path, policy: Policy, tmp_path: Path, runtime: Runtime) -> None:
    choices = ["one", "two", "cat"]
    problems = [Problem(str(place), prompt) for place, prompt in enumerate(PROMPTS)]
    found = [mean_logps(policy, problems, [text] * 6, runtime, end_of_text=False) for text in choices]
    likeliest = np.argmax(found, axis=0).tolist()
    truths: list[Any] = ["two", 1, "B", "one", 0, "A"]
    rows = [{"prompt": p, "choices": choices, "answer": truth} for p, truth in zip(PROMPTS, truths, strict=True)]
    path = write(tmp_path / "rows.jsonl", *rows)
    right = sum(one == truth for one, truth in zip(likeliest, (1, 1, 1, 0, 0, 0), strict=True))
    assert run_harness(str(folder), path, device="cpu")["acc"] == pytest.approx(right / 6)
    assert run_harness(str(folder), path, limit=2, device="cpu")["rows"] == 2


def test_it_finds_answers_as_likely_as_we_do(folder: Path, policy: Policy, tmp_path: Path, runtime: Runtime) -> None:
    problems = [Problem(str(place), prompt) for place, prompt in enumerate(PROMPTS)]
    logps = mean_logps(policy, problems, ["2024-01-01"] * 6, runtime, end_of_text=False) * len("2024-01-01")
    rows = [{"prompt": prompt, "completion": "2024-01-01"} for prompt in PROMPTS]
    save_policy(replace(policy, prompt_state=PromptState(system="Add.")), folder)
    found = run_harness(str(folder), write(tmp_path / "rows.jsonl", *rows), kind="loglikelihood", device="cpu")
    assert found["perplexity"] == pytest.approx(float(2.718281828459045 ** -logps.mean()), rel=1e-3)
    assert found["left_out"] == "prompt_state.json, which plain loading ignores"


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"prompt": "1"}, {}, 'rows.jsonl line 1, column "answer": missing'),
        ({"prompt": "1", "answer": "x", "choices": ["y"]}, {}, 'column "choices": expected a list of two texts'),
        ({"prompt": "1", "answer": "C", "choices": ["x", "y"]}, {}, "'C' is none of the choices"),
        (
            {"prompt": [{"role": "user", "content": "1"}], "answer": "x"},
            {},
            "a conversation; the harness is asked text",
        ),
        ({"prompt": "1", "answer": "2"}, {"limit": 0}, "a limit of 0 rows leaves nothing to ask"),
        ({"prompt": "1", "answer": "2"}, {"kind": "exact"}, 'kind "exact": the harness has generate_until'),
    ],
)
def test_wrong_rows(folder: Path, tmp_path: Path, row: dict[str, Any], options: Any, message: str) -> None:
    with pytest.raises(LoopwiseError, match=message.replace("[", r"\[")):
        run_harness(str(folder), write(tmp_path / "rows.jsonl", row), **options)


def test_an_answer_is_its_text_before_it_is_a_place() -> None:
    assert _choice(3, ["1", "2", "3"], "row 1") == 2
    assert _choice("2", ["1", "2", "3"], "row 1") == 1
    assert _choice(1, ["0", "1", "2"], "row 1") == 1
    assert _choice(True, ["True", "False"], "row 1") == 0
    with pytest.raises(LoopwiseError, match=r'row 1, column "answer": 2 may be the choice "2" or the place of "3"'):
        _choice(2, ["1", "2", "3"], "row 1")


def test_a_row_over_the_context_is_not_cut_in_silence(folder: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", {"prompt": "1" * 40, "answer": "2" * 9, "choices": ["2" * 9, "3"]})
    with pytest.raises(PromptTooLongError, match="line 1: prompt and answer have 49 tokens"):
        run_harness(str(folder), rows, device="cpu")


def test_the_command_says_how_long_and_until_what(
    folder: Path, tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.command_line import loopwise, strict

    monkeypatch.chdir(tmp_path)
    said = answers(folder, runtime)
    halves = [text[: len(text) // 2] for text in said]
    assert halves != said
    rows = [{"prompt": prompt, "answer": half} for prompt, half in zip(PROMPTS, halves, strict=True)]
    stop = said[0][len(said[0]) // 2 :]
    files = {"all": write(tmp_path / "all.jsonl", *rows), "first": write(tmp_path / "first.jsonl", rows[0])}

    def exact(rows: str, *flags: Any) -> float:
        done = loopwise("evaluate", folder, "--harness", files[rows], *flags, "--json")
        return float(strict(done.stdout)["harness"][0]["exact_match"])

    assert exact("all", "--max-tokens", TOKENS // 2) == 1.0
    assert exact("all", "--max-tokens", TOKENS) == 0.0
    assert exact("first", "--max-tokens", TOKENS, "--stop", stop) == 1.0


def test_the_terminal_stays_quiet_and_the_first_rows_are_asked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Outside a repository git complains, and it is a process of its own: Python's streams do not have its words."""
    from tests.command_line import loopwise, strict

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    write(tmp_path / "rows.jsonl", *({"prompt": prompt, "answer": "1"} for prompt in PROMPTS))
    done = loopwise("evaluate", folder, "--harness", "rows.jsonl", "--problems", 2, "--json")
    assert strict(done.stdout)["harness"][0]["rows"] == 2
    assert capfd.readouterr().err == ""
    os.write(2, b"heard again")
    assert capfd.readouterr().err == "heard again"


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model folder"):
        run_harness(str(tmp_path / "none"), tmp_path / "rows.jsonl")


def test_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real: Callable[..., Any] = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("lm_eval"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'loopwise\[harness\]'"):
        run_harness(str(tmp_path), tmp_path / "rows.jsonl")
