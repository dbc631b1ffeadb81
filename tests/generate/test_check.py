"""Architectures that cannot be sampled are refused before a run, those that can are let through."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.models.tiny import tiny_lstm

from loopwise.config.reading import parse_recipe
from loopwise.config.recipes import ImproveRecipe
from loopwise.errors import ModelError
from loopwise.generate.check import check_sampling
from loopwise.models.policy import Policy, Weights
from loopwise.runtime import Runtime
from loopwise.stages.improve import improve

OTHERS: dict[str, dict[str, Any]] = {
    "rwkv": {"attention_hidden_size": 32, "context_length": 64},
    "mamba": {"state_size": 4},
}


def recurrent(name: str, tokenizer: Any) -> Policy:
    """A model without a key-value cache, fresh from its initialisation."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2}
    tokens = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    config = AutoConfig.for_model(name, **sizes, **tokens, **OTHERS[name])
    return Policy(Weights.of(AutoModelForCausalLM.from_config(config)), tokenizer)


@pytest.mark.parametrize("spread", [0.02, 0.2])
@pytest.mark.parametrize("shape", ["gpt2", "llama", "qwen3", "mistral"])
def test_attention_passes(make_policy: Callable[..., Policy], runtime: Runtime, shape: str, spread: float) -> None:
    check_sampling(make_policy(shape, initializer_range=spread), runtime)
    check_sampling(replace(make_policy(shape), weights=None), runtime)
    for length in (4, 6):  # the shortest that the check fits in, and one that it does not
        check_sampling(make_policy(shape, max_position_embeddings=length), runtime)


@pytest.mark.parametrize("spread", [0.02, 0.2])
def test_our_lstm_passes(tokenizer: Any, runtime: Runtime, spread: float) -> None:
    check_sampling(tiny_lstm(tokenizer, initializer_range=spread), runtime)


@pytest.mark.parametrize(("name", "fault"), [("rwkv", "away from those without"), ("mamba", "no attribute")])
def test_another_memory_is_refused_by_name(tokenizer: Any, runtime: Runtime, name: str, fault: str) -> None:
    with pytest.raises(ModelError, match=f"model_type {name}: .*{fault}.*Take a decoder .*Llama") as caught:
        check_sampling(recurrent(name, tokenizer), runtime)
    assert "loopwise tune" in str(caught.value)


def test_a_run_is_refused_before_anything_is_written(tokenizer: Any, tmp_path: Path) -> None:
    folder, rows = tmp_path / "model", tmp_path / "rows.jsonl"
    policy = recurrent("rwkv", tokenizer)
    assert policy.weights is not None
    policy.weights.module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rows.write_text("".join(json.dumps({"prompt": f"{number}+1="}) + "\n" for number in range(20)))
    content = {
        "model": str(folder),
        "data": {"train": str(rows), "dev": 4, "test": 4},
        "rewards": [{"use": "regex", "options": {"pattern": "1"}}],
        "sampling": {"max_tokens": 4},
        "runtime": {"device": "cpu", "threads": 1},
    }
    with pytest.raises(ModelError, match="model_type rwkv"):
        improve(parse_recipe(ImproveRecipe, content), tmp_path / "out")
    assert not (tmp_path / "out").exists()
