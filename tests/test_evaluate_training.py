"""What ``loopwise evaluate`` knows of a model's training: prompts met there, and the figures without them."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.bad_inputs import lines
from tests.command_line import loopwise, strict

from loopwise.evaluate.stats import wilson
from loopwise.stages.contamination import contamination
from loopwise.stages.trained_on import training_of
from loopwise.types import Problem

TRAIN = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(6) for b in range(6)]
FRESH = [{"prompt": f"{a}+{b}="} for a in (7, 8) for b in range(6)]
TUNE = """\
model: {path: MODEL}
data: {train: train.jsonl, dev: 0, test: 0}
update: {steps: 1, batch_size: 2}
runtime: {threads: 1}
"""
IMPROVE = """\
model: model
data: {train: rows.jsonl, dev: 4, test: 4}
rewards: ["mine.py:even"]
rounds: 1
problems: 4
samples: 2
sampling: {max_tokens: 3}
update: {method: rft, steps: 1, batch_size: 2, threshold: -1}
runtime: {threads: 1}
"""
PRETRAIN = """\
model: model
data: {train: corpus.jsonl, dev: 0}
update: {steps: 1, batch_size: 1, window: 8}
rounds: 1
prompts: []
runtime: {threads: 1}
"""
REWARDS = """\
def even(prompts, **columns):
    return [float(int(prompt.strip()[0]) % 2 == 0) for prompt in prompts]
