"""``loopwise evaluate``: figures worked out by hand, a run's own figures again, and what cannot be measured."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.bad_inputs import lines
from tests.command_line import contents, loopwise, refused, save_chat_model, strict

from loopwise.evaluate.likelihood import mean_logps
from loopwise.evaluate.stats import wilson
from loopwise.models.folders import load_policy, save_policy
from loopwise.runtime import Runtime
from loopwise.stages.answers import marks
from loopwise.types import Feedback, Problem, Sample, Scored

ROWS = [{"prompt": f"{a}+{b}=", "answer": str(a + b), "completion": str(a + b)} for a in range(5) for b in range(4)]
REWARDS = """\
def first_of_four(completions, **columns):
    return [float(place % 4 == 0) for place in range(len(completions))]

def even(prompts, **columns):
    return [float(int(prompt[0]) % 2 == 0) for prompt in prompts]

def half(completions, **columns):
    return [0.5] * len(completions)

def sometimes(prompts, **columns):
    return [None if prompt[0] == "0" else 1.0 for prompt in prompts]

def fails(completions, **columns):
    raise ValueError("no")

calls = []
def fails_later(completions, **columns):
    calls.append(1)
    if len(calls) > 1:
        raise ValueError("no")
    return [1.0] * len(completions)
"""
RECIPE = """\
model: model
data: {task: addition, labelled: 8, dev: 8, test: 8}
rewards: [exact_match]
gate: {metric: reward}
sampling: {max_tokens: 5, temperature: 0}
update: {steps: 1, batch_size: 2}
runtime: {threads: 1}
seed: 3
"""


@pytest.fixture
def workshop(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model, rows and rewards."""
    (tmp_path / "model").symlink_to(model)
    (tmp_path / "rows.jsonl").write_text(lines(*ROWS))
    (tmp_path / "asked.jsonl").write_text(lines(*({"prompt": row["prompt"]} for row in ROWS)))
    (tmp_path / "mine.py").write_text(REWARDS)
    (tmp_path / "text.txt").write_text("12+34=46" * 20)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def figures(*arguments: object) -> dict[str, dict[str, object]]:
    """The figures of the one thing that a command measures."""
    bound = ["--max-tokens", 3] if {"--task", "--reward"} & set(arguments) else []
    [result] = strict(loopwise("evaluate", "model", *arguments, *bound, "--json").stdout)["results"]
    found: dict[str, dict[str, object]] = result["figures"]
    return found


def test_accuracy_and_its_interval(workshop: Path) -> None:
    found = figures("--data", "asked.jsonl", "--reward", "mine.py:even")
    assert found["accuracy"] == {"value": 0.6, "ci95": list(wilson(12, 20)), "n": 20}
    assert set(found) == {"accuracy", "reward"}


def test_pass_at_k_is_the_unbiased_one(workshop: Path) -> None:
    reward = ["--reward", "mine.py:first_of_four", "--temperature", 1, "--samples", 4]
    found = figures("--data", "asked.jsonl", *reward)
    assert {name: figure["value"] for name, figure in found.items()} == {
        "pass@1": 0.25,
        "pass@2": pytest.approx(0.5),
        "pass@4": 1.0,
        "reward": 0.25,
    }
    assert list(figures("--data", "asked.jsonl", *reward[:-1], 6))[:4] == ["pass@1", "pass@2", "pass@4", "pass@6"]


def test_a_reward_that_is_no_pass(workshop: Path) -> None:
    found = figures("--data", "asked.jsonl", "--reward", "mine.py:half")
    assert found["accuracy"]["value"] == 0.0
    assert found["reward"] == {"value": 0.5, "ci95": list(wilson(10, 20)), "n": 20}


def test_one_problem_has_no_interval(workshop: Path) -> None:
    flags = ("--data", "asked.jsonl", "--reward", "mine.py:half", "--problems", 1)
    assert figures(*flags)["reward"] == {"value": 0.5, "ci95": [None, None], "n": 1}
    loopwise("evaluate", "model", *flags, "--max-tokens", 3, "--out", "found")
    assert "| mean reward | 0.500 | – | 1 |" in (workshop / "found/evaluation.md").read_text()
    (workshop / "short.txt").write_text("1+1=2")
    assert figures("--text", "short.txt")["perplexity"]["ci95"] is None


def test_what_could_not_be_judged_is_no_miss(workshop: Path) -> None:
    found = figures("--data", "asked.jsonl", "--reward", "mine.py:sometimes")
    assert found["accuracy"] == {"value": 1.0, "ci95": list(wilson(16, 16)), "n": 16}


def test_a_reward_that_fails_later_is_told(workshop: Path) -> None:
    result = loopwise(
        "evaluate", "model", "--data", "asked.jsonl", "--reward", "mine.py:fails_later", "--max-tokens", 3
    )
    assert "warning: reward fails_later failed on 20 of 20 samples" in result.stderr
    assert "–" in result.stdout


