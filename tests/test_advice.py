"""What a person is told about a round, and where it would be false."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loopwise.advice import advise
from loopwise.config.recipes import ImproveRecipe, TuneRecipe
from loopwise.observer import Observer
from loopwise.stages.finetune import tune

TIED = {"samples": 16, "problems": 8, "frac_reward_zero_std": 0.875, "pass_at_1": 0.9}


class Notes(Observer):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def note(self, level: str, message: str) -> None:
        self.heard.append(message)


@pytest.mark.parametrize(
    ("update", "told"),
    [
        ({"method": "dr_grpo"}, True),
        ({"method": "rloo"}, True),
        ({"method": "dapo", "entropy_bonus": 0.01}, True),
        ({"method": "dpo"}, True),
        ({"method": "rrhf"}, True),
        ({"method": "reinforce", "advantage": {"baseline": "running", "drop_tied": True}}, True),
        ({"method": "reinforce"}, False),
        ({"method": "ppo"}, False),
        ({"method": "grpo", "kl": {"weight": 0.1}}, False),
        ({"method": "grpo", "entropy_bonus": 0.01}, False),
        ({"method": "spin"}, False),
        ({"method": "distill", "teacher": "t"}, False),
        ({"method": "rft"}, False),
    ],
)
def test_ties_are_worth_a_word_where_they_teach_nothing(update: dict[str, Any], told: bool) -> None:
    recipe = ImproveRecipe.model_validate({"model": "m", "data": {"task": "addition"}, "update": update})
    assert [("7 of 8 groups tie" in advice) for advice in advise(recipe, TIED)] == [True] * told


def test_a_sinking_chosen_side_is_told_of_a_real_run(folder: Path, tmp_path: Path, no_report: None) -> None:
    # The rejected side begins as the chosen one does, and takes it along.
    rows = [{"prompt": f"{a}+1=", "chosen": "777", "rejected": "7777"} for a in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = TuneRecipe.model_validate(
        {
            "model": str(folder),
            "data": {"train": str(tmp_path / "rows.jsonl"), "dev": 2, "test": 0},
            "update": {"method": "dpo", "steps": 4, "batch_size": 4, "optimizer": {"lr": 1e-2}},
            "rounds": 1,
            "gate": {"metric": "likelihood", "enabled": False},
            "runtime": {"threads": 1},
        }
    )
    notes = Notes()
    result = tune(recipe, tmp_path / "out", observer=notes)
    [figures] = result.summary["rounds"]
    assert figures["update/rewards/chosen"] < 0
    assert any("chosen completions grew less likely" in note for note in notes.heard)