"""


@pytest.fixture
def workshop(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, no_report: None) -> Path:
    """A working folder with a model and rows to train on."""
    (tmp_path / "model").symlink_to(model)
    (tmp_path / "train.jsonl").write_text(lines(*TRAIN))
    (tmp_path / "mine.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return tmp_path


def tune(model: str, out: str, train: str = "train.jsonl") -> None:
    Path("tune.yaml").write_text(TUNE.replace("MODEL", model))
    loopwise("tune", "tune.yaml", f"data.train={train}", "--out", out)


def evaluated(model: str, *rows: dict[str, str], more: tuple[str, ...] = ()) -> dict[str, Any]:
    Path("asked.jsonl").write_text(lines(*rows))
    flags = ("--data", "asked.jsonl", "--reward", "mine.py:even", "--max-tokens", 3, "--json", *more)
    found: dict[str, Any] = strict(loopwise("evaluate", model, *flags).stdout)
    return found


def prompts_of(model: str) -> set[str]:
    """The prompts that a model was trained on."""
    return {str(problem.prompt) for _, problem in training_of(model).problems}


def test_known_overlaps_are_found_and_left_out(workshop: Path) -> None:
    tune("model", "run")
    met = [{"prompt": " 0+1= "}, {"prompt": "１+1="}, {"prompt": "2+5="}]  # white space and wide digits aside
    found = evaluated("run", *met, *FRESH)
    [result] = found["results"]
    [summary] = result["contamination"]
    assert {name: summary[name] for name in ("known", "problems", "met", "exact", "wording")} == {
        "known": True,
        "problems": 15,
        "met": 3,
        "exact": 3,
        "wording": 0,
    }
    assert summary["examples"][0]["source"].endswith("train.jsonl line 2")
    assert result["figures"]["accuracy"]["value"] == 8 / 15
    assert result["clean"]["problems"] == 12
    assert result["clean"]["figures"]["accuracy"] == {"value": 0.5, "ci95": list(wilson(6, 12)), "n": 12}
    assert found["training"][0]["sources"] == {"run, tune: labelled rows": 36}
    shown = loopwise("evaluate", "run", "--data", "asked.jsonl", "--reward", "mine.py:even", "--max-tokens", 3).stdout
    words = "run: 3 of 15 prompts met in training (3 exactly, 0 by wording); without them accuracy 50.0%"
    assert words in " ".join(shown.split())


QUESTION = "1 2 3 4 5 6 7 8"


@pytest.mark.parametrize(
    ("rows", "asked"),
    [
        ([{"text": "7+5=12"}, {"text": "8+8=16"}], "7+5="),
        ([{"prompt": "1=", "completion": "7+5=12"}], "7+5="),
        ([{"text": f"0 {QUESTION} 9"}], QUESTION),
        ([{"prompt": "1=", "completion": f"9 {QUESTION}"}], QUESTION),
        ([{"prompt": "1=", "chosen": f"9 {QUESTION}", "rejected": "2"}], QUESTION),
        ([{"prompt": "1=", "chosen": "2", "rejected": f"9 {QUESTION}"}], QUESTION),
    ],
)
def test_what_was_learned_is_looked_through_and_not_prompts_alone(
    workshop: Path, rows: list[dict[str, str]], asked: str
) -> None:
    (workshop / "learned.jsonl").write_text(lines(*rows))
    (workshop / "tune.yaml").write_text(TUNE.replace("MODEL", "model"))
    method = ["update.method=dpo"] if "chosen" in rows[0] else []
    loopwise("tune", "tune.yaml", "data.train=learned.jsonl", *method, "--out", "run")
    summary, met = contamination("run", training_of("run"), [Problem("0", asked), Problem("1", "6+6=")])
    assert (summary["met"], list(met)) == (1, [0])


def test_another_model_in_the_place_of_the_first_is_not_taken_for_it(workshop: Path) -> None:
    tune("model", "first")
    tune("first/model", "second")
    shutil.move("first", "kept")
    (workshop / "other.jsonl").write_text(lines({"prompt": "7+0=", "completion": "7"}))
    tune("model", "first", "other.jsonl")
    training = training_of("second")
    assert list(training.sources.values()) == [36]
    [gap] = training.unknown
    assert gap == f"{workshop / 'first/model'}: holds another model now than the run tune after it began with"
    shutil.rmtree("first")
    tune("model", "first")
    training = training_of("second")
    assert list(training.sources.values()) == [36, 36], "the same model, made once more"
    assert training.unknown == training_of("first").unknown


def test_a_model_that_is_gone_leaves_its_journal_to_be_read(workshop: Path) -> None:
    tune("model", "first")
    tune("first/model", "second")
    shutil.rmtree("first/model")
    training = training_of("second")
    assert list(training.sources.values()) == [36, 36]
    assert training.unknown[0].startswith(f"{workshop / 'first/model'}: its model cannot be read any more, so it may")


def test_a_model_that_was_given_adapters_is_known_again(workshop: Path) -> None:
    tune("model", "first")
    Path("tune.yaml").write_text(TUNE.replace("{path: MODEL}", "{path: first/model, lora: {rank: 2}}"))
    loopwise("tune", "tune.yaml", "--out", "second")
    assert list(training_of("second").sources.values()) == [36, 36]


def test_a_measured_model_is_known_without_its_weights(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("tune.yaml").write_text(TUNE.replace("MODEL", "model").replace("dev: 0", "dev: 4"))
    loopwise("tune", "tune.yaml", "--out", "first")
    tune("first/model", "second", "train.jsonl")

    def loaded(*_: object) -> None:
        raise AssertionError("its journal tells")

    monkeypatch.setattr("loopwise.stages.trained_on.start_policy", loaded)
    assert list(training_of("second").sources.values()) == [36, 32]


def test_models_that_taught_are_said_to_be_unknown(workshop: Path) -> None:
    (workshop / "rows.jsonl").write_text(lines(*FRESH))
    recipe = IMPROVE.partition("update:")[0] + "update: {method: distill, teacher: model}\nruntime: {threads: 1}\n"
    (workshop / "improve.yaml").write_text(recipe)
    loopwise("improve", "improve.yaml", "--out", "run")
    assert f"run, improve: what its teacher {workshop / 'model'} was trained on" in training_of("run").unknown
    with closing(sqlite3.connect("run/journal.db")) as journal, journal:
        [[written]] = journal.execute("SELECT config FROM runs")
        config = json.loads(written)
        config["rewards"][0] |= {"use": "trained_judge", "options": {"path": "judged"}}
        journal.execute("UPDATE runs SET config = ?", (json.dumps(config),))
    assert "run, improve: what its judge judged was trained on" in training_of("run").unknown


def test_answers_that_a_run_was_shown_count_as_well(workshop: Path) -> None:
    rows = [{"prompt": f"{a}=", "completion": f"9 {QUESTION} {a}"} for a in range(6)]
    (workshop / "rows.jsonl").write_text(lines(*rows))
    for method in ("spin", "rft, keep: gold, threshold: -1"):
        recipe = IMPROVE.replace("dev: 4, test: 4", "dev: 0, test: 0")
        recipe = recipe.partition("update:")[0] + f"update: {{method: {method}, steps: 1, batch_size: 2}}\n"
        (workshop / "improve.yaml").write_text(recipe.replace("max_tokens: 3", "max_tokens: 8"))
        out = method.partition(",")[0]
        loopwise("improve", "improve.yaml", "--out", out)
        summary, _ = contamination(out, training_of(out), [Problem("0", QUESTION)])
        assert summary["met"] == 1


def test_the_base_of_a_demo_that_was_stopped_knows_its_rows(workshop: Path) -> None:
    tune("model", "run")  # as the demo leaves it between its base and the first entry of the loop
    shutil.copytree("run/model", "run/base")
    assert training_of("run/base").sources == {"run, tune: labelled rows": 36}


def test_nothing_met_leaves_nothing_out(workshop: Path) -> None:
    tune("model", "run")
    [result] = evaluated("run", *FRESH)["results"]
    assert result["contamination"][0]["met"] == 0
    assert "clean" not in result


def test_a_model_without_a_run_is_said_to_be_unknown(workshop: Path) -> None:
    found = evaluated("model", *FRESH)
    assert found["training"] == [
        {
            "model": "model",
            "known": False,
            "sources": {},
            "unknown": ["model: no run of loopwise, so nobody knows what it was trained on"],
        }
    ]
    assert found["results"][0]["contamination"] == [{"model": "model", "known": False, "problems": 12}]


def test_the_runs_before_count_too(workshop: Path) -> None:
    (workshop / "other.jsonl").write_text(lines({"prompt": "7+0=", "completion": "7"}, *TRAIN[:3]))
    tune("model", "first", "other.jsonl")
    tune("first/model", "second")
    for name in ("second", "second/model"):
        found = evaluated(name, *FRESH)
        assert found["results"][0]["contamination"][0]["met"] == 1
        assert list(found["training"][0]["sources"].values()) == [36, 4]
    assert (
        training_of("second").unknown[0].endswith("model: no run of loopwise, so nobody knows what it was trained on")
    )


def test_the_base_of_a_run_has_met_what_came_before_it(workshop: Path) -> None:
    tune("model", "first")
    (workshop / "rows.jsonl").write_text(lines(*FRESH))
    recipe = IMPROVE.replace("model: model", "model: first/model")
    (workshop / "improve.yaml").write_text(recipe)
    loopwise("improve", "improve.yaml", "--out", "run")
    before = {f"{workshop / 'first'}, tune"}
    assert {name.partition(":")[0] for name in training_of("run").sources} == {"run, improve", *before}
    assert {name.partition(":")[0] for name in training_of("run/base").sources} == before


def test_training_warns_whichever_way_a_run_is_named(workshop: Path) -> None:
    """Of the model in a run's folder, and of the baseline, as of the folder itself."""
    (workshop / "tune.yaml").write_text(TUNE.replace("MODEL", "model").replace("train: train.jsonl", "task: addition"))
    options = ["data.task_options={digits: 1}", "data.labelled=20", "data.dev=4", "data.test=4"]
    loopwise("tune", "tune.yaml", *options, "--out", "run")
    flags = ("--task", "addition", "--task-option", "digits=1", "--max-tokens", 3, "--problems", 4, "--seed", 5)
    for named in (("run/model",), ("model", "--baseline", "run"), ("model", "--baseline", "run/model")):
        said = " ".join(loopwise("evaluate", *named, *flags).stderr.split())
        assert f"task addition: {named[-1]} may have trained on some of these problems" in said
        assert "--seed 0" in said
    both = loopwise("evaluate", "run", "--baseline", "run", *flags).stderr
    assert " ".join(both.split()).count("may have trained") == 1
    assert "may have trained" not in loopwise("evaluate", "run/model", *flags[:-2]).stderr


