"""The command line where nothing is wrong: dry runs, JSON, the runs commands, odd but good input, and quick help."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.bad_inputs import IMPROVE, ROWS, TUNE, lines, reward
from tests.command_line import loopwise, refused, strict

EQUAL = reward("return [1.0] * len(completions)")["mine.py"]
NONE = reward("return [None] * len(completions)")["mine.py"]


@pytest.fixture
def workshop(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test, with a model, rows and two recipes."""
    (tmp_path / "model").symlink_to(model)
    (tmp_path / "rows.jsonl").write_text(lines(*ROWS))
    (tmp_path / "improve.yaml").write_text(IMPROVE)
    (tmp_path / "tune.yaml").write_text(TUNE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_dry_run_of_the_loop(workshop: Path) -> None:
    before = sorted(workshop.rglob("*"))
    shown = loopwise("improve", "improve.yaml", "--dry-run").stdout
    assert "4 problems x 2 samples = 8 samples" in shown
    assert "1 steps x 2 rows = 2 rows" in shown
    assert "(measured)" in shown
    assert shown.count(" -> 0") + shown.count(" -> 1") == 3
    assert sorted(workshop.rglob("*")) == before


def test_dry_run_of_tuning_as_json(workshop: Path) -> None:
    before = sorted(workshop.rglob("*"))
    plan = strict(loopwise("tune", "tune.yaml", "update.steps=12", "--dry-run", "--json").stdout)
    assert plan["each round"]["training"] == "12 steps x 2 rows = 24 rows, 1.0 epochs"
    assert plan["data"] == {"train": "24 rows", "dev": "8 problems", "test": "8 problems", "labelled": "24 rows"}
    assert plan["machine"]["memory"].endswith("(measured)")
    assert sorted(workshop.rglob("*")) == before


def test_dry_run_says_how_few_rows_there_are(workshop: Path) -> None:
    shown = loopwise("improve", "improve.yaml", "problems=100", "--dry-run").stdout
    assert "100 problems a round asked for, the train rows are only 24" in shown


def test_dry_run_of_a_reward_that_cannot_judge(workshop: Path) -> None:
    (workshop / "mine.py").write_text(NONE)
    shown = loopwise("improve", "improve.yaml", "rewards=['mine.py:f']", "--dry-run").stdout
    assert shown.count("could not be judged") == 3


@pytest.mark.parametrize("command", ["improve", "tune"])
def test_json_is_all_there_is_on_standard_output(command: str, workshop: Path) -> None:
    result = loopwise(command, f"{command}.yaml", "--out", "out", "--json")
    summary = strict(result.stdout)
    assert summary["run_id"] == command
    assert summary["rounds"][0]["round"] == 1
    assert "Report: out/report.html" in result.stderr


def test_json_where_nothing_could_be_judged(workshop: Path) -> None:
    (workshop / "mine.py").write_text(NONE)
    result = loopwise("improve", "improve.yaml", "rewards=['mine.py:f']", "--out", "out", "--json")
    assert strict(result.stdout)["stages"]["improved"]["test"] == {"accuracy": None, "ci95": [None, None], "n": 0}


def test_a_reward_that_fails_later_is_told(workshop: Path) -> None:
    (workshop / "mine.py").write_text(
        "calls = []\n"
        "def f(completions, **columns):\n"
        "    calls.append(1)\n"
        "    assert len(calls) == 1, 'only once'\n"
        "    return [1.0] * len(completions)\n"
    )
    shown = loopwise("improve", "improve.yaml", "rewards=['mine.py:f']", "--out", "out").stdout
    assert "warning: reward f failed on 8 of 8 samples" in shown


def test_runs(workshop: Path) -> None:
    first = strict(loopwise("improve", "improve.yaml", "--seed", "3", "--out", "runs/a", "--json").stdout)
    loopwise("tune", "tune.yaml", "--out", "runs/b")
    (workshop / "runs" / "c").mkdir()
    (workshop / "runs" / "c" / "journal.db").write_text("damaged")
    found = strict(loopwise("runs", "list", "--json").stdout)
    assert [(run["folder"], run["run"], run["status"], run["rounds"]) for run in found] == [
        ("runs/a", "improve", "finished", 1),
        ("runs/b", "tune", "finished", 1),
        ("runs/c", None, "unreadable", 0),
    ]
    table = loopwise("runs", "list", "runs").stdout
    assert "runs/a" in table
    assert "unreadable" in table
    shown = strict(loopwise("runs", "show", "runs/a", "--json").stdout)
    assert shown["improve"]["status"] == "finished"
    assert [row["round"] for row in shown["improve"]["rounds"]] == [1]
    assert "gate" in loopwise("runs", "show", "runs/a").stdout
    resumed = strict(loopwise("runs", "resume", "runs/a", "--json").stdout)
    assert resumed["stages"] == first["stages"]
    assert resumed["seed"] == 3


def test_names_are_shown_as_they_are(workshop: Path, no_report: None) -> None:
    """Brackets are no markup, and colons no pictures."""
    out = "runs/[/x][bold]y:smile:"
    shown = loopwise("tune", "tune.yaml", "--out", out).stdout
    assert f"Report: {out}/report.html" in shown
    assert f"from_pretrained): {out}/model" in shown
    assert out in loopwise("runs", "list").stdout
    assert out in loopwise("runs", "diff", out, out).stdout
    assert "finished" in loopwise("runs", "show", out).stdout
    (workshop / "[bold]x.txt").write_text("12+34=46" * 20)
    assert "[bold]x.txt" in loopwise("evaluate", "model", "--text", "[bold]x.txt").stdout


def test_a_dry_run_knows_the_folder_it_was_given(workshop: Path, no_report: None) -> None:
    (workshop / "runs/tune").mkdir(parents=True)
    (workshop / "runs/tune/mine.txt").touch()
    assert "runs/tune: exists already" in refused("tune", "tune.yaml", "--dry-run", "--out", "runs/tune")
    loopwise("tune", "tune.yaml", "--dry-run")
    assert "Leave one out" in refused("tune", "tune.yaml", "--dry-run", "--resume")


def test_no_runs(workshop: Path) -> None:
    assert "no runs here. Start one with `loopwise demo`" in loopwise("runs", "list").stdout
    assert strict(loopwise("runs", "list", "--json").stdout) == []


GOOD = {
    "recipe with Windows line ends": (IMPROVE.replace("\n", "\r\n").encode(), [], {}),
    "recipe with a byte-order mark": (b"\xef\xbb\xbf" + IMPROVE.encode(), [], {}),
    "recipe with anchors": (
        IMPROVE.replace("[number]", "[&rule {use: number}]").encode() + b"report_rewards: [*rule]\n",
        [],
        {},
    ),
    "numbers as text": (IMPROVE.encode(), ["rounds='1'", "update.optimizer.lr='1e-4'"], {}),
    "rows with Windows line ends and names beyond ASCII": (
        IMPROVE.replace("rows.jsonl", "é 行.jsonl").encode(),
        [],
        {"é 行.jsonl": "\ufeff" + lines(*ROWS).replace("\n", "\r\n")},
    ),
    "one row": (
        IMPROVE.encode(),
        ["data={train: one.jsonl, dev: 0, test: 0, reference_columns: [answer]}"],
        {"one.jsonl": lines(ROWS[0])},
    ),
    "rows twice": (
        IMPROVE.encode(),
        ["data={train: twice.jsonl, dev: 0, test: 0, reference_columns: [answer]}", "problems=80"],
        {"twice.jsonl": lines(*ROWS, *ROWS)},
    ),
    "nothing passes": (IMPROVE.encode(), ["update.threshold=5", "rounds=2"], {}),
    "all rewards equal": (IMPROVE.encode(), ["rewards=['mine.py:f']"], {"mine.py": EQUAL}),
}


@pytest.mark.parametrize("name", GOOD)
def test_odd_but_good(name: str, workshop: Path) -> None:
    recipe, overrides, files = GOOD[name]
    (workshop / "recipe.yaml").write_bytes(recipe)
    for file, content in files.items():
        (workshop / file).write_text(content, encoding="utf-8", newline="")
    loopwise("improve", "recipe.yaml", *overrides, "--out", "out")
    assert (workshop / "out" / "model" / "model.safetensors").is_file()


def test_the_help_shows_a_whole_recipe() -> None:
    shown = loopwise("improve", "--help").stdout
    assert "reference_columns: [answer]}" in shown
    assert "rewards: [number]" in shown


@pytest.mark.parametrize(
    "start", ["import loopwise", "import runpy; runpy.run_module('loopwise', run_name='__main__')"]
)
def test_starting_loads_nothing_heavy(start: str) -> None:
    heavy = "{'torch', 'transformers', 'scipy', 'pyarrow', 'sqlalchemy'}"
    code = (
        f"import sys; sys.argv = ['loopwise', '--help']\ntry:\n    {start}\nexcept SystemExit: pass\n"
        f"print({heavy} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    assert shown.splitlines()[-1] == "set()"


@pytest.mark.skipif(os.getloadavg()[0] > 1.5 * (os.cpu_count() or 1), reason="the machine is too busy to time anything")
def test_help_answers_in_half_a_second() -> None:
    def seconds() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "loopwise", "--help"], capture_output=True, timeout=60, check=True)
        return time.perf_counter() - began

    assert statistics.median(seconds() for _ in range(3)) < 0.5


