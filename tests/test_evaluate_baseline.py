"""``loopwise evaluate --baseline``: two models on the same problems, in figures, in words and on disk."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.bad_inputs import lines
from tests.command_line import contents, loopwise, refused, strict

from loopwise.report.evaluation import write_evaluation
from loopwise.stages.answers import Answers, alike
from loopwise.stages.comparison import differences, judge

ROWS = [{"prompt": f"{a}+{b}=", "answer": str(a + b), "completion": str(a + b)} for a in range(5) for b in range(4)]
REWARDS = """\
def even(prompts, **columns):
    return [float(int(prompt[0]) % 2 == 0) for prompt in prompts]

def length(completions, **columns):
    return [len(completion) / 10 for completion in completions]
"""


@pytest.fixture
def workshop(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two models of other weights and rows."""
    (tmp_path / "model").symlink_to(model)
    shutil.copytree(model, tmp_path / "other")
    _shake(tmp_path / "other")
    (tmp_path / "rows.jsonl").write_text(lines(*ROWS))
    (tmp_path / "mine.py").write_text(REWARDS)
    (tmp_path / "text.txt").write_text("12+34=46" * 20)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return tmp_path


def _shake(folder: Path) -> None:
    """Change the weights of a model."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    draws = torch.Generator().manual_seed(1)
    changed = {name: value + 0.3 * torch.randn(value.shape, generator=draws) for name, value in weights.items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})


ALL = ("--data", "rows.jsonl", "--reward", "mine.py:even", "--text", "text.txt", "--max-tokens", 3)


def test_of_several_rewards_all_must_be_full(workshop: Path) -> None:
    """A sample that one reward likes has not passed, whatever the sum; each reward has its own mean."""
    flags = ("--data", "rows.jsonl", "--reward", "mine.py:even", "--reward", "{use: regex, options: {pattern: ''}}")
    done = loopwise("evaluate", "model", *flags, "--max-tokens", 3, "--json")
    figures = strict(done.stdout)["results"][0]["figures"]
    assert figures["accuracy"]["value"] == figures["reward/even"]["value"] == 0.6
    assert figures["reward/regex"]["value"] == 1.0
    assert figures["reward"]["value"] == pytest.approx(1.6)
    assert "mean reward of regex" in loopwise("evaluate", "model", *flags, "--max-tokens", 3).stdout


def test_a_reward_on_a_scale_of_its_own_makes_no_accuracy(workshop: Path) -> None:
    (workshop / "mine.py").write_text("def much(prompts, **_):\n    return [7.0 + len(one) for one in prompts]\n")
    flags = ("--data", "rows.jsonl", "--reward", "mine.py:much", "--max-tokens", 3, "--baseline", "other")
    [result] = strict(loopwise("evaluate", "model", *flags, "--json").stdout)["results"]
    assert set(result["figures"]) == set(result["baseline"]["figures"]) == {"reward", "likelihood"}
    assert result["measure"] == "reward"


def test_models_are_compared_by_the_figures_that_both_have() -> None:
    """The rewards of one may stay on the scale that the other's leave."""
    scores = np.ones(2)
    sides = alike([Answers({"accuracy": scores, "reward": scores}, {}, {}), Answers({"reward": scores}, {}, {})])
    assert [list(side.scores) for side in sides] == [["reward"], ["reward"]]


def test_a_model_beside_itself_differs_in_nothing(workshop: Path) -> None:
    found = strict(loopwise("evaluate", "model", "--baseline", "model", *ALL, "--json").stdout)
    assert found["baseline"]["same"] is True
    for result in found["results"]:
        assert result["verdict"] == "same"
        assert {gap["value"] for gap in result["differences"].values()} == {0.0}
        assert result["baseline"]["figures"] == result["figures"]
    assert found["comparison"]["summary"] == (
        "no difference on rows.jsonl: both are the same model; no difference on text.txt: both are the same model"
    )


