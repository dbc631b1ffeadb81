"""Whole runs: real rows through the loop, the demo's files and figures, controls beside the loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loopwise.config import ImproveRecipe, TuneRecipe, load_recipe, parse_recipe
from loopwise.errors import OutputExistsError
from loopwise.models.folders import save_policy
from loopwise.models.policy import Policy, Weights
from loopwise.models.presets import character_tokenizer
from loopwise.runs.journal import Journal
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
update: {steps: 3, batch_size: 4}
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


def test_a_failing_control_is_an_error_that_says_so(small_demo: None, tmp_path: Path) -> None:
    from loopwise.errors import LoopwiseError
    from loopwise.session import Observer
    from loopwise.stages.controls import SideRuns

    with SideRuns(tmp_path, 1) as side:
        side.start(["labelled"])
        with pytest.raises(LoopwiseError, match="control labelled stopped"):
            side.finish("labelled", Observer())


def test_a_run_killed_before_it_began_is_no_obstacle(gsm8k: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".lock").write_text("123\n")
    Journal.open(out / "journal.db", create=True).close()
    recipe = load_recipe(ImproveRecipe, gsm8k / "recipe.yaml", ["rounds=1"])
    assert improve(recipe, out).summary["rounds"][0]["round"] == 1
