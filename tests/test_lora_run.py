"""Adapters through a whole run: only they are trained, they are merged or kept apart, and a run resumes exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.stopping import CutShortError, StopAt

from loopwise.config.reading import parse_recipe
from loopwise.config.recipes import TuneRecipe
from loopwise.models.folders import load_policy
from loopwise.runtime import Runtime
from loopwise.stages.finetune import tune

RUNTIME = Runtime("cpu", "float32", 1, 0)


def recipe(folder: Path, model: Path, **changes: Any) -> TuneRecipe:
    rows = folder / "rows.jsonl"
    lines = [json.dumps({"prompt": f"{a}+{b}=", "completion": str(a + b)}) for a in range(5) for b in range(5)]
    rows.write_text("\n".join(lines), encoding="utf-8")
    content = {
        "model": {"path": str(model), "lora": {"rank": 2, "alpha": 8.0, **changes.pop("lora", {})}},
        "data": {"train": str(rows), "dev": 5, "test": 0},
        "update": {"steps": 6, "batch_size": 4, "optimizer": {"name": "adamw", "lr": 1e-2}},
        "rounds": 2,
        "gate": {"metric": "likelihood", "enabled": False},
        "runtime": {"threads": 1, "checkpoint_steps": 2},
    }
    return parse_recipe(TuneRecipe, content | changes)


def test_merged_the_result_is_a_plain_model(tmp_path: Path, folder: Path) -> None:
    result = tune(recipe(tmp_path, folder), tmp_path / "out")
    names = {path.name for path in result.model.iterdir()}
    assert not any("adapter" in name for name in names)
    before, after = load_policy(folder, RUNTIME), load_policy(result.model, RUNTIME)
    state, merged = before.weights.module.state_dict(), after.weights.module.state_dict()
    assert state.keys() == merged.keys()
    changed = [name for name in state if not torch.equal(state[name], merged[name])]
    # Embeddings, norms and biases had no adapters.
    assert changed
    assert all(merged[name].dim() == 2 for name in changed)
    assert result.summary["stages"]["tuned"]["dev"]["accuracy"] > result.summary["stages"]["base"]["dev"]["accuracy"]


def test_apart_the_base_is_untouched_and_the_figures_are_the_same(tmp_path: Path, folder: Path) -> None:
    merged = tune(recipe(tmp_path, folder), tmp_path / "merged")
    apart = tune(recipe(tmp_path, folder, lora={"merge": False}), tmp_path / "apart")
    assert (apart.model / "adapter_config.json").is_file()
    assert apart.summary["stages"] == merged.summary["stages"]
    prompt = torch.tensor([[3, 4, 5]])
    with torch.inference_mode():
        one, two = (load_policy(run.model, RUNTIME).weights.module(input_ids=prompt).logits for run in (merged, apart))
    assert torch.allclose(one, two, atol=1e-4)


def test_resumed_bit_for_bit(tmp_path: Path, folder: Path) -> None:
    chosen = recipe(tmp_path, folder)
    whole = tune(chosen, tmp_path / "whole")
    with pytest.raises(CutShortError):
        tune(chosen, tmp_path / "cut", observer=StopAt(9))
    assert tune(chosen, tmp_path / "cut", resume=True).policy.id == whole.policy.id


def test_flops_of_frozen_weights_are_counted_as_such(tmp_path: Path, folder: Path) -> None:
    lean = tune(recipe(tmp_path, folder), tmp_path / "lean").summary["budget"]
    plain = recipe(tmp_path, folder)
    full = tune(plain.model_copy(update={"model": plain.model.model_copy(update={"lora": None})}), tmp_path / "full")
    assert lean["tokens_trained"] == full.summary["budget"]["tokens_trained"]
    assert lean["flops"] < full.summary["budget"]["flops"]
