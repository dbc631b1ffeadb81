"""``--dry-run``: what it measures, what it works out from that, and whether a run takes the memory it foretells."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.bad_inputs import IMPROVE, ROWS, TUNE, lines

from loopwise.config.reading import load_recipe
from loopwise.config.recipes import ImproveRecipe, PretrainRecipe, TuneRecipe
from loopwise.runs.files import to_json
from loopwise.runtime import Runtime
from loopwise.stages import probe
from loopwise.stages.costs import Costs, disk_bytes, run_seconds
from loopwise.stages.memory import PeakMemory
from loopwise.stages.plan import MOST_BARS, Plan, examine, sweep_line
from loopwise.stages.probe import Steps, Timed
from loopwise.update.rates import read_sweep

PRETRAIN = """\
model: {create: gpt2, depth: 1, width: 16, heads: 2, context: 16, tokenizer: char}
data: {train: text.txt, dev: 0.2, test: 0.2, deduplicate: none}
rounds: 3
sampling: {max_tokens: 4}
update: {steps: 7, batch_size: 4}
runtime: {threads: 1, checkpoint_steps: 100}
"""
MIB = 2**20


@pytest.fixture
def workshop(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, rows, a text and a recipe of each kind."""
    (tmp_path / "model").symlink_to(model)
    (tmp_path / "rows.jsonl").write_text(lines(*ROWS))
    (tmp_path / "text.txt").write_text("".join(f"{n}+{n}={2 * n}\n" for n in range(300)))
    for name, recipe in {"improve": IMPROVE, "tune": TUNE, "pretrain": PRETRAIN}.items():
        (tmp_path / f"{name}.yaml").write_text(recipe)
    # Timings as short as can be, and the shortest sweep.
    monkeypatch.setattr(probe, "STEP_SECONDS", 0.0)
    monkeypatch.setattr(probe, "SWEEP_STEPS", (24,))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def examined(command: str, *changes: str) -> Plan:
    """The plan of a recipe in the working folder."""
    kinds: dict[str, Any] = {"improve": ImproveRecipe, "tune": TuneRecipe, "pretrain": PretrainRecipe}
    return examine(load_recipe(kinds[command], f"{command}.yaml", changes))


@pytest.mark.parametrize("command", ["pretrain", "tune", "improve"])
def test_everything_is_measured_and_nothing_written(command: str, workshop: Path) -> None:
    before = sorted(workshop.rglob("*"))
    found = examined(command)
    assert sorted(workshop.rglob("*")) == before
    figures = json.loads(to_json(found.figures))
    for name in ("first_step_seconds", "second_step_seconds", "step_seconds", "steps_a_round", "tokens_per_second"):
        assert figures[name] > 0
    assert figures["memory_bytes"]["peak"] >= figures["memory_bytes"]["before"] > 50 * MIB
    seconds = dict(figures["run_seconds"])
    total = seconds.pop("total")
    assert total == pytest.approx(sum(seconds.values()))
    assert seconds["training"] > 0
    assert seconds["evaluation"] > 0
    assert (seconds["sampling"] > 0) == (command == "improve")
    assert all(isinstance(value, str) for section in found.sections.values() for value in section.values())
    assert "(measured)" in found.sections["machine"]["memory"]


def test_the_sections_of_pretraining(workshop: Path) -> None:
    sections = examined("pretrain").sections
    assert sections["data"].keys() == {"train", "dev", "test"}
    assert sections["each round"]["training"].startswith("7 steps x 4 windows x 16 tokens = 448 tokens, ")
    assert sections["learning rate"]["of the recipe"] == "lr 3.0e-03, matrix_lr 2.0e-02"
    assert "loss of 24 steps, lr 1e-06 to 1e+00" in sections["learning rate"]["sweep"]


def test_a_recipe_s_rate_is_measured_against_the_suggestion(workshop: Path) -> None:
    found = examined("tune", "update.batch_size=16", "update.optimizer.lr=1e-7")
    rates = found.figures["learning_rate"]
    assert rates["recipe"] == {"lr": 1e-7}
    assert 1e-4 < rates["suggested"]["lr"] < 1
    assert len(rates["sweep"]["lr"]) == len(rates["sweep"]["loss"]) == len(rates["sweep"]["smoothed_loss"])
    assert "times below the suggested rate" in found.sections["learning rate"]["warning"]


