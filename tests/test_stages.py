"""Whole runs: real rows through the loop, the demo's files and figures, controls beside the loop."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from loopwise.config.reading import load_recipe, parse_recipe
from loopwise.config.recipes import ImproveRecipe, TuneRecipe
from loopwise.errors import ConfigError, ControlError, DataError, DiskFullError, OutputExistsError
from loopwise.evaluate import likelihood
from loopwise.models.folders import save_policy
from loopwise.models.policy import Policy, Weights
from loopwise.models.presets import character_tokenizer
from loopwise.observer import Observer
from loopwise.runs.journal import Journal
from loopwise.session import Session
from loopwise.stages import demo as demo_stage
from loopwise.stages.finetune import tune
from loopwise.stages.improve import improve

GSM8K = Path(__file__).parents[2] / "shared" / "data" / "gsm8k_train.jsonl"
ROWS = 60


@pytest.fixture(scope="module")
def gsm8k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shortest real rows, a small local model that can spell them, and a recipe."""
    if not GSM8K.is_file():
        pytest.skip("needs the GSM8K rows in ../shared/data")
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("gsm8k")
    rows = [json.loads(line) for line in GSM8K.read_text(encoding="utf-8").splitlines()]
    rows = sorted(rows, key=lambda row: len(row["question"] + row["answer"]))[:ROWS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:5]), encoding="utf-8")
    (folder / "rest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[5:]), encoding="utf-8")
    tokenizer: Any = character_tokenizer("".join(sorted({c for row in rows for c in row["question"] + row["answer"]})))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    save_policy(Policy(Weights.of(LlamaForCausalLM(config)), tokenizer), folder / "model")
    (folder / "recipe.yaml").write_text(
        """
model: model
data:
  train: rest.jsonl
  labelled: labelled.jsonl
  prompt_column: question
  completion_column: answer
  reference_columns: [answer]
  dev: 10
  test: 10
rewards: [number]
rounds: 2
problems: 6
samples: 3
sampling: {max_tokens: 12}
update: {method: rft, steps: 3, batch_size: 4}
runtime: {threads: 1}
""",
        encoding="utf-8",
    )
    return folder


def test_gsm8k_rows_run_journal_resume_and_report(gsm8k: Path, tmp_path: Path) -> None:
    recipe = load_recipe(ImproveRecipe, gsm8k / "recipe.yaml")
    out = tmp_path / "out"
    result = improve(recipe, out)
    stages = result.summary["stages"]
    assert set(stages) == {"base", "improved"}
    assert stages["base"]["test"]["n"] == 10
    with Journal.open(out / "journal.db", read_only=True) as journal:
        rows = journal.page_samples("improve", phase="train", round=2, limit=100, offset=0)
        assert len(rows) == 18
        assert all("question" not in row.parts and row.parts["number"] in (0.0, 1.0) for row in rows)
        assert all(isinstance(row.prompt, str) and len(row.prompt) > 20 for row in rows)
        assert [row.decision.accepted for row in journal.decisions("improve")]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(result.model)
    assert model.config.model_type == "llama"
    assert AutoTokenizer.from_pretrained(result.model).decode([1], skip_special_tokens=True) == ""
    assert "<html" in (out / "report.html").read_text(encoding="utf-8")
    before = (out / "model" / "model.safetensors").read_bytes()
    again = improve(recipe, out, resume=True)
    assert again.summary["stages"] == stages
    assert (out / "model" / "model.safetensors").read_bytes() == before
    with pytest.raises(OutputExistsError, match="--resume"):
        improve(recipe, out)


def test_gsm8k_rows_tune_by_likelihood(gsm8k: Path, tmp_path: Path) -> None:
    content = {
        "model": str(gsm8k / "model"),
        "data": {"train": str(gsm8k / "rows.jsonl"), "prompt_column": "question", "completion_column": "answer"},
        "rounds": 2,
        "update": {"steps": 6, "batch_size": 4, "optimizer": {"lr": 3e-3}},
        "runtime": {"threads": 1},
    }
    result = tune(parse_recipe(TuneRecipe, content), tmp_path / "out")
    stages = result.summary["stages"]
    assert stages["tuned"]["test"]["accuracy"] > stages["base"]["test"]["accuracy"]
    assert stages["base"]["test"]["accuracy"] < 0


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., str]:
    """Write a file of prompts and completions of the given lengths; its path."""

    def write(name: str, lengths: Sequence[int]) -> str:
        found = [{"prompt": f"{name}{number}", "completion": "x" * length} for number, length in enumerate(lengths)]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
        return str(path)

    return write


