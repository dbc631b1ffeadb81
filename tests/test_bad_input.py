"""What a person can get wrong, through the real command line: one clear message, exit code 2, nothing half-written."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.bad_inputs import DATA, IMPROVE, MODELS, RECIPES, REWARDS, ROWS, TUNE, Case, lines, reward
from typer.testing import CliRunner

from loopwise.cli import app
from loopwise.runs.lock import run_lock

JOURNAL_SIDE_FILES = ("-shm", "-wal")


def furnish(folder: Path, model: Path) -> None:
    """Everything a run needs, in ``folder``."""
    (folder / "model").symlink_to(model)
    (folder / "rows.jsonl").write_text(lines(*ROWS))
    (folder / "improve.yaml").write_text(IMPROVE)
    (folder / "tune.yaml").write_text(TUNE)


@pytest.fixture
def workshop(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test, where the recipes as they are would run."""
    furnish(tmp_path, model)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def contents(folder: Path) -> dict[str, str]:
    """A hash of every file below a folder, links not followed. SQLite leaves its side files at will."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
        if not path.name.endswith(JOURNAL_SIDE_FILES)
    }


@pytest.mark.parametrize("case", RECIPES + DATA + REWARDS + MODELS, ids=lambda case: case.what)
def test_bad_input(case: Case, workshop: Path) -> None:
    for name, content in case.files.items():
        (workshop / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    if case.spoil:
        case.spoil(workshop)
    before = contents(workshop)
    command, _, recipe = case.command.partition(" ")
    message = refused(command, recipe or f"{command}.yaml", *case.arguments, "--out", "out")
    for words in case.says:
        assert words in message
    assert contents(workshop) == before


def refused(*arguments: str) -> str:
    """The message of a command that must end with exit code 2 and say nothing else."""
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.mark.parametrize("recipe", ["improve", "tune"])
def test_a_dry_run_refuses_what_the_run_refuses(recipe: str, workshop: Path) -> None:
    (workshop / "rows.jsonl").write_text(lines({"prompt": 3}))
    assert 'rows.jsonl line 1, column "prompt"' in refused(recipe, f"{recipe}.yaml", "--dry-run")


def test_output_that_exists(workshop: Path) -> None:
    (workshop / "full").mkdir()
    (workshop / "full" / "mine.txt").write_text("precious")
    before = contents(workshop)
    assert "full: exists already and is never overwritten. Choose" in refused(
        "improve", "improve.yaml", "--out", "full"
    )
    assert "tune.yaml: exists already" in refused("tune", "tune.yaml", "--out", "tune.yaml")
    assert contents(workshop) == before


def test_output_below_a_file(workshop: Path) -> None:
    message = refused("improve", "improve.yaml", "--out", "rows.jsonl/out")
    assert "rows.jsonl/out: Not a directory. Check the path" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_output_where_nothing_may_be_written(workshop: Path) -> None:
    (workshop / "closed").mkdir(mode=0o500)
    assert "closed/out: Permission denied. Check" in refused("improve", "improve.yaml", "--out", "closed/out")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Path]:
    """A folder with a finished run in ``run``; the tests that use it must leave it as it is."""
    folder = tmp_path_factory.mktemp("finished")
    furnish(folder, model)
    result = CliRunner().invoke(app, ["improve", str(folder / "improve.yaml"), "--out", str(folder / "run")])
    assert result.exit_code == 0, result.output
    before = contents(folder)
    yield folder
    assert contents(folder) == before


RESUMES = [
    (("samples=3",), ('different now: "samples"', "Put it back")),
    (("rounds=2",), ('different now: "rounds"',)),
    (("--seed", "4"), ('different now: "seed"',)),
    (("update.steps=2", "samples=3"), ('different now: "samples", "update.steps"',)),
]


@pytest.mark.parametrize(("changes", "says"), RESUMES, ids=lambda part: " ".join(part))
def test_resume_with_another_configuration(changes: tuple[str, ...], says: tuple[str, ...], finished: Path) -> None:
    message = refused("improve", str(finished / "improve.yaml"), *changes, "--out", str(finished / "run"), "--resume")
    assert all(words in message for words in says)


def test_resume_with_other_rows(finished: Path) -> None:
    rows = finished / "rows.jsonl"
    good = rows.read_text()
    try:
        rows.write_text(good + lines({"prompt": "77+1=", "answer": "78"}))
        message = refused("runs", "resume", str(finished / "run"))
        assert "another configuration" in message
        assert "train" in message.partition("different now:")[2]
    finally:
        rows.write_text(good)


def test_a_run_that_is_there_already(finished: Path) -> None:
    message = refused("improve", str(finished / "improve.yaml"), "--out", str(finished / "run"))
    assert "exists already and is never overwritten. Continue it with --resume" in message


@pytest.mark.parametrize("command", [["improve", "improve.yaml"], ["tune", "tune.yaml"], ["demo"]])
def test_resume_without_a_run(command: list[str], workshop: Path) -> None:
    before = contents(workshop)
    assert "out: nothing to resume" in refused(*command, "--out", "out", "--resume")
    assert contents(workshop) == before


@pytest.mark.parametrize("command", ["show", "resume"])
def test_runs_on_a_folder_without_one(command: str, workshop: Path) -> None:
    assert "no run here, there is no journal.db" in refused("runs", command, ".")
    assert "nowhere: no run here" in refused("runs", command, "nowhere")
    (workshop / "journal.db").write_text("not a database")
    assert "journal.db: cannot be read as a journal" in refused("runs", command, ".")


def test_runs_of_a_folder_that_is_not_there(workshop: Path) -> None:
    assert "nowhere: no such folder" in refused("runs", "list", "nowhere")


def test_resume_of_a_run_that_never_began(workshop: Path) -> None:
    (workshop / "journal.db").touch()
    assert "stopped before it began. Remove the folder" in refused("runs", "resume", ".")


def test_two_processes_on_one_run(finished: Path) -> None:
    command = [sys.executable, "-m", "loopwise", "runs", "resume", str(finished / "run")]
    with run_lock(finished / "run"):
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert f"process {os.getpid()} is writing this run. Wait until it is done or stop it" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_error_of_a_real_process(workshop: Path) -> None:
    (workshop / "mine.py").write_text(reward("raise ValueError('no')")["mine.py"])
    command = [sys.executable, "-m", "loopwise", "improve", "improve.yaml", "rewards=['mine.py:f']", "--out", "out"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stderr.startswith('error: reward "f": it raised ValueError: no')
    assert "Traceback" not in result.stderr
    assert not (workshop / "out").exists()


FLAGS = [
    (["improve", "improve.yaml", "--sede", "3"], ("No such option: --sede", "--seed")),
    (["improve", "improve.yaml", "--seed", "x"], ("Invalid value for '--seed'",)),
    (["improve"], ("Missing argument 'RECIPE.yaml'",)),
    (["improv"], ("No such command 'improv'. Did you mean 'improve'?",)),
    (["demo", "--rounds", "0"], ("Invalid value for '--rounds'",)),
]


@pytest.mark.parametrize(("arguments", "says"), FLAGS, ids=lambda part: " ".join(part))
def test_wrong_flags(arguments: list[str], says: tuple[str, ...], workshop: Path) -> None:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert all(words in result.stderr for words in says)


def test_a_task_that_runs_out_of_problems(monkeypatch: pytest.MonkeyPatch, workshop: Path) -> None:
    from loopwise.tasks import base, registry
    from loopwise.types import Problem

    tiny = base.Task({"": base.endless(lambda generator: Problem("1", "1+1=", {"answer": "2"}))})
    monkeypatch.setitem(registry.TASKS, "tiny", lambda options: tiny)
    message = refused("improve", "improve.yaml", "data={task: tiny, dev: 1, test: 3}", "--out", "out")
    assert "task tiny: it has too few distinct problems: stream test needs 3" in message


HELD_OUT = lines(*({"prompt": f"{a}+9=", "answer": str(a + 9)} for a in range(8)))
LATE = [
    Case(
        "train prompt too long",
        ("train: 1 of 41 prompts do not fit",),
        ("data={train: long.jsonl, dev: held.jsonl, test: 0}", "problems=100"),
        files={"long.jsonl": lines(*ROWS, {"prompt": "1" * 40, "answer": "1"}), "held.jsonl": HELD_OUT},
    ),
    Case(
        "likelihood without completions",
        ('column "completion": no completion', "data.completion_column"),
        ("gate.metric=likelihood", "data.dev=held.jsonl"),
        files={"held.jsonl": HELD_OUT},
    ),
    Case(
        "gold control without completions",
        ('column "completion": no completion', "data.completion_column"),
        ("controls=[gold]", "data={train: rows2.jsonl, reference_columns: [answer]}"),
        files={"rows2.jsonl": HELD_OUT * 1},
    ),
    Case(
        "report reward missing",
        ('has no function "g"', "Its functions: f"),
        ("report_rewards=['mine.py:g']",),
        files=reward("return [1.0] * len(completions)"),
    ),
    Case(
        "tune: no room for the completions",
        ("dev: 8 of 8 prompts do not fit", "with 1000"),
        ("gate.metric=reward", "rewards=[number]", "sampling.max_tokens=1000"),
        command="tune",
    ),
    Case(
        "tune: held-out row too long",
        ("42 tokens, over the limit of 32",),
        ("data.dev=long.jsonl",),
        command="tune",
        files={"long.jsonl": lines({"prompt": "1" * 40, "completion": "1"})},
    ),
]


@pytest.mark.parametrize("case", LATE, ids=lambda case: case.what)
def test_bad_input_found_before_anything_is_written(case: Case, workshop: Path) -> None:
    test_bad_input(case, workshop)


@pytest.mark.parametrize("command", [["tune", "tune.yaml"], ["demo"]])
def test_resume_of_a_run_of_another_kind(command: list[str], workshop: Path) -> None:
    assert CliRunner().invoke(app, ["improve", "improve.yaml", "--out", "run"]).exit_code == 0
    before = contents(workshop)
    assert "run: holds the run improve" in refused(*command, "--out", "run", "--resume")
    assert contents(workshop) == before


def test_resume_of_a_run_killed_while_its_journal_was_made(workshop: Path) -> None:
    (workshop / "run").mkdir()
    (workshop / "run" / "journal.db").touch()
    result = CliRunner().invoke(app, ["improve", "improve.yaml", "--out", "run", "--resume"])
    assert result.exit_code == 0, result.output