def test_the_loop_without_labelled_rows_has_no_sweep(workshop: Path) -> None:
    found = examined("improve")
    assert found.figures["learning_rate"] is None
    assert "no labelled rows" in found.sections["learning rate"]["sweep"]


def test_the_loop_on_labelled_rows_has_one(workshop: Path) -> None:
    (workshop / "labelled.jsonl").write_text(lines(*({**row, "prompt": f"1{row['prompt']}"} for row in ROWS)))
    assert examined("improve", "data.labelled=labelled.jsonl").figures["learning_rate"] is not None


def test_steps_too_slow_for_a_sweep(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "SWEEP_SECONDS", 0.0)
    found = examined("tune")
    assert found.figures["learning_rate"] is None
    assert found.sections["learning rate"]["sweep"] == "left out: steps are too slow"


def test_samples_that_take_long_are_cut_short(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "UNIT_SECONDS", 0.0)
    found = examined("improve", "sampling.max_tokens=20")
    assert found.figures["run_seconds_are_at_most"] is True
    assert found.sections["the whole run, from these"]["time"].startswith("at most ")
    assert found.sections["measured on two steps"]["samples of a round"].startswith("at most ")


METHODS = {
    "{problems_per_step: 2, kl: {weight: 0.1}}": "2 problems x 2 samples a step = 4 samples, 2 steps a round, ",
    "{method: ppo, problems_per_step: 3, minibatches: 2}": "4 passes x 2 minibatches = 8 optimizer steps each",
    "{method: rrhf, steps: 3, batch_size: 2}": "3 steps x 2 rankings = 6 rankings, 1.5 epochs or more",
    "{method: dpo, steps: 3, batch_size: 2}": "3 steps x 2 pairs = 6 pairs, 1.5 epochs or more",
    "{method: spin, steps: 3, batch_size: 2}": "3 steps x 2 pairs = 6 pairs, 0.8 epochs or more",
}


@pytest.mark.parametrize("update", METHODS)
def test_steps_are_measured_with_whatever_method(update: str, workshop: Path) -> None:
    found = examined("improve", f"update={update}")
    assert METHODS[update] in found.sections["each round"]["training"]
    figures = found.figures
    assert figures["first_step_seconds"] > 0
    assert figures["second_step_seconds"] > 0
    assert figures["step_seconds"] > 0
    assert figures["tokens_per_second"] > 0
    assert figures["run_seconds"]["sampling"] > 0
    training = figures["steps_a_round"] * figures["step_seconds"]
    assert figures["run_seconds"]["training"] == pytest.approx(training)
    assert figures["learning_rate"] is None
    assert found.sections["learning rate"]["sweep"].startswith("left out: ")
    assert ("samples of a step" in found.sections["measured on two steps"]) == ("problems_per_step" in update)


CRITIC = """\
def critique(prompts, completions, **columns):
    return ["Too long." if len(completion) > 1 else None for completion in completions]
"""


@pytest.fixture
def critic(workshop: Path) -> str:
    """A critic as a recipe names it."""
    (workshop / "critic.py").write_text(CRITIC)
    return "critics=[critic.py:critique]"


def test_a_round_of_language_feedback(workshop: Path, critic: str) -> None:
    found = examined("improve", "update={method: ilf, steps: 3, batch_size: 2, revisions: 3}", critic)
    said = found.sections["each round"]
    assert said["revisions"].startswith("3 of each draft that is criticised: at most 24 a round; one with highest rew")
    assert said["training"] == "3 steps x 2 rows = 6 rows, 0% of them labelled"
    assert found.figures["step_seconds"] > 0
    assert found.figures["forward_passes_a_step"] == 1
    assert found.figures["run_seconds_are_at_most"] is True, "drafts that nothing is said against are not revised"
    plain = examined("improve", "update={method: rft, steps: 3, batch_size: 2}")
    assert plain.figures["run_seconds"]["sampling"] > 0
    assert found.sections["measured on two steps"]["samples of a round"].startswith("at most ")