def tiny(data: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A recipe of a model that reads bytes, 32 of them at most."""
    model = {"create": "gpt2", "depth": 1, "context": 32, "tokenizer": "byte"}
    common = {"model": model, "runtime": {"threads": 1}, "sampling": {"max_tokens": 4}, "rounds": 1}
    update = {"steps": 1, "batch_size": 2, **more.pop("update", {})}
    return {**common, "data": data, "update": update, **more}


MIXED = [3, 3, 60] * 10


@pytest.mark.parametrize("too_long", ["drop", "truncate"])
def test_held_out_rows_that_are_too_long_are_left_out_and_counted(
    rows: Callable[..., str], tmp_path: Path, too_long: str, no_report: None
) -> None:
    watcher = Watcher()
    content = tiny({"train": rows("t", MIXED), "dev": 9, "test": 6}, update={"too_long": too_long, "max_length": 31})
    summary = tune(parse_recipe(TuneRecipe, content), tmp_path / "out", observer=watcher).summary
    counts = summary["rows"]
    assert list(counts) == ["t.jsonl", "dev", "test"]
    for split, size in (("dev", 9), ("test", 6)):
        assert 0 < counts[split]["dropped"] < size
        assert counts[split]["rows"] + counts[split]["dropped"] == size
        assert counts[split]["rows"] == summary["stages"]["tuned"][split]["n"]
        assert f"{split}: {counts[split]['dropped']} of {size} rows left out, too long or empty" in watcher.notes
    learned = counts["t.jsonl"]
    assert learned["truncated" if too_long == "truncate" else "dropped"] + counts["dev"]["dropped"] + counts["test"][
        "dropped"
    ] == MIXED.count(60)


def test_a_held_out_row_that_is_too_long_is_named(rows: Callable[..., str], tmp_path: Path) -> None:
    data = {"train": rows("t", [3] * 9), "dev": rows("d", [3, 60]), "test": 0}
    wanted = r"jsonl line \d+: 63 tokens, over the limit of 32\. Shorten it, take a model with a longer context, or"
    with pytest.raises(DataError, match=wanted):
        tune(parse_recipe(TuneRecipe, tiny(data)), tmp_path / "out")
    imitating = {"method": "rft"}
    by_likelihood = tiny(data, rewards=["exact_match"], gate={"metric": "likelihood"}, update=imitating)
    with pytest.raises(DataError, match=wanted):
        improve(parse_recipe(ImproveRecipe, by_likelihood), tmp_path / "out")


def test_the_loop_takes_labelled_rows_as_the_update_says(
    rows: Callable[..., str], tmp_path: Path, no_report: None
) -> None:
    data = {"train": rows("t", MIXED), "labelled": rows("l", [2, 60]), "dev": 9, "test": 6}
    content = tiny(
        {**data, "reference_columns": ["completion"]},
        rewards=[{"use": "exact_match", "options": {"column": "completion"}}],
        gate={"metric": "likelihood"},
        update={"method": "rft", "too_long": "drop", "end_of_text": False},
        controls=["gold"],
        problems=4,
        samples=2,
    )
    watcher = Watcher()
    summary = improve(parse_recipe(ImproveRecipe, content), tmp_path / "out", observer=watcher).summary
    counts = summary["rows"]
    assert counts["labelled"] == {
        "rows": 1,
        "dropped": 1,
        "truncated": 0,
        "without_end_of_text": 1,
        "tokens": 4,
        "trained_tokens": 2,
    }
    assert counts["dev"]["dropped"] > 0
    assert counts["dev"]["rows"] == summary["stages"]["control_gold"]["dev"]["n"]
    assert "labelled: 1 of 2 rows left out, too long or empty" in watcher.notes


def test_gold_rows_that_are_too_long_are_named_at_the_start(rows: Callable[..., str], tmp_path: Path) -> None:
    data = {"train": rows("t", [3] * 20 + [60]), "dev": 0, "test": 0}
    recipe = parse_recipe(
        ImproveRecipe, tiny(data, rewards=["exact_match"], controls=["gold"], update={"method": "rft"})
    )
    with pytest.raises(DataError, match=r"jsonl line \d+: \d+ tokens, over the limit of 32"):
        improve(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_gate_measures_what_is_taught(
    rows: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    measured: list[list[int]] = []
    inner = likelihood.token_logps

    def watched(module: Any, batch: Sequence[Any]) -> Any:
        measured.extend(list(row.token_ids) for row in batch)
        return inner(module, batch)

    monkeypatch.setattr(likelihood, "token_logps", watched)
    data = {"train": rows("t", [3] * 20), "dev": 4, "test": 0}
    for end_of_text, length in ((False, 3), (True, 4)):
        measured.clear()
        content = tiny(data, update={"end_of_text": end_of_text})
        tune(parse_recipe(TuneRecipe, content), tmp_path / str(end_of_text))
        assert {len(row) for row in measured} == {length}


def test_rewards_that_would_not_be_measured_are_refused(rows: Callable[..., str], tmp_path: Path) -> None:
    content = tiny({"train": rows("t", [3] * 20)}, rewards=["exact_match"])
    with pytest.raises(ConfigError, match=r'key "rewards": .* Set gate\.metric: reward, or leave them out'):
        tune(parse_recipe(TuneRecipe, content), tmp_path / "out")


def test_a_small_task_has_texts_for_a_tokenizer(tmp_path: Path, no_report: None) -> None:
    data = {"task": "sorting", "task_options": {"length": 3, "letters": 8}, "labelled": 50, "dev": 20, "test": 20}
    content = tiny(data)
    content["model"] = {**content["model"], "tokenizer": "char"}
    assert tune(parse_recipe(TuneRecipe, content), tmp_path / "out").summary["rows"]["rows"]["rows"] == 50


@pytest.fixture
def small_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's own recipes with a fraction of the problems and steps."""
    whole = demo_stage.demo_recipes

    def small(seed: int, rounds: int | None, all_controls: bool) -> tuple[TuneRecipe, ImproveRecipe]:
        tuning, improving = whole(seed, rounds, all_controls)
        data = tuning.data.model_copy(update={"labelled": 30, "dev": 40, "test": 40})
        first = tuning.update.model_copy(update={"steps": 10, "batch_size": 8})
        second = improving.update.model_copy(update={"steps": 4, "batch_size": 8})
        alone = improving.runtime.model_copy(update={"processes": 1})
        changes = {"data": data, "update": second, "problems": 10, "samples": 4, "runtime": alone}
        return tuning.model_copy(update={"data": data, "update": first}), improving.model_copy(update=changes)

    monkeypatch.setattr(demo_stage, "demo_recipes", small)


def test_demo_leaves_what_it_promises(small_demo: None, tmp_path: Path) -> None:
    out = tmp_path / "out"
    demo_stage.demo(out, seed=3, rounds=2, all_controls=True)
    summary = json.loads((out / "summary.json").read_text())
    assert {"task", "seed", "wall_seconds", "stages", "rounds", "budget"} <= set(summary)
    assert (summary["task"], summary["seed"]) == ("addition", 3)
    names = ["untrained", "base", "control", "control_unfiltered", "control_gold", "improved"]
    assert list(summary["stages"]) == names
    for figures in summary["stages"].values():
        for split in ("dev", "test"):
            low, high = figures[split]["ci95"]
            assert low <= figures[split]["accuracy"] <= high
            assert figures[split]["n"] == 40
    assert [row["round"] for row in summary["rounds"]] == [1, 2]
    wanted = {"problems", "samples", "kept", "reward", "pass_at_k", "dev_accuracy", "accepted", "seconds"}
    assert wanted <= set(summary["rounds"][0])
    assert summary["rounds"][0]["samples"] == 40
    assert summary["budget"]["tokens_trained"] > 0
    for name in ("report.html", "model/model.safetensors", "model/tokenizer.json", "journal.db", "metrics.jsonl"):
        assert (out / name).stat().st_size > 0
    with Journal.open(out / "journal.db", read_only=True) as journal:
        runs = {run.run_id: run.status for run in journal.runs()}
    expected = ("demo", "tune", "improve", "control-labelled", "control-unfiltered", "control-gold")
    assert runs == dict.fromkeys(expected, "finished")


def test_controls_beside_the_loop_end_as_controls_after_it(small_demo: None, tmp_path: Path) -> None:
    _, alone = demo_stage.demo_recipes(0, 2, False)
    alone = alone.model_copy(update={"model": alone.model.model_copy(update={"path": None, "create": "demo"})})
    recipe = alone.model_copy(update={"runtime": alone.runtime.model_copy(update={"processes": 2})})
    beside = improve(recipe, tmp_path / "beside")
    after = improve(alone, tmp_path / "after")
    assert beside.summary["stages"] == after.summary["stages"]
    assert beside.summary["budget"]["tokens_trained"] == after.summary["budget"]["tokens_trained"]


class Watcher(Observer):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, level: str, message: str) -> None:
        self.notes.append(message)

    def wait_for(self, words: str) -> None:
        deadline = time.monotonic() + 60
        while not any(words in note for note in self.notes):
            assert time.monotonic() < deadline, self.notes
            time.sleep(0.02)


