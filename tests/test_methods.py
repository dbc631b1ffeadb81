"""Every method of the ``update`` block through the whole loop: swapped in one line, stopped and resumed, refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.stopping import CutShortError, StopAt

from loopwise.advice import advise
from loopwise.config.methods import RFTConfig
from loopwise.config.recipes import ImproveRecipe
from loopwise.data.batches import mixed_batch
from loopwise.errors import ConfigError, LoopwiseError, ResumeError
from loopwise.models.folders import load_policy
from loopwise.models.lora import with_lora
from loopwise.observer import Observer
from loopwise.runs.journal import Journal
from loopwise.runtime import Runtime
from loopwise.stages.controls import control_recipe
from loopwise.stages.improve import RUN_ID, improve
from loopwise.starting import sharing_in_words
from loopwise.workspace import JOURNAL

ONLINE = {"problems_per_step": 2}
ROUNDWISE = {"steps": 2, "batch_size": 2}
UPDATES: dict[str, dict[str, Any]] = {
    "reinforce": ONLINE,
    "rloo": ONLINE,
    "grpo": {**ONLINE, "kl": {"weight": 0.1}},
    "dr_grpo": ONLINE,
    "dapo": {**ONLINE, "passes": 2},
    "ppo": {**ONLINE, "passes": 2},
    "distill": ONLINE,
    "rft": {**ROUNDWISE, "labelled_share": 0.0, "keep": "all"},
    "dpo": {**ROUNDWISE, "reference": "accepted"},
    "ipo": ROUNDWISE,
    "slic": ROUNDWISE,
    "margin": ROUNDWISE,
    "rrhf": ROUNDWISE,
    "spin": ROUNDWISE,
    "hindsight": ROUNDWISE,
}


def letters(completions: list[str], **_: Any) -> list[float]:
    """A reward on which samples seldom tie."""
    return [sum(map(ord, completion)) % 7 / 7 for completion in completions]


def recipe(folder: Path, method: str, **changes: Any) -> ImproveRecipe:
    update = {"method": method, "optimizer": {"lr": 1e-2}, **UPDATES[method]}
    if method == "distill":
        update["teacher"] = str(folder)
    return ImproveRecipe.model_validate(
        {
            "model": str(folder),
            "data": {"task": "addition", "dev": 8, "test": 8},
            "sampling": {"max_tokens": 4},
            "rounds": 2,
            "problems": 4,
            "samples": 4,
            "gate": {"enabled": False},
            "update": update,
            "runtime": {"threads": 1, "checkpoint_steps": 1},
            **changes,
        }
    )


def steps_of(out: Path) -> list[tuple[int, int, Mapping[str, float]]]:
    journal = Journal.open(out / JOURNAL)
    try:
        return [(row.round, row.step, row.metrics) for row in journal.steps(RUN_ID)]
    finally:
        journal.close()


@pytest.mark.parametrize("method", UPDATES)
def test_two_rounds_of_two_steps_and_the_same_after_a_stop(
    method: str, model: Path, tmp_path: Path, no_report: None
) -> None:
    made = recipe(model, method)
    whole = improve(made, tmp_path / "whole", rewards=[letters])
    assert [entry["accepted"] for entry in whole.summary["rounds"]] == [True, True]
    assert whole.policy.id != load_policy(model, _runtime()).id or method == "distill"
    steps = steps_of(tmp_path / "whole")
    assert [(round, step) for round, step, _ in steps] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    with pytest.raises(CutShortError):
        improve(made, tmp_path / "cut", rewards=[letters], observer=StopAt(3))
    again = improve(made, tmp_path / "cut", rewards=[letters], resume=True)
    assert again.policy.id == whole.policy.id
    assert steps_of(tmp_path / "cut") == steps

    def told(rounds: list[Any]) -> list[Any]:
        return [{key: value for key, value in entry.items() if key != "seconds"} for entry in rounds]

    assert told(again.summary["rounds"]) == told(whole.summary["rounds"])


def _runtime() -> Runtime:
    from loopwise.config.blocks import RuntimeConfig
    from loopwise.runtime import make_runtime

    return make_runtime(RuntimeConfig(threads=1), 0)


def test_steps_are_told_by_trls_names(model: Path, tmp_path: Path, no_report: None) -> None:
    improve(recipe(model, "grpo", rounds=1), tmp_path / "run", rewards=[letters])
    [*_, (_, _, metrics)] = steps_of(tmp_path / "run")
    names = "reward reward_std rewards/letters/mean rewards/letters/std frac_reward_zero_std completions/mean_length"
    names += " completions/clipped_ratio kl entropy loss grad_norm learning_rate"
    assert set(names.split()) <= set(metrics)
    improve(recipe(model, "dapo", rounds=1), tmp_path / "twice", rewards=[letters])
    [*_, (_, _, metrics)] = steps_of(tmp_path / "twice")
    assert {"clip_ratio/region_mean", "clip_ratio/low_mean", "clip_ratio/high_mean"} <= set(metrics)
    improve(recipe(model, "dpo", rounds=1), tmp_path / "pairs", rewards=[letters])
    [*_, (_, _, metrics)] = steps_of(tmp_path / "pairs")
    assert {f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")} <= set(metrics)
    assert {"logps/chosen", "logps/rejected"} <= set(metrics)


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("grpo", {"sampling": {"temperature": 0}}, "sampling.temperature"),
        ("grpo", {"sampling": {"top_p": 0.9}}, "sampling.top_p"),
        ("rloo", {"sampling": {"top_k": 5}}, "sampling.top_k"),
        ("dr_grpo", {"samples": 1}, "leaves nothing to compare"),
        ("dpo", {"samples": 1}, "leaves nothing to compare"),
        *((name, {"sampling": {"temperature": 0}}, "sampling.temperature") for name in ("dpo", "slic", "rrhf")),
        ("spin", {"label_free": True}, r"update\.method.*Take a method that learns from rewards alone"),
        ("rft", {"label_free": True, "update": {"method": "rft", "keep": "gold"}}, r"update\.keep.*Leave it out"),
        ("dr_grpo", {"problems": 2, "update": {"minibatches": 3}}, "update.minibatches"),
        ("dpo", {"update": {"method": "dpo", "max_length": 16}}, "update.max_length"),
        ("ipo", {"update": {"method": "ipo", "end_of_text": False}}, "update.end_of_text"),
        ("rrhf", {"update": {"method": "rrhf", "max_length": 8}, "gate": {"metric": "likelihood"}}, "max_length"),
    ],
)
def test_what_does_not_go_together_is_refused(
    method: str, changes: dict[str, Any], message: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        improve(recipe(model, method, **changes), tmp_path / "run", rewards=[letters])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "update",
    [{"method": "dpo", "reference": "adapters_off"}, {"kl": {"weight": 0.1, "reference": "adapters_off"}}],
)
def test_weights_below_adapters_need_adapters(update: dict[str, Any], model: Path, tmp_path: Path) -> None:
    key = r"update\.reference" if "method" in update else r"update\.kl\.reference"
    with pytest.raises(ConfigError, match=rf'key "{key}": adapters_off .* Set model\.lora'):
        improve(recipe(model, "dr_grpo", update=update), tmp_path / "run", rewards=[letters])


@pytest.mark.parametrize("method", ["dr_grpo", "dpo"])
def test_adapters_alone_are_trained(method: str, model: Path, tmp_path: Path, no_report: None) -> None:
    reference = (
        {"reference": "adapters_off"} if method == "dpo" else {"kl": {"weight": 0.1, "reference": "adapters_off"}}
    )
    update = {"method": method, "optimizer": {"lr": 1e-2}, **UPDATES[method], **reference}
    made = recipe(model, method, model={"path": str(model), "lora": {"rank": 2}}, update=update, rounds=1)
    result = improve(made, tmp_path / "run", rewards=[letters])
    base = load_policy(model, _runtime())
    assert result.policy.weights is not None
    assert base.weights is not None
    adapted = with_lora(base, made.model.lora, _runtime())  # type: ignore[arg-type]
    assert adapted.weights is not None
    assert result.policy.id not in (base.id, adapted.id)


def test_another_teacher_is_no_resume(model: Path, tmp_path: Path, no_report: None) -> None:
    from tests.bad_inputs import save_model

    other = save_model(tmp_path / "teacher")
    made = recipe(model, "distill", update={"method": "distill", "teacher": str(other), **ONLINE})
    with pytest.raises(CutShortError):
        improve(made, tmp_path / "run", rewards=[letters], observer=StopAt(1))
    policy = load_policy(other, _runtime())
    assert policy.weights is not None
    module = policy.trainable_module()
    for parameter in module.parameters():
        parameter.data.mul_(1.5)
    policy.with_module(module).weights.module.save_pretrained(other)  # type: ignore[union-attr]
    with pytest.raises(ResumeError, match="teacher"):
        improve(made, tmp_path / "run", rewards=[letters], resume=True)


@pytest.mark.parametrize(("method", "rows"), [("dr_grpo", 8), ("dapo", 8), ("dpo", 4), ("rrhf", 8)])
def test_controls_take_as_many_steps(method: str, rows: int, model: Path) -> None:
    made = recipe(model, method)
    update = control_recipe(made, "labelled").update
    assert isinstance(update, RFTConfig)
    assert update.keep == "none"
    assert update.steps == 2 * (2 if method == "dapo" else 1)
    assert update.batch_size == rows
    assert update.optimizer == made.update.optimizer
    assert update.labelled_share == 0.0


def test_controls_take_no_more_rows_than_a_round_has(model: Path) -> None:
    made = recipe(model, "dr_grpo", update={"problems_per_step": 16, "minibatches": 2})
    update = control_recipe(made, "unfiltered").update
    assert isinstance(update, RFTConfig)
    assert (update.steps, update.batch_size) == (2, 4 * 4 // 2)


@pytest.mark.parametrize(("name", "labelled"), [("unfiltered", 0.0), ("labelled", 1.0)])
def test_a_control_beside_labelled_rows_keeps_to_its_own(name: str, labelled: float) -> None:
    made = ImproveRecipe.model_validate({"model": "x", "data": {"task": "addition", "labelled": 8}})
    update = control_recipe(made, name).update
    assert isinstance(update, RFTConfig)
    pooled = 0 if update.keep == "none" else 8
    is_labelled, _ = mixed_batch(8, pooled, update.labelled_share, 64, 0, 1, 0)
    assert is_labelled.mean() == labelled


def test_a_control_of_an_online_method_runs(model: Path, tmp_path: Path, no_report: None) -> None:
    made = recipe(model, "dr_grpo", controls=["unfiltered", "gold"], rounds=1)
    stages = improve(made, tmp_path / "run", rewards=[letters]).summary["stages"]
    assert set(stages) == {"base", "improved", "control_unfiltered", "control_gold"}


class Notes(Observer):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def note(self, level: str, message: str) -> None:
        self.heard.append(message)


def test_ties_are_worth_a_warning(model: Path, tmp_path: Path, no_report: None) -> None:
    notes = Notes()
    improve(
        recipe(model, "dr_grpo", rounds=1),
        tmp_path / "run",
        rewards=[lambda completions, **_: [0.0] * len(completions)],
        observer=notes,
    )
    assert any("4 of 4 groups tie" in note for note in notes.heard)


def test_advice_says_what_to_do(model: Path) -> None:
    made = recipe(model, "dr_grpo")
    calm = {"samples": 16, "problems": 8, "frac_reward_zero_std": 0.25, "pass_at_1": 0.5}
    assert list(advise(made, calm)) == []
    easy = {**calm, "frac_reward_zero_std": 0.875, "pass_at_1": 0.9}
    assert list(advise(made, easy)) == [
        "7 of 8 groups tie, and nothing is learned from them: raise sampling.temperature or pick harder problems."
    ]
    [hard] = advise(made, {**easy, "pass_at_1": 0.05})
    assert "easier problems" in hard
    assert list(advise(recipe(model, "rft"), easy)) == []
    [cut] = advise(made, {**calm, "completions/clipped_ratio": 0.75})
    assert "75% of the samples were cut at sampling.max_tokens (4)" in cut
    [far] = advise(made, {**calm, "update/kl": 2.0})
    assert "update.kl.weight" in far
    [sinking] = advise(recipe(model, "dpo"), {**calm, "update/rewards/chosen": -0.5})
    assert "less likely" in sinking


def test_the_default_is_dr_grpo(model: Path) -> None:
    content = recipe(model, "rft").model_dump(mode="json", exclude={"update"})
    assert ImproveRecipe.model_validate(content).update.method == "dr_grpo"
    assert issubclass(ConfigError, LoopwiseError)


def test_a_model_that_cannot_share_prompts_is_told_once(tmp_path: Path, no_report: None) -> None:
    notes = Notes()
    created = {"create": "lstm", "depth": 1, "width": 16, "tokenizer": "char", "context": 32}
    made = recipe(tmp_path, "dr_grpo", model=created, rounds=2)
    improve(made, tmp_path / "run", rewards=[letters], observer=notes)
    told = [note for note in notes.heard if "padded batches" in note]
    assert [note.split()[0] for note in told] == ["sampling", "training"]


def test_a_short_context_is_no_fault_of_the_model(model: Path) -> None:
    policy = load_policy(model, _runtime())
    assert policy.weights is not None
    [told] = sharing_in_words(policy)
    assert told.endswith(f"its context of {policy.weights.context_length} tokens is too short for sharing to pay")