def test_a_round_of_hindsight(workshop: Path) -> None:
    found = examined("improve", "update={method: hindsight, steps: 3, batch_size: 2}")
    said = found.sections["each round"]
    assert said["pairs"] == "best against worst of each problem: at most 4 a round, in two rows each"
    assert said["asked"] == "' good: ' after every prompt once it was learned"
    assert found.figures["first_step_seconds"] > 0
    assert found.figures["step_seconds"] > 0
    assert found.sections["learning rate"]["sweep"].endswith("its rows are pairs of samples that are not drawn yet")


def test_a_round_of_trials(workshop: Path) -> None:
    found = examined("improve", "update={method: reflexion, trials: 2}", "samples=1")
    said = found.sections["each round"]
    assert said["trials"] == "2 at most, of problems that are not solved yet: at most 8 samples"
    assert said["lessons"].startswith("by the model, after every trial on 3 misses of a task at most; the newest 3 of ")
    assert said["training"] == "none: lessons go into the prompt, and no weights change"
    assert "forward passes" not in said
    assert found.sections["learning rate"] == {"none": "no weights change"}
    assert found.sections["measured"].keys() == {"samples of a round", "evaluating dev", "evaluating test"}
    figures = json.loads(to_json(found.figures))
    assert figures["step_seconds"] == figures["run_seconds"]["training"] == 0
    assert figures["run_seconds"]["sampling"] > 0
    assert figures["disk_bytes"]["checkpoint"] > 0
    assert figures["learning_rate"] is None


def test_revised_answers_take_their_time(workshop: Path, critic: str) -> None:
    found = examined("improve", "refine={revisions: 2}", critic)
    assert found.sections["each round"]["held-out answers"] == (
        "as drafted, and of base and result as revised, 2 times at most"
    )
    assert found.figures["run_seconds"]["revising"] > 0
    assert found.figures["run_seconds_are_at_most"] is True
    assert "revising" not in examined("improve", "refine={held_out: false}", "update.method=ilf", critic).figures


def test_monitors_take_their_time(workshop: Path) -> None:
    assert examined("improve").figures["run_seconds"]["monitors"] > 0
    assert examined("improve", "monitors={problems: 0}").figures["run_seconds"]["monitors"] == 0


def test_a_teacher_is_named_with_its_size(workshop: Path) -> None:
    found = examined("improve", "update={method: distill, teacher: model, problems_per_step: 2}")
    assert found.sections["model"]["teacher"].endswith(" MiB beside the model's")
    assert found.figures["step_seconds"] > 0


def test_labelled_pairs_are_measured_and_not_swept(workshop: Path) -> None:
    pairs = [{"prompt": row["prompt"], "chosen": row["answer"], "rejected": "7"} for row in ROWS]
    (workshop / "pairs.jsonl").write_text(lines(*pairs))
    found = examined("tune", "data.train=pairs.jsonl", "update={method: dpo, steps: 5, batch_size: 4}")
    assert found.sections["each round"]["training"].startswith("5 steps x 4 pairs = 20 pairs, ")
    assert found.sections["each round"]["reference"].startswith("the run's base, in memory anyway")
    assert found.figures["step_seconds"] > 0
    assert found.figures["forward_passes_a_step"] == 1
    assert "the loss of pairs falls" in found.sections["learning rate"]["sweep"]


def made_up(**changes: Any) -> Costs:
    """Costs with round figures."""
    steps = Steps(first=3.0, second=2.0, seconds=1.0, tokens=10.0, weights=100, moments=200)
    evaluations = {"dev": Timed(5.0, 10), "skill:a": Timed(1.0, 2), "test": Timed(7.0, 14)}
    given = {"sampling": Timed(20.0, 8), "watching": Timed(0.5, 4), "monitoring": Timed(2.0, 16)}
    return Costs(
        **{"steps": steps, "each_round": 10, "evaluations": evaluations, **given, **changes},
        before=0,
        peak=1,
        exact=True,
        load=1.0,
        sweep=None,
    )