def test_at_most_so_many_rows(workshop: Path) -> None:
    found = figures("--data", "asked.jsonl", "--reward", "mine.py:even", "--problems", 6)
    assert found["accuracy"] == {"value": pytest.approx(4 / 6), "ci95": list(wilson(4, 6)), "n": 6}


def test_rewards_add_up_as_in_a_recipe(workshop: Path) -> None:
    flags = ["--reward", "mine.py:half", "--reward", "{use: 'mine.py:half', weight: 3}"]
    assert figures("--data", "asked.jsonl", *flags)["reward"]["value"] == 2.0


def test_the_likelihood_of_right_answers(workshop: Path, runtime: Runtime) -> None:
    problems = [Problem(str(place), str(row["prompt"])) for place, row in enumerate(ROWS)]
    logps = mean_logps(load_policy("model", runtime), problems, [str(row["answer"]) for row in ROWS], runtime)
    found = figures("--data", "rows.jsonl")
    assert set(found) == {"likelihood"}
    assert found["likelihood"]["value"] == pytest.approx(logps.mean(), abs=1e-6)
    named = figures("--data", "rows.jsonl", "--prompt-column", "prompt", "--completion-column", "answer")
    assert named == found
    both = figures("--data", "rows.jsonl", "--reward", "exact_match")
    assert both["likelihood"] == found["likelihood"]
    assert "accuracy" in both