def test_two_models_are_asked_the_same(workshop: Path) -> None:
    drawing = ("--data", "rows.jsonl", "--reward", "mine.py:length", "--temperature", 1, "--samples", 2)
    flags = (*drawing, "--max-tokens", 3, "--text", "text.txt", "--json")
    both = strict(loopwise("evaluate", "model", "--baseline", "other", *flags).stdout)
    alone = {name: strict(loopwise("evaluate", name, *flags).stdout) for name in ("model", "other")}
    for place, result in enumerate(both["results"]):
        assert result["figures"] == alone["model"]["results"][place]["figures"]
        assert result["baseline"]["figures"] == alone["other"]["results"][place]["figures"]
    rows, text = both["results"]
    for result, measure in ((rows, "reward"), (rows, "likelihood"), (text, "bits_per_byte"), (text, "nats_per_token")):
        ours, theirs = (side["figures"][measure]["value"] for side in (result, result["baseline"]))
        gap = result["differences"][measure]
        assert gap["value"] == pytest.approx(ours - theirs, abs=1e-12)
        assert gap["ci95"][0] <= gap["value"] <= gap["ci95"][1]
    assert rows["measure"] == "reward", "no sample of either passes"
    assert text["sentence"].startswith(("better on text.txt: perplexity", "worse on text.txt: perplexity"))


def test_the_table_says_it_in_words(workshop: Path) -> None:
    shown = loopwise("evaluate", "model", "--baseline", "other", *ALL).stdout
    assert "no difference seen on rows.jsonl (+0.0 points, 95% interval −12.6 to 12.6)" in " ".join(shown.split())
    for words in ("baseline", "difference", "model: nothing is known of what it was trained on"):
        assert words in shown