def recipe(**changes: Any) -> ImproveRecipe:
    """Two rounds of ten steps."""
    return ImproveRecipe.model_validate(
        {
            "model": "m",
            "data": {"task": "addition", "labelled": 9},
            "rounds": 2,
            "update": {"method": "rft", "steps": 10},
            **changes,
        }
    )


def test_the_seconds_of_a_run_by_hand() -> None:
    # Dev and the skill are measured before the first round and after both, the test split before and after the run.
    loop = {"training": 20.0, "watching": 1.5, "monitors": 6.0, "evaluation": 3 * 6.0 + 2 * 7.0, "sampling": 40.0}
    assert run_seconds(recipe(), made_up()) == {**loop, "total": 99.5}
    labels = 20 + 1.5 + 6 + 18 + 7
    found = run_seconds(recipe(controls=["labelled", "unfiltered"]), made_up())
    assert found == {**loop, "controls": 2 * labels + 40, "total": 99.5 + 2 * labels + 40}


def test_controls_beside_the_loop_take_no_more_time_unless_they_wait() -> None:
    controls = ["labelled", "unfiltered", "gold"]
    beside = recipe(controls=controls, runtime={"processes": 4})
    assert run_seconds(beside, made_up())["total"] == 99.5
    waiting = recipe(controls=controls, runtime={"processes": 2})
    assert run_seconds(waiting, made_up())["total"] == run_seconds(waiting, made_up())["controls"] > 99.5


def test_the_disk_of_a_run_by_hand() -> None:
    assert disk_bytes(recipe(), made_up()) == {"checkpoint": 300, "most": 3 * 600 + 200}
    assert disk_bytes(recipe(controls=["gold"]), made_up())["most"] == 2 * 3 * 600 + 200


def test_a_row_of_bars() -> None:
    factors = 10.0 ** (np.arange(60) / 10 - 3)
    losses = np.concatenate([np.full(31, 4.0), np.linspace(4, 2, 15), np.linspace(3, 90, 15)])
    line = sweep_line(read_sweep(factors, losses))
    assert len(line) <= MOST_BARS
    assert line.startswith("█████")
    assert line.endswith("███")
    assert "▁" in line


def test_the_peak_is_forgotten(runtime: Runtime) -> None:
    first = PeakMemory(runtime)
    block = np.ones(64 * MIB, dtype=np.uint8)
    del block
    if not first.exact:
        pytest.skip("this system keeps the peak of a process for its whole life")
    assert first.read() - first.before > 60 * MIB
    again = PeakMemory(runtime)
    assert again.read() - again.before < 32 * MIB


MEMORY = """\
model: {create: gpt2, depth: 4, width: 320, heads: 5, context: 32, tokenizer: char}
data: {task: addition, labelled: 100, dev: 20, test: 20}
update: {steps: 1, batch_size: 64, optimizer: {name: adamw, lr: 1e-3}}
sampling: {max_tokens: 5}
runtime: {threads: 1}
"""
SCRIPT = """\
import sys
from pathlib import Path
from loopwise.config.recipes import TuneRecipe
from loopwise.config.reading import load_recipe
recipe = load_recipe(TuneRecipe, "memory.yaml", sys.argv[2:])
if sys.argv[1] == "plan":
    from loopwise.stages import plan, probe
    probe.SWEEP_SECONDS = 0.0
    memory = plan.examine(recipe).figures["memory_bytes"]
    print(memory["peak"], memory["before"])
else:
    from loopwise import results
    from loopwise.stages import finetune
    results.write_report = lambda *_: None
    finetune.tune(recipe, Path("out"))
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) * 1024, 0)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="this system keeps no account of memory")
@pytest.mark.parametrize("rounds", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_memory_foretold_is_what_a_run_takes(rounds: int, tmp_path: Path) -> None:
    (tmp_path / "memory.yaml").write_text(MEMORY)
    commands = [[sys.executable, "-c", SCRIPT, what, f"rounds={rounds}"] for what in ("plan", "run")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) for command in commands]
    (foretold, before), (real, _) = (map(int, process.communicate(timeout=200)[0].split()) for process in started)
    assert foretold - before > 100 * MIB
    assert foretold == pytest.approx(real, rel=0.3)
    assert foretold - before == pytest.approx(real - before, rel=0.3)
