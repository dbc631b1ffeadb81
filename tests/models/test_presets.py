"""Models made from nothing: every shape saves, loads, generates, and follows its dials."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from loopwise.config.blocks import LoraConfig, ModelConfig
from loopwise.errors import ConfigError
from loopwise.models.folders import load_policy, save_policy
from loopwise.models.policy import Policy
from loopwise.models.presets import create_policy
from loopwise.runtime import Runtime
from loopwise.update.learner import draws_in_training

PRESETS = ("gpt2", "llama", "qwen3", "lstm")
IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [20, 21, 22, 23, 24, 25]])


def make(preset: str, runtime: Runtime, **dials: Any) -> Policy:
    given = {"depth": 2, "context": 64, "tokenizer": {"kind": "byte"}} | dials
    return create_policy(ModelConfig(create=preset, **given), runtime)


def refusal(runtime: Runtime, preset: str, **dials: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        make(preset, runtime, **dials)
    return str(caught.value)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_model_survives_its_folder(preset: str, runtime: Runtime, tmp_path: Path) -> None:
    policy = make(preset, runtime)
    save_policy(policy, tmp_path)
    loaded = load_policy(tmp_path, runtime)
    assert loaded.id == policy.id
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    ours: Any = loaded.weights.module
    with torch.inference_mode():
        logits = ours(IDS).logits
        assert torch.isfinite(logits).all()
        torch.testing.assert_close(plain(IDS).logits, logits, atol=1e-5, rtol=0)
    assert ours.generate(IDS, max_new_tokens=3, min_new_tokens=3, do_sample=False).shape == (2, 9)
    assert AutoTokenizer.from_pretrained(tmp_path)("héé 詩\n")["input_ids"] == policy.tokenizer("héé 詩\n")["input_ids"]
    assert policy.end_ids == (policy.tokenizer.eos_token_id,)


@pytest.mark.parametrize("preset", PRESETS)
def test_padded_rows_equal_single_rows(preset: str, runtime: Runtime) -> None:
    module: Any = make(preset, runtime, init_std=0.2).weights.module
    mask = torch.ones_like(IDS)
    mask[0, :2] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.inference_mode():
        logits = module(IDS, attention_mask=mask, position_ids=positions).logits
        torch.testing.assert_close(logits[0, 2:], module(IDS[:1, 2:]).logits[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(logits[1], module(IDS[1:]).logits[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("preset", PRESETS)
def test_depth_is_the_dial(preset: str, runtime: Runtime) -> None:
    shallow, deep = (make(preset, runtime, depth=depth).weights for depth in (2, 4))
    assert deep.parameter_count > 4 * shallow.parameter_count
    config: Any = deep.module.config
    assert (config.num_hidden_layers, config.hidden_size) == (4, 128)
    assert getattr(config, "num_attention_heads", 4) == 4
    assert deep.window == 64
    assert deep.context_length == (None if preset == "lstm" else 64)
    embeddings = deep.module.get_input_embeddings().weight
    assert deep.module.get_output_embeddings().weight is embeddings
    assert float(embeddings.detach().std()) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("preset", ["llama", "qwen3"])
def test_gated_layers_are_rounded_to_whole_blocks(preset: str, runtime: Runtime) -> None:
    for width, inner in ((32, 96), (64, 160), (96, 256), (192, 512)):
        assert make(preset, runtime, width=width).weights.module.config.intermediate_size == inner


@pytest.mark.parametrize("preset", PRESETS)
def test_initialisation_is_a_pure_function_of_shape_and_seed(preset: str, runtime: Runtime) -> None:
    first = make(preset, runtime)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    assert make(preset, runtime).id == make(preset, runtime, lora=LoraConfig()).id == first.id
    assert torch.equal(torch.random.get_rng_state(), before)
    others = [make(preset, replace(runtime, seed=1)), make(preset, runtime, init_std=0.05)]
    assert len({policy.id for policy in (first, *others)}) == 3


@pytest.mark.parametrize("preset", PRESETS)
def test_dropout_reaches_the_model(preset: str, runtime: Runtime) -> None:
    assert not draws_in_training(make(preset, runtime).weights.module)
    policy = make(preset, runtime, dropout=0.5, init_std=0.2)
    assert draws_in_training(policy.weights.module)
    module = policy.weights.trainable()
    assert not torch.equal(module(IDS).logits, module(IDS).logits)


def test_a_tokenizer_is_made_of_the_texts(runtime: Runtime) -> None:
    asked = []

    def texts() -> list[str]:
        asked.append(1)
        return ["abba", "cab"]

    model = ModelConfig(create="llama", depth=1, tokenizer={"kind": "char", "vocabulary": 3})
    policy = create_policy(model, runtime, texts)
    assert len(policy.tokenizer("cab", add_special_tokens=False)["input_ids"]) == 3
    assert policy.weights.module.config.vocab_size == len(policy.tokenizer)
    assert asked == [1]
    create_policy(ModelConfig(create="llama", depth=1, tokenizer="byte"), runtime, texts)
    assert asked == [1], "bytes need no text"


def test_a_tokenizer_of_a_folder_needs_no_texts(runtime: Runtime, tmp_path: Path) -> None:
    make("gpt2", runtime).tokenizer.save_pretrained(tmp_path)
    policy = make("gpt2", runtime, tokenizer={"path": str(tmp_path)})
    assert policy.id == make("gpt2", runtime).id


def test_what_a_shape_cannot_have_is_refused(runtime: Runtime) -> None:
    assert "unknown preset 'lama'. Did you mean \"llama\"?" in refusal(runtime, "lama")
    message = refusal(runtime, "gpt2", width=100, heads=3)
    assert message == 'key "model.width": 100 cannot be split into 3 heads. The nearest is 99.'
    assert "3 heads of an even number each. The nearest is 102." in refusal(runtime, "llama", width=101, heads=3)
    assert "The nearest is 14." in refusal(runtime, "qwen3", width=7, heads=7)
    assert "an LSTM has no attention heads" in refusal(runtime, "lstm", heads=2)
    for kind in ("bpe", "char"):
        message = refusal(runtime, "llama", tokenizer={"kind": kind})
        assert f"a tokenizer of the kind {kind} is trained on text, and there is none here. Use kind: byte" in message


def test_a_suggested_width_works(runtime: Runtime) -> None:
    assert make("llama", runtime, width=102, heads=3).weights.finite
    assert make("gpt2", runtime, width=99, heads=3).weights.finite
    assert make("lstm", runtime, width=33).weights.finite