def test_the_likelihood_of_an_answer_to_messages(workshop: Path) -> None:
    chat = save_chat_model(workshop / "chat", workshop / "model")
    asked, answered = {"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}
    (workshop / "chat.jsonl").write_text(lines({"prompt": [asked], "completion": [answered]}))
    flags = ["--data", "chat.jsonl", "--json"]
    [result] = strict(loopwise("evaluate", chat, *flags).stdout)["results"]
    assert result["figures"]["likelihood"]["n"] == 1
    [named] = strict(loopwise("evaluate", chat, *flags, "--completion-column", "completion").stdout)["results"]
    assert named["figures"] == result["figures"]


def test_a_right_answer_over_the_context_is_left_out(workshop: Path) -> None:
    (workshop / "long.jsonl").write_text(lines(ROWS[0], {"prompt": "1=", "completion": "2" * 40}))
    assert figures("--data", "long.jsonl")["likelihood"]["n"] == 1


def test_a_run_is_asked_its_own_test_again(workshop: Path, no_report: None) -> None:
    (workshop / "tune.yaml").write_text(RECIPE)
    stages = strict(loopwise("tune", "tune.yaml", "--out", "run", "--json").stdout)["stages"]
    flags = ["--task", "addition", "--problems", 8, "--seed", 3, "--max-tokens", 5, "--json"]
    [result] = strict(loopwise("evaluate", "run", *flags).stdout)["results"]
    accuracy, test = result["figures"]["accuracy"], stages["tuned"]["test"]
    assert {"value": test["accuracy"], "ci95": test["ci95"], "n": test["n"]} == accuracy
    assert result["figures"]["likelihood"]["n"] == 8


def test_problems_that_a_run_may_have_trained_on_are_told(workshop: Path, no_report: None) -> None:
    (workshop / "tune.yaml").write_text(RECIPE)
    loopwise("tune", "tune.yaml", "--out", "run")
    flags = ["evaluate", "run", "--task", "addition", "--max-tokens", 5]
    own = ["--seed", 3, "--problems", 8]
    assert "trained" not in loopwise(*flags, *own).stderr
    assert "trained" not in loopwise(*flags[:2], "--text", "text.txt").stderr
    for others, mend in (
        (["--problems", 8], "--seed 3."),
        (["--seed", 3, "--problems", 9], "--problems 8."),
        ([*own, "--task-option", "digits=2"], "no --task-option."),
    ):
        warning = " ".join(loopwise(*flags, *others).stderr.split())
        assert "run may have trained on some of these problems" in warning
        assert f"To ask those it held out: {mend}" in warning


def test_options_of_a_task(workshop: Path) -> None:
    found = figures("--task", "addition", "--task-option", "digits=1", "--problems", 4)
    assert found["accuracy"]["n"] == 4


def test_perplexity_of_text(workshop: Path, runtime: Runtime) -> None:
    found = figures("--text", "text.txt")
    nats, bits, perplexity = (found[name]["value"] for name in ("nats_per_token", "bits_per_byte", "perplexity"))
    assert isinstance(nats, float)
    assert perplexity == pytest.approx(math.exp(nats))
    # One token a byte, and one for the end of the document.
    assert bits == pytest.approx(nats / math.log(2) * found["perplexity"]["n"] / 160)
    assert nats == pytest.approx(math.log(16), abs=0.3)


def test_perplexity_of_a_column(workshop: Path, make_policy: Any) -> None:
    save_policy(make_policy(), workshop / "lines")
    (workshop / "pieces.jsonl").write_text(lines({"title": "12+", "body": "34="}))
    (workshop / "same.txt").write_text("12+\n34=")
    flags = ("--text-column", "title", "--text-column", "body", "--json")
    [named] = strict(loopwise("evaluate", "lines", "--text", "pieces.jsonl", *flags).stdout)["results"]
    [whole] = strict(loopwise("evaluate", "lines", "--text", "same.txt", "--json").stdout)["results"]
    assert named["figures"] == whole["figures"]


def test_text_that_the_tokenizer_cannot_write_is_refused(workshop: Path) -> None:
    (workshop / "odd.txt").write_text("12+34=46?" * 9)
    (workshop / "marked.txt").write_text("12+34=46<unk>" * 9)
    message = refused("evaluate", "model", "--text", "text.txt", "--text", "odd.txt")
    assert "--text odd.txt: 11.11% of its tokens are <unk>" in message
    assert "name a model whose tokenizer knows it" in message
    assert figures("--text", "marked.txt")["perplexity"]["n"] == 82, "who writes the mark means it"


def test_problems_that_the_tokenizer_cannot_write_are_told(workshop: Path) -> None:
    (workshop / "odd.jsonl").write_text(lines({"prompt": "1?1=", "completion": "2"}, {"prompt": "1+1=", "answer": "2"}))
    (workshop / "said.jsonl").write_text(lines({"prompt": "1+1=", "completion": "two"}))
    flags = ("--reward", "mine.py:even", "--max-tokens", 3)
    told = " ".join(loopwise("evaluate", "model", "--data", "odd.jsonl", *flags).stderr.split())
    assert "warning: odd.jsonl: 12.50% of the tokens that model reads are <unk>" in told
    told = " ".join(loopwise("evaluate", "model", "--data", "said.jsonl").stderr.split())
    assert "said.jsonl: 42.86% of the tokens that model reads are <unk>" in told
    assert "<unk>" not in loopwise("evaluate", "model", "--data", "rows.jsonl", *flags).stderr


def test_several_at_once_in_a_table_and_a_file(workshop: Path) -> None:
    flags = ["--data", "asked.jsonl", "--data", "rows.jsonl", "--text", "text.txt", "--reward", "mine.py:even"]
    result = loopwise("evaluate", "model", *flags, "--max-tokens", 3, "--out", "figures.json")
    for words in ("asked.jsonl", "rows.jsonl", "text.txt", "60.0%", "to", "bits per byte", "log p a token"):
        assert words in result.stdout
    written = strict((workshop / "figures.json").read_text())
    assert [entry["kind"] for entry in written["results"]] == ["rows", "rows", "text"]
    assert written["sampling"]["temperature"] == 0.0


def test_who_passes_by_several_rewards() -> None:
    """Of two rewards and a penalty: all that judged a sample must be full, and the penalty decides nothing."""
    rewards = np.array([[1, 1, 1], [1, 0.9, 0], [1, np.nan, 0], [0, np.nan, 0], [np.nan, np.nan, 1], [np.nan] * 3])
    parts = Feedback(("right", "tidy", "long"), (1.0, 0.5, -2.0), rewards, ~np.isnan(rewards))
    samples = tuple(Sample(str(place), "p", place, 0, "policy", "", "stop") for place in range(6))
    found = marks(Scored((Problem("p", ""),) * 6, samples, parts), 1)
    np.testing.assert_array_equal(found["accuracy"], [1, 0, 1, 0, np.nan, np.nan])
    np.testing.assert_array_equal(found["reward/tidy"], [1, 0.9, np.nan, np.nan, np.nan, np.nan])
    np.testing.assert_allclose(found["reward"], [-0.5, 1.45, 1, 0, -2, np.nan])


@pytest.mark.parametrize("same", [True, False])
def test_cut_answers_of_other_tokens_are_no_answers_of_one_length(workshop: Path, make_policy: Any, same: bool) -> None:
    save_policy(make_policy(), workshop / "lines")
    flags = ("--baseline", "model" if same else "lines", "--data", "asked.jsonl", "--reward", "mine.py:even")
    told = " ".join(loopwise("evaluate", "model", *flags, "--max-tokens", 3).stderr.split())
    warning = "asked.jsonl: some answers were cut off, and the two models' tokens differ"
    assert (warning in told) is not same


DATA, EVEN = ["model", "--data", "asked.jsonl"], ["--reward", "mine.py:even"]
BAD = [
    (["model"], ("nothing to measure", "add --task NAME, --data FILE or --text FILE")),
    (["nowhere", "--text", "text.txt"], ("nowhere: no such folder here", "Check the name")),
    (["model", "--task", "adition"], ('unknown task "adition". Did you mean "addition"?',)),
    (["model", "--task", "addition", "--task-option", "digit=1"], ("digit", '"digits"')),
    (["model", "--task", "addition", "--task-option", "digits"], ("expected key=value", "digits=2")),
    (["model", "--task-option", "digits=2", *DATA[1:]], ("--task-option goes with one --task",)),
    (["model", "--task", "addition", "--samples", "4"], ("are all alike", "Add --temperature 1")),
    (["model", "--task", "addition", "--problems", "0"], ("Invalid value for '--problems'",)),
    (DATA, ("asked.jsonl: nothing says whether an answer is right", "Add --reward")),
    ([*DATA, "--reward", "exact_mach"], ('reward "exact_mach": no such rule. Did you mean "exact_match"?',)),
    ([*DATA, "--reward", "nowhere.py:f"], ("there is no file nowhere.py", "Mend the path")),
    ([*DATA, "--reward", "mine.py:g"], ('has no function "g"', "even")),
    ([*DATA, "--reward", "mine.py:fails"], ("it raised ValueError: no",)),
    ([*DATA, "--reward", "exact_match"], ('"answer"',)),
    ([*DATA, "--reward", "[a"], ('"[a": not YAML', "Mend it")),
    ([*DATA, "--reward", "3"], ("--reward: expected keys with values, found 3",)),
    ([*DATA, "--reward", "{weight: 2}"], ('--reward, key "use" is missing',)),
    (["model", "--task", "addition", "--task-option", "digits=99"], ("--task-option digits: expected a whole number",)),
    (["model", "--task", "addition", "--task-option", "digits=1"], ("Ask for fewer (--problems)",)),
    (["model", "--data", "odd.jsonl", *EVEN], ("fit no format", "--prompt-column", "--completion-column")),
    (["model", "--text", "odd.jsonl"], ('column "text": missing', "--text-column")),
    (["model", "--text", "text.txt", "--text-column", "x"], ("--text-column is for row files", "Leave it out")),
    (["model", "--task", "addition", "--text-column", "x"], ("--text-column is a column of --text",)),
    (
        ["model", "--text", "text.txt", "--temperature", "1"],
        ("--temperature says how answers are drawn", "Leave it out"),
    ),
    (["model", "--text", "text.txt", "--max-tokens", "3"], ("--max-tokens says how answers are drawn",)),
    (["model", "--text", "text.txt", "--samples", "2"], ("--samples says how answers are drawn",)),
    (["model", "--data", "rows.jsonl", "--top-k", "1"], ("--top-k says how answers are drawn", "--reward")),
    (["model", "--text", "text.txt", "--problems", "3"], ("--problems bounds those of --task and --data",)),
    ([*DATA, *EVEN, "--prompt-column", "promt"], ('column "promt": missing', '"prompt"')),
    ([*DATA, "--completion-column", "answer"], ('column "answer": missing',)),
    (["model", "--data", "nowhere.jsonl", *EVEN], ("nowhere.jsonl: no such file",)),
    (["model", "--data", "long.jsonl", *EVEN], ("it has 40 tokens", "context of 32")),
    ([*DATA, *EVEN, "--max-tokens", "40"], ("40 more are over the model's context of 32", "Lower --max-tokens")),
    ([*DATA, *EVEN, "--out", "rows.jsonl"], ("rows.jsonl: exists already", "another --out")),
    ([*DATA, *EVEN, "--out", "no/where.json"], ("there is no folder no",)),
    ([*DATA, *EVEN, "--top-p", "2"], ('key "top_p": expected at most 1',)),
    (["model", "--text", "nowhere.txt"], ("nowhere.txt",)),
    (["model", "--text", "empty.txt"], ("empty.txt",)),
    (["model", "--text", "text.txt", *EVEN], ("--reward judges answers",)),
    (["model", "--text", "text.txt", "--prompt-column", "x"], ("--prompt-column is a column of --data",)),
]


@pytest.mark.parametrize(("arguments", "says"), BAD, ids=lambda part: " ".join(part)[:60])
def test_bad_input(arguments: list[str], says: tuple[str, ...], workshop: Path) -> None:
    (workshop / "long.jsonl").write_text(lines({"prompt": "1"}, {"prompt": "1" * 40}))
    (workshop / "empty.txt").write_text(" \n")
    (workshop / "odd.jsonl").write_text(lines({"one": "1", "two": "2"}))
    before = contents(workshop)
    message = refused("evaluate", *arguments)
    for words in says:
        assert words in message
    assert not re.search(r"\b(data|rewards|sampling)\.[a-z0-9]", message), "a recipe's key, and there is no recipe"
    assert contents(workshop) == before