def beside(**changes: Any) -> ImproveRecipe:
    """A run of a second with one control beside it."""
    content: dict[str, Any] = {
        "model": {"create": "demo"},
        "data": {"task": "addition", "dev": 8, "test": 8},
        "rewards": ["exact_match"],
        "rounds": 2,
        "problems": 4,
        "samples": 2,
        "sampling": {"max_tokens": 4},
        "controls": ["unfiltered"],
        "update": {"method": "rft", "steps": 2, "batch_size": 4},
        "runtime": {"threads": 1, "processes": 2},
    }
    return parse_recipe(ImproveRecipe, content | changes)


@pytest.fixture
def at_round(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Have a function called after each round of the loop, outside of any observer."""

    def call(function: Callable[[], None]) -> None:
        commit = Session._commit

        def commit_and_call(session: Session, *arguments: Any) -> None:
            commit(session, *arguments)
            function()

        monkeypatch.setattr(Session, "_commit", commit_and_call)

    return call


def statuses(out: Path) -> dict[str, str]:
    with Journal.open(out / "journal.db", read_only=True) as journal:
        return {run.run_id: run.status for run in journal.runs()}


def test_a_dying_control_is_told_at_once_and_withholds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_round: Callable[[Callable[[], None]], None]
) -> None:
    out = tmp_path / "out"

    watcher = Watcher()

    def told() -> None:
        assert statuses(out)["improve"] == "running"
        watcher.wait_for("control unfiltered stopped: killed by SIGKILL")

    at_round(told)
    _sabotage(tmp_path / "site", monkeypatch, "os.kill(os.getpid(), 9)")
    with pytest.raises(
        ControlError, match=r"control unfiltered stopped: killed by SIGKILL\nThe loop itself is done"
    ) as caught:
        improve(beside(), out, observer=watcher)
    assert caught.value.exit_code == 1
    assert (out / "model" / "model.safetensors").exists()
    assert (out / "report.html").exists()
    assert set(json.loads((out / "summary.json").read_text())["stages"]) == {"base", "improved"}
    assert statuses(out) == {"improve": "finished"}
    monkeypatch.undo()
    assert "control_unfiltered" in improve(beside(), out, resume=True).summary["stages"]


def test_a_full_disk_in_a_control_is_told_at_once_and_pauses_the_control_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_round: Callable[[Callable[[], None]], None]
) -> None:
    out = tmp_path / "out"
    watcher = Watcher()
    at_round(lambda: watcher.wait_for("the disk is full"))
    full = """
real, count = os.fsync, [0]
def fsync(descriptor):
    count[0] += 1
    if count[0] > 12:
        raise OSError(28, "No space left on device")
    return real(descriptor)
os.fsync = fsync
"""
    _sabotage(tmp_path / "site", monkeypatch, full)
    alone = {"threads": 1, "processes": 2, "disk_wait": 0.1}
    with pytest.raises(DiskFullError, match="control unfiltered stopped") as caught:
        improve(beside(runtime=alone), out, observer=watcher)
    assert caught.value.exit_code == 75
    assert (out / "report.html").exists()
    assert statuses(out) == {"improve": "finished", "control-unfiltered": "paused"}


def _sabotage(site: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Have ``code`` run in the controls' processes alone."""
    site.mkdir()
    body = "".join(f"    {line}\n" for line in code.strip().splitlines())
    (site / "sitecustomize.py").write_text(
        f"import os, sys\nif 'loopwise.stages.control_run' in sys.orig_argv:\n{body}", encoding="utf-8"
    )
    monkeypatch.setenv("PYTHONPATH", str(site))


def test_a_control_finds_reward_modules_where_the_loop_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rewards_of_mine.py").write_text(
        "def ok(completions, **columns):\n    return [1.0] * len(completions)\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    recipe = beside(rewards=["rewards_of_mine.ok"], rounds=1)
    figures = improve(recipe, tmp_path / "out").summary["stages"]["control_unfiltered"]
    assert figures["dev"] == {"accuracy": 1.0, "ci95": figures["dev"]["ci95"], "n": 8}


def test_a_control_refuses_a_reward_that_it_cannot_load(tmp_path: Path) -> None:
    reward = tmp_path / "rewards.py"
    reward.write_text(
        "import os\nassert not os.environ.get('BROKEN')\n"
        "def ok(completions, **columns):\n    return [1.0] * len(completions)\n",
        encoding="utf-8",
    )

    class Breaker(Observer):
        def run_started(self, run_id: str, rounds: int, done: int) -> None:
            reward.write_text("import not_there\n", encoding="utf-8")

    with pytest.raises(ControlError, match="not_there"):
        improve(beside(rewards=[f"{reward}:ok"], rounds=1), tmp_path / "out", observer=Breaker())


def test_controls_go_on_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_round: Callable[[Callable[[], None]], None]
) -> None:
    class StopError(Exception):
        pass

    def stop() -> None:
        deadline = time.monotonic() + 60
        while "control-unfiltered" not in statuses(tmp_path / "out"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        raise StopError

    monkeypatch.chdir(tmp_path)
    at_round(stop)
    with pytest.raises(StopError):
        improve(beside(), "out")
    monkeypatch.undo()
    monkeypatch.chdir("/")
    (tmp_path / "out").rename(tmp_path / "moved")
    result = improve(beside(), tmp_path / "moved", resume=True)
    assert set(result.summary["stages"]) == {"base", "control_unfiltered", "improved"}


def test_a_control_refuses_another_base(tmp_path: Path) -> None:
    out = tmp_path / "out"
    improve(beside(rounds=1), out)
    weights = out / "base" / "model.safetensors"
    changed = {name: tensor + 1 for name, tensor in load_file(weights).items()}
    save_file(changed, weights, metadata={"format": "pt"})
    with pytest.raises(ControlError, match="not the model that this run began with"):
        improve(beside(rounds=1), out, resume=True)


def test_a_run_killed_before_it_began_is_no_obstacle(gsm8k: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".lock").write_text("123\n")
    Journal.open(out / "journal.db", create=True).close()
    recipe = load_recipe(ImproveRecipe, gsm8k / "recipe.yaml", ["rounds=1"])
    assert improve(recipe, out).summary["rounds"][0]["round"] == 1