def test_the_baseline_may_have_met_others(workshop: Path) -> None:
    (workshop / "other.jsonl").write_text(lines({"prompt": "7+0=", "completion": "7"}, *TRAIN[3:]))
    tune("model", "first", "other.jsonl")
    tune("model", "second")
    asked = ({"prompt": "0+1="}, *FRESH)
    [result] = evaluated("second", *asked, more=("--baseline", "first"))["results"]
    assert [summary["met"] for summary in result["contamination"]] == [1, 1]
    assert result["clean"]["problems"] == 11
    assert result["clean"]["differences"]["accuracy"]["n"] == 11
    assert result["clean"]["baseline"]["figures"]["accuracy"]["n"] == 11
    assert result["sentence"].startswith("no difference seen on asked.jsonl without what was met in training (+0.0")


def test_problems_drawn_by_the_loop_count_and_held_out_ones_do_not(workshop: Path) -> None:
    rows = [{"prompt": row["prompt"]} for row in TRAIN]
    (workshop / "rows.jsonl").write_text(lines(*rows))
    (workshop / "improve.yaml").write_text(IMPROVE)
    loopwise("improve", "improve.yaml", "--out", "run")
    found = evaluated("run", *rows)
    assert found["results"][0]["contamination"][0]["met"] == 4
    assert found["training"][0]["sources"] == {"run, improve: problems drawn in training": 4}