def completed(line: str, folder: Path) -> tuple[list[str], float]:
    """What the shell is offered for the last word of a line, in how many seconds."""
    program = "import sys; sys.argv = ['loopwise']; from loopwise.cli import main; main()"
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    began = time.perf_counter()
    shown = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **words, "_LOOPWISE_COMPLETE": "complete_bash"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return shown.stdout.split(), time.perf_counter() - began


@pytest.mark.skipif(os.getloadavg()[0] > 1.5 * (os.cpu_count() or 1), reason="the machine is too busy to time anything")
def test_the_shell_is_answered_within_a_second(tmp_path: Path) -> None:
    assert (
        min(completed(f"loopwise {line}", tmp_path)[1] for line in ("", "evaluate m --task reasoning_gym:") * 2) < 1.0
    )


def test_what_the_shell_is_offered(tmp_path: Path) -> None:
    (tmp_path / "runs/better/model").mkdir(parents=True)
    (tmp_path / "runs/better/journal.db").touch()
    (tmp_path / "runs/mine.yaml").touch()
    (tmp_path / "runs/model").mkdir()
    (tmp_path / "runs/model/config.json").touch()
    offers = {
        "": ["demo", "pretrain", "tune", "improve", "judge", "generate", "evaluate", "runs", "recipes"],
        "ge": ["generate"],
        "improve ": ["runs/"],
        "improve runs/": ["runs/better/", "runs/mine.yaml", "runs/model/"],
        "runs resume ": ["runs/better"],
        "runs diff runs/better r": ["runs/better"],
        "generate runs/": ["runs/better", "runs/model"],
        "generate ./r": ["./runs/better", "./runs/model"],
        "recipes copy addition-": ["addition-base", "addition-dpo", "addition-grpo", "addition-noisy"],
        "evaluate m --task add": ["addition"],
        "evaluate m --task reasoning_gym:chain": ["reasoning_gym:chain_sum"],
    }
    assert {line: completed(f"loopwise {line}", tmp_path)[0] for line in offers} == offers