def entry(name: str, ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """A result with the accuracy of two models."""
    scores = [{"accuracy": np.array(own, dtype=np.float64)} for own in (ours, theirs)]
    figures: list[Mapping[str, Any]] = [{"accuracy": {"value": float(np.nanmean(own))}} for own in (ours, theirs)]
    gaps = differences(*scores)
    return {"name": name, "figures": figures[0], "baseline": {"figures": figures[1]}, "differences": gaps}


def test_better_worse_and_no_difference_in_sentences() -> None:
    half = [1.0, 0.0] * 100
    results = [
        entry("addition", [1.0] * 170 + [0.0] * 30, half),
        entry("sorting", [0.0] * 180 + [1.0] * 20, half),
        entry("copy", [1.0, 1.0, 1.0, *half[3:]], half),
        entry("same", half, half),
    ]
    judge(results, same=False)
    assert [result["verdict"] for result in results] == ["better", "worse", "none", "none"]
    assert results[0]["sentence"].startswith("better on addition: +35.0 points, 95% interval 2")
    assert results[1]["sentence"].startswith("worse on sorting: −40.0 points, 95% interval −4")
    assert results[2]["sentence"].startswith("no difference seen on copy (+0.5 points, 95% interval −1")
    assert results[3]["sentence"] == "no difference seen on same (+0.0 points, 95% interval −1.4 to 1.4)"


def leaked(ours: Sequence[float], theirs: Sequence[float], met: int) -> dict[str, Any]:
    """A result of which either model has met the first ``met`` problems."""
    first, second = ({"accuracy": np.array(own)} for own in (ours, theirs))
    gaps = differences(first, second, kept=np.arange(len(ours)) >= met)
    return entry("a", ours, theirs) | {"clean": {"differences": gaps}}


def test_what_was_met_in_training_decides_nothing() -> None:
    half = [1.0, 0.0] * 50
    won = leaked([1.0] * 50 + half, [0.0] * 50 + half, 50)
    judge([won], same=False)
    assert won["verdict"] == "none"
    assert won["sentence"].startswith("no difference seen on a without what was met in training (+0.0 points, 95%")
    assert won["sentence"].endswith("; of all problems +33.3 points)")
    lost = leaked([1.0] * 60 + [0.0] * 30, [0.0] * 60 + [1.0] * 30, 60)
    judge([lost], same=False)
    assert lost["verdict"] == "worse", "though better on all problems"
    assert lost["sentence"].startswith("worse on a without what was met in training: −100.0 points, 95% interval")
    everything = leaked([1.0] * 9, [0.0] * 9, 9)
    judge([everything], same=False)
    assert everything["verdict"] == "unknown"
    assert everything["sentence"].endswith("no problem that both were judged on; of all problems +100.0 points")


def test_several_comparisons_are_held_to_holm() -> None:
    slight = ([1.0] * 9 + [0.0] + [0.0] * 50, [0.0] * 9 + [1.0] + [0.0] * 50)
    [alone] = results = [entry("a", *slight)]
    judge(results, same=False)
    assert alone["verdict"] == "better"
    many = [entry(name, *slight) for name in "abcde"]
    judge(many, same=False)
    assert {result["verdict"] for result in many} == {"none"}
    assert "by chance among several comparisons: Holm's p 0.11" in many[0]["sentence"]
    assert many[0]["differences"]["accuracy"] == alone["differences"]["accuracy"], "intervals stand by themselves"


def test_what_nobody_judged_is_not_compared() -> None:
    results = [entry("a", [math.nan, 1.0], [1.0, math.nan]), entry("b", [0.3], [0.1])]
    judge(results, same=False)
    assert [result["verdict"] for result in results] == ["unknown", "none"]
    assert "no problem that both were judged on" in results[0]["sentence"]
    assert "a single problem, which shows nothing" in results[1]["sentence"]


def test_a_folder_holds_all_forms(workshop: Path) -> None:
    loopwise("evaluate", "model", "--baseline", "other", *ALL, "--out", "found")
    assert sorted(path.name for path in (workshop / "found").iterdir()) == [
        "evaluation.json",
        "evaluation.md",
        "evaluation.svg",
    ]
    found = strict((workshop / "found/evaluation.json").read_text())
    page = (workshop / "found/evaluation.md").read_text()
    for words in (
        "# Evaluation of <code>model</code>",
        "](evaluation.svg)",
        "| accuracy | 60.0% |",
        "Holm",
        "bits per",
    ):
        assert words in page
    assert found["results"][0]["sentence"].replace("rows.jsonl", "<code>rows.jsonl</code>") in page
    drawing = (workshop / "found/evaluation.svg").read_text()
    for words in ("<svg", "rows.jsonl", "60.0%", "other (baseline)", "Bits per byte"):
        assert words in drawing
    assert not list(workshop.glob(".tmp-*"))


def test_all_is_written_or_nothing(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = strict(loopwise("evaluate", "model", *ALL, "--json").stdout)
    before = contents(workshop)
    for broken in ("evaluation_figure", "evaluation_markdown", "fsync", "to_json"):
        with monkeypatch.context() as patched:
            patched.setattr(f"loopwise.report.evaluation.{broken}", _full)
            with pytest.raises(OSError, match="no room"):
                write_evaluation(workshop / "found", found)
        assert contents(workshop) == before


def _full(*_: object, **__: object) -> str:
    raise OSError("no room")


def test_a_name_can_spoil_no_page(workshop: Path) -> None:
    name = "<script>`|x$\u202e.jsonl"
    (workshop / name).write_text(lines(*ROWS))
    loopwise(
        *("evaluate", "model", "--data", name, "--reward", "mine.py:even", "--max-tokens", 3, "--baseline", "other"),
        *("--out", "found"),
    )
    page = (workshop / "found/evaluation.md").read_text()
    assert "<script>" not in page
    assert "\u202e" not in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows if "accuracy" in line} == {9}
    assert "<script>" not in (workshop / "found/evaluation.svg").read_text()
    assert json.loads((workshop / "found/evaluation.json").read_text())["results"][0]["name"] == name


BAD = [
    (["--tasks", "addition,,sorting"], ('--tasks "addition,,sorting"', "names with commas")),
    (["--tasks", "adition"], ('unknown task "adition"',)),
    (["--tasks", "addition", "--task", "addition"], ("addition: asked for twice",)),
    (["--tasks", "addition,sorting", "--task-option", "digits=2"], ("--task-option goes with one --task",)),
    (["--text", "text.txt", "--baseline", "nowhere"], ("nowhere: no such folder here",)),
    (["--text", "text.txt", "--out", "page.md"], ("page.md: name a folder", "ends in .json")),
    (["--text", "text.txt", "--out", "other"], ("other: exists already",)),
    (["--text", "text.txt", "--harness", "nowhere.jsonl"], ("--harness nowhere.jsonl: no such file",)),
    (["--bias", "builtin-e"], ('--bias "builtin-e"', "builtin-en")),
    (["--bias", "builtin"], ("apart, so it cannot be probed with them", "in words that it knows")),
]


@pytest.mark.parametrize(("arguments", "says"), BAD, ids=lambda part: " ".join(part)[:60])
def test_bad_input(arguments: list[str], says: tuple[str, ...], workshop: Path) -> None:
    before = contents(workshop)
    message = " ".join(refused("evaluate", "model", *arguments).split())
    for words in says:
        assert words in message
    assert contents(workshop) == before
