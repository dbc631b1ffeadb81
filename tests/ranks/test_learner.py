"""Ranks that share an optimizer step end where one process does: to the bit, and with shards to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.ranks.conftest import Launch


def learned(launch: Launch, folder: Path, world: int, **options: Any) -> dict[str, torch.Tensor]:
    """What the ranks learned; all of them must hold the same."""
    out = folder / f"{world}-{len(list(folder.iterdir()))}"
    launch("learner", world, out=str(out), **options)
    first, *others = [load_file(f"{out}.{rank}") for rank in range(world)]
    for other in others:
        assert all(torch.equal(other[name], tensor) for name, tensor in first.items())
    return first


def gap(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[name] - tensor).abs().max()) for name, tensor in expected.items())


@pytest.mark.parametrize(("shape", "optimizer", "dropout"), [("gpt2", "muon", 0.1), ("llama", "adamw", 0.0)])
def test_ranks_step_as_one_process_does_to_the_bit(
    launch: Launch, tmp_path: Path, shape: str, optimizer: str, dropout: float
) -> None:
    options = {"shape": shape, "dtype": "float32", "name": optimizer, "dropout": dropout}
    alone = learned(launch, tmp_path, 1, **options)
    assert float(alone["metrics.3.units"]) == 5
    assert gap(learned(launch, tmp_path, 2, **options), alone) == 0
    assert gap(learned(launch, tmp_path, 3, **options), alone) == 0


@pytest.mark.parametrize(("shape", "dtype", "tolerance"), [("gpt2", "float64", 1e-10), ("llama", "float32", 1e-6)])
def test_shards_step_as_one_process_does(
    launch: Launch, tmp_path: Path, shape: str, dtype: str, tolerance: float
) -> None:
    options = {"shape": shape, "dtype": dtype, "dropout": 0.0}
    alone = learned(launch, tmp_path, 1, **options)
    middle = str(tmp_path / "middle")
    sharded = learned(launch, tmp_path, 2, shard=True, middle=middle, **options)
    relative = {name: tensor / tensor.abs().max().clamp(min=1) for name, tensor in alone.items()}
    scaled = {name: tensor / alone[name].abs().max().clamp(min=1) for name, tensor in sharded.items()}
    assert gap(scaled, relative) < tolerance
    resumed = learned(launch, tmp_path, 2, shard=True, middle=middle, **options)
    assert gap(resumed, {name: sharded[name] for name in resumed}) == 0


@pytest.mark.parametrize(("shape", "states"), [("llama", False), ("llama", True), ("gemma2", False)])
def test_shards_take_units_of_any_sizes(launch: Launch, tmp_path: Path, shape: str, states: bool) -> None:
    """Ranks that need different numbers of forward passes for their units would wait for each other without end."""
    found = []
    for world, shard in ((1, False), (2, True)):
        out = tmp_path / str(world)
        launch("uneven", world, out=str(out), shape=shape, shard=shard, states=states)
        found.append(load_file(f"{out}.{world - 1}"))
    assert gap(found[1], found[0]) < 1e-5


def test_states_of_capped_logits_are_refused_in_shards(launch: Launch, tmp_path: Path) -> None:
    launched = launch("uneven", 2, fails=True, out=str(tmp_path / "out"), shape="gemma2", shard=True, states=True)
    assert 'key "runtime.shard": Gemma2ForCausalLM scales or caps its logits' in launched.errors