def test_completion_knows_the_generators_of_reasoning_gym() -> None:
    from reasoning_gym.factory import DATASETS

    from loopwise.cli.completion import tasks

    assert tasks("reasoning_gym:") == sorted(f"reasoning_gym:{name}" for name in DATASETS)


def test_completing_a_task_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom loopwise.cli.completion import models, tasks\nassert tasks('r')\nmodels('')\n"
        "print({'torch', 'transformers', 'reasoning_gym', 'sqlalchemy'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    assert shown.splitlines()[-1] == "set()"


def test_every_kind_of_recipe_has_its_command() -> None:
    from loopwise.config.recipes import COMMANDS
    from loopwise.stages.commands import MODULES

    assert MODULES.keys() == COMMANDS.keys()
    for command in COMMANDS:
        assert "RECIPE.yaml" in loopwise(command, "--help").stdout


def test_pretraining_and_going_on_with_it(workshop: Path, no_report: None) -> None:
    (workshop / "text.txt").write_text("12+34=46\n" * 200)
    (workshop / "pretrain.yaml").write_text(
        "model: {create: gpt2, depth: 1, context: 16, tokenizer: byte}\ndata: {train: text.txt}\n"
        "update: {steps: 1, batch_size: 2}\nrounds: 1\nsampling: {max_tokens: 3}\nruntime: {threads: 1}\n"
    )
    assert "parameters" in loopwise("pretrain", "pretrain.yaml", "--dry-run").stdout
    summary = strict(loopwise("pretrain", "pretrain.yaml", "--out", "out", "--json").stdout)
    assert summary["run_id"] == "pretrain"
    resumed = strict(loopwise("runs", "resume", "out", "--json").stdout)
    assert resumed["stages"] == summary["stages"]
    dev = summary["stages"]["pretrained"]["dev"]
    shown = loopwise("runs", "show", "out").stdout
    assert "nats a token" in shown
    assert f"{dev['nats_per_token']:.3f}" in shown
    assert "kept" not in shown
    assert f"perplexity {dev['perplexity']:,.0f}" in loopwise("runs", "list").stdout
    [entry] = strict(loopwise("runs", "list", "--json").stdout)
    assert entry["dev"] is None
    assert entry["perplexity"] == dev["perplexity"]
    assert loopwise("generate", "out", "--prompt", "12+", "--max-tokens", 3).exit_code == 0