def test_text_pretrained_on_is_looked_through_while_it_is_there(workshop: Path) -> None:
    texts = [{"text": f"{first}+3={first + 3}"} for first in range(8)]
    (workshop / "corpus.jsonl").write_text(lines(*texts))
    (workshop / "pretrain.yaml").write_text(PRETRAIN)
    loopwise("pretrain", "pretrain.yaml", "--out", "run")
    [summary] = evaluated("run", *FRESH)["results"][0]["contamination"]
    assert (summary["met"], summary["examples"][0]["prompt"], summary["examples"][0]["seen"]) == (1, "7+3=", "7+3=10")
    (workshop / "corpus.jsonl").write_text(lines(*texts[1:]))
    assert any("has changed since" in gap for gap in training_of("run").unknown)
    (workshop / "corpus.jsonl").unlink()
    assert any("its data cannot be read any more" in gap for gap in training_of("run").unknown)


def test_a_task_knows_its_own_problems(workshop: Path) -> None:
    (workshop / "tune.yaml").write_text(TUNE.replace("MODEL", "model").replace("train: train.jsonl", "task: addition"))
    options = [
        "data.task_options={digits: 1}",
        "data.labelled=20",
        "data.dev=4",
        "data.test=4",
    ]
    loopwise("tune", "tune.yaml", *options, "--out", "run")
    flags = ("--tasks", "addition", "--task-option", "digits=1", "--max-tokens", 3, "--json", "--problems")
    [own] = strict(loopwise("evaluate", "run", *flags, 4).stdout)["results"]
    assert own["contamination"][0]["met"] == 0, "its held-out problems"
    [other] = strict(loopwise("evaluate", "run", *flags, 12, "--seed", 1).stdout)["results"]
    [summary] = other["contamination"]
    trained = {frozenset(prompt.rstrip("=").split("+")) for prompt in prompts_of("run")}
    prompts = {frozenset(one["prompt"].rstrip("=").split("+")) for one in summary["examples"]}
    assert summary["met"] > 0
    assert prompts <= trained


def test_python_that_a_folder_names_is_not_run(workshop: Path) -> None:
    (workshop / "change.py").write_text("def change(row, generator):\n    return row\n")
    Path("tune.yaml").write_text(
        TUNE.replace("MODEL", "model").replace("test: 0", "test: 0, augment: change.py:change")
    )
    loopwise("tune", "tune.yaml", "--out", "run")
    (workshop / "change.py").write_text('open("sprung", "w").close()\ndef change(row, generator):\n    return row\n')
    found = evaluated("run", {"prompt": "0+1="}, *FRESH)
    assert not (workshop / "sprung").exists()
    assert found["results"][0]["contamination"][0]["met"] == 1
    [gap, _] = found["training"][0]["unknown"]
    assert gap.startswith("run, tune: rows were changed by ")


def test_the_hub_is_not_asked_for_what_a_folder_names(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune("model", "run")
    with closing(sqlite3.connect("run/journal.db")) as journal, journal:
        journal.execute("UPDATE runs SET config = replace(config, ?, 'owner/rows')", (str(workshop / "train.jsonl"),))

    def asked(name: str) -> None:
        raise AssertionError(f"the hub was asked for {name}")

    monkeypatch.setattr("loopwise.data.formats.read_hub", asked)
    training = training_of("run")
    assert not training.sources
    assert "owner/rows is no file here, and the hub is not looked at" in training.unknown[0]


def test_the_same_problems_under_another_tasks_name(workshop: Path) -> None:
    (workshop / "tune.yaml").write_text(TUNE.replace("MODEL", "model").replace("train: train.jsonl", "task: revision"))
    options = ["data.task_options={digits: 1, drafts: 0}", "data.labelled=30", "data.dev=4", "data.test=4"]
    loopwise("tune", "tune.yaml", *options, "--out", "run")
    flags = ("--tasks", "addition", "--task-option", "digits=1", "--max-tokens", 3, "--json", "--problems", 12)
    done = loopwise("evaluate", "run", *flags)
    [summary] = strict(done.stdout)["results"][0]["contamination"]
    trained = {frozenset(prompt.rstrip("=").split("+")) for prompt in prompts_of("run")}
    assert summary["met"] > 0
    assert {frozenset(one["prompt"].rstrip("=").split("+")) for one in summary["examples"]} <= trained
    own = prompts_of("run")
    assert any(one["prompt"] not in own for one in summary["examples"]), "a + b is b + a"
    said = " ".join(done.stderr.split())
    assert "may have trained on some of these problems" in said
    assert "To ask those it held out: --task revision" in said
