"""``loopwise evaluate --bias``, and what else stands beside the figures: corpus figures, sources that compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.bad_inputs import lines
from tests.command_line import loopwise, refused, strict

from loopwise.evaluate.likelihood import mean_logps
from loopwise.evaluate.stats import difference, wilson
from loopwise.models.folders import load_policy
from loopwise.runtime import Runtime
from loopwise.types import Problem

TEMPLATES = [f"{{word}}+{number}=" for number in range(8)]
REWARDS = """\
def first(prompts, **columns):
    return [float(prompt[0]) for prompt in prompts]
"""


@pytest.fixture
def workshop(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model, probes and a reward."""
    (tmp_path / "model").symlink_to(model)
    (tmp_path / "mine.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return tmp_path


def probed(*arguments: object) -> dict[str, Any]:
    [subject] = strict(loopwise("evaluate", "model", "--bias", "probes.jsonl", *arguments, "--json").stdout)["bias"][
        "subjects"
    ]
    return dict(subject)


def test_leanings_and_flips_are_those_of_the_likelihoods(workshop: Path, runtime: Runtime) -> None:
    endings = ["11", "2"]
    rows = [{"template": text, "words": ["3", "45"], "completions": endings} for text in TEMPLATES]
    (workshop / "probes.jsonl").write_text(lines(*rows))
    policy = load_policy("model", runtime)

    def logps(word: str, ending: str) -> np.ndarray:
        problems = [Problem(text, text.replace("{word}", word)) for text in TEMPLATES]
        means = mean_logps(policy, problems, [ending] * len(problems), runtime, end_of_text=False)
        return np.asarray(means * len(ending))

    ahead = {word: logps(word, endings[0]) - logps(word, endings[1]) for word in ("3", "45")}
    expected = difference(ahead["3"], ahead["45"])
    [pair] = probed()["pairs"]
    assert (pair["a"], pair["b"], pair["probes"]) == ("3", "45", 8)
    assert pair["leaning"]["value"] == pytest.approx(expected.value, abs=1e-6)
    assert pair["leaning"]["ci95"] == pytest.approx([expected.low, expected.high], abs=1e-6)
    flips = int(((ahead["3"] > 0) != (ahead["45"] > 0)).sum())
    assert pair["flips"] == {"value": flips / 8, "ci95": list(wilson(flips, 8)), "n": 8}
    assert "reward" not in pair


def test_one_word_that_earns_more_is_named(workshop: Path) -> None:
    rows = [{"prompt_a": f"8+{n}=", "prompt_b": f"{2 + n % 2}+{n}=", "word_a": "8", "word_b": "low"} for n in range(10)]
    (workshop / "probes.jsonl").write_text(lines(*rows, {"prompt_a": "1+1=", "prompt_b": "1+2="}))
    pairs = probed("--reward", "mine.py:first")["pairs"]
    assert pairs[0]["reward"]["value"] == pytest.approx(5.5)
    assert pairs[0]["reward"]["shows"] == "8"
    assert pairs[1]["reward"]["shows"] is None
    shown = loopwise("evaluate", "model", "--bias", "probes.jsonl", "--reward", "mine.py:first").stdout
    assert "leans to 8 over low (+5.500 reward, 95% interval" in shown


@pytest.mark.parametrize("differing", [5, 6])
def test_which_word_comes_first_turns_the_sign_and_nothing_else(workshop: Path, differing: int) -> None:
    Path("mine.py").write_text("def big(prompts, **_):\n    return [float(int(one[0]) > 4) for one in prompts]\n")
    told = []
    for turn in (1, -1):
        words = dict(zip(("word_a", "word_b"), ("high", "low")[::turn], strict=True))
        asked = [(f"{8 if n < differing else 3}+{n}=", f"2+{n}=")[::turn] for n in range(6)]
        (workshop / "probes.jsonl").write_text(lines(*({"prompt_a": a, "prompt_b": b, **words} for a, b in asked)))
        [pair] = probed("--reward", "mine.py:big")["pairs"]
        told.append(pair["reward"])
    first, second = told
    assert first["value"] == -second["value"] == pytest.approx(differing / 6)
    assert first["ci95"] == pytest.approx([-second["ci95"][1], -second["ci95"][0]])
    assert first["p"] == second["p"]
    assert first["shows"] == second["shows"]


def test_probes_that_differ_in_nothing_flip_no_answer(workshop: Path) -> None:
    rows = [{"prompt_a": text, "prompt_b": text.replace("7", "8")} for text in ("12+7=", "3+7=", "99+7=")]
    (workshop / "probes.jsonl").write_text(lines(*rows))
    first = probed("--max-tokens", 2)
    assert first == probed("--max-tokens", 2), "greedy answers are drawn alike each time"
    assert first["flips"]["n"] == 3


def test_bias_in_the_page(workshop: Path) -> None:
    rows = [{"template": text, "words": ["3", "45"], "completions": ["11", "2"]} for text in TEMPLATES]
    (workshop / "probes.jsonl").write_text(lines(*rows))
    loopwise("evaluate", "model", "--baseline", "model", "--bias", "probes.jsonl", "--out", "found")
    page = (workshop / "found/evaluation.md").read_text()
    assert page.count("| <code>3</code> / <code>45</code> | 8 |") == 2
    assert not (workshop / "found/evaluation.svg").exists(), "no figure to draw"


def test_corpus_figures_stand_beside_the_means(workshop: Path) -> None:
    (workshop / "rows.jsonl").write_text(lines(*({"prompt": f"{n}+1=", "answer": str(n + 1)} for n in range(8))))
    flags = ("--data", "rows.jsonl", "--reward", "chrf", "--max-tokens", 3)
    [result] = strict(loopwise("evaluate", "model", *flags, "--json").stdout)["results"]
    assert 0 <= result["corpus"]["chrf"]["chrf"] <= 100
    loopwise("evaluate", "model", *flags, "--out", "found")
    assert (
        "<code>chrf</code> over all answers to <code>rows.jsonl</code>"
        in (workshop / "found/evaluation.md").read_text()
    )


def test_a_source_that_compares_needs_several_samples(workshop: Path) -> None:
    (workshop / "rows.jsonl").write_text(lines({"prompt": "1+1="}, {"prompt": "2+1="}))
    flags = ("--data", "rows.jsonl", "--reward", "self_bleu", "--max-tokens", 3)
    message = refused("evaluate", "model", *flags)
    assert 'reward "self_bleu" sets the samples of one problem beside each other, and 1 is drawn' in message
    assert "--samples 4 --temperature 1" in message
    [result] = strict(loopwise("evaluate", "model", *flags, "--samples", 3, "--temperature", 1, "--json").stdout)[
        "results"
    ]
    assert 0 <= result["figures"]["reward"]["value"] <= 1


@pytest.mark.parametrize("task", [(), ("--task", "addition")])
def test_a_source_that_compares_judges_no_probes_and_is_not_told_to_draw_more(
    workshop: Path, task: tuple[str, ...]
) -> None:
    message = refused("evaluate", "model", "--bias", "builtin", "--reward", "vote", *task)
    assert '--bias: a probe has one answer, and --reward "vote" sets several beside each other' in message
    assert "--samples" not in message


@pytest.mark.parametrize("endings", [["2" * 60, "1"], ["2" * 60], []])
def test_a_probe_over_the_context_is_refused_before_anything_is_measured(workshop: Path, endings: list[str]) -> None:
    template = "{word}+1=" if endings else "{word}+" + "1" * 60
    row = {"template": template, "words": ["3", "4"]} | ({"completions": endings} if endings else {})
    (workshop / "probes.jsonl").write_text(lines(row))
    message = refused("evaluate", "model", "--bias", "probes.jsonl")
    assert "3+1" in message
    assert "over the model's context of" in message
