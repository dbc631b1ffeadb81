"""What names a policy, and that nothing it hands out can change it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from loopwise.config.blocks import ModelConfig
from loopwise.errors import ModelError
from loopwise.models.folders import load_policy, save_policy
from loopwise.models.policy import Policy, Weights
from loopwise.models.presets import character_tokenizer, create_policy
from loopwise.models.tokens import encode_prompts
from loopwise.runtime import Runtime
from loopwise.types import Problem, PromptState


@pytest.mark.parametrize("shape", ["gpt2", "llama", "qwen3", "mistral"])
def test_the_id_survives_saving_and_loading(
    make_policy: Callable[..., Policy], runtime: Runtime, tmp_path: Path, shape: str
) -> None:
    state = PromptState("Be brief.", (("1+1=", "2"),), ("Carry the one. 進位",))
    policy = replace(make_policy(shape), prompt_state=state)
    save_policy(policy, tmp_path / "a")
    loaded = load_policy(tmp_path / "a", runtime)
    assert loaded.prompt_state == state
    assert loaded.id == policy.id
    save_policy(loaded, tmp_path / "b")
    assert load_policy(tmp_path / "b", runtime).id == policy.id


def padded(folder: Path) -> None:
    tokenizer = character_tokenizer("0123456789+= ")
    tokenizer.backend_tokenizer.enable_padding(length=20)
    tokenizer.backend_tokenizer.enable_truncation(max_length=30)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("used_first", [False, True])
def test_using_a_tokenizer_does_not_change_the_id(
    folder: Path, runtime: Runtime, tmp_path: Path, used_first: bool
) -> None:
    # The library's tokenizers keep the padding and truncation of the last call; some are saved with them switched on.
    padded(folder)
    fresh = load_policy(folder, runtime).id
    policy = load_policy(folder, runtime)
    if used_first:
        encode_prompts(policy, [Problem("p", "1+1=")])
    assert policy.id == fresh
    encode_prompts(policy, [Problem("p", "1+1=")])
    save_policy(policy, tmp_path / "again")
    assert load_policy(tmp_path / "again", runtime).id == fresh


def test_the_id_differs_for_any_changed_part(policy: Policy) -> None:
    module = policy.weights.trainable()
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] += 1e-6
    templated = character_tokenizer("0123456789+=")
    templated.chat_template = "{{ messages[0]['content'] }}"
    variants = [
        policy,
        policy.with_module(module),
        replace(policy, prompt_state=PromptState(system="Be brief.")),
        replace(policy, prompt_state=PromptState(memory=("Be brief.",))),
        replace(policy, prompt_state=PromptState(examples=(("Be", "brief."),))),
        replace(policy, tokenizer=character_tokenizer("0123456789+=")),
        replace(policy, tokenizer=templated),
        replace(policy, weights=None),
        Policy(),
    ]
    ids = [variant.id for variant in variants]
    assert len(set(ids)) == len(ids)
    assert all(len(name) == 16 and int(name, 16) >= 0 for name in ids)
    assert policy.with_module(policy.weights.trainable()).id == policy.id


@pytest.mark.parametrize("shape", ["gpt2", "llama"])
def test_the_id_covers_what_computes_with_the_tensors(make_policy: Callable[..., Policy], shape: str) -> None:
    policy = make_policy(shape)
    ids = {policy.weights.id}
    for name, value in {
        "num_attention_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5.0},
    }.items():
        other = Weights.of(policy.weights.module)
        setattr(other.module.config, name, value)
        ids.add(other.id)
    assert len(ids) == 3


def test_the_id_does_not_depend_on_how_a_model_is_run_or_where_it_came_from(policy: Policy) -> None:
    other = Weights.of(policy.weights.module)
    other.module.set_attn_implementation("sdpa" if other.module.config._attn_implementation == "eager" else "eager")
    config = other.module.config
    config.dtype, config.name_or_path, config.architectures = torch.bfloat16, "elsewhere", ["AnotherName"]
    config.transformers_version, config.use_cache = "4.0", False
    assert other.id == policy.weights.id


def test_a_tokenizer_with_several_chat_templates_has_an_id(policy: Policy) -> None:
    tokenizer = character_tokenizer("0123456789+=")
    tokenizer.chat_template = {"default": "a", "tool_use": "b"}
    assert replace(policy, tokenizer=tokenizer).id != policy.id


def test_trainable_is_a_copy_and_so_is_a_snapshot(policy: Policy) -> None:
    before = policy.weights.id
    module = policy.trainable_module()
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not any(parameter.requires_grad for parameter in policy.weights.module.parameters())
    snapshot = Weights.of(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert Weights(policy.weights.module).id == before
    assert snapshot.id == before
    assert not snapshot.module.training


def test_a_snapshot_carries_no_gradients(policy: Policy) -> None:
    module = policy.trainable_module()
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert all(parameter.grad is None for parameter in Weights.of(module).module.parameters())
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_a_policy_without_weights_cannot_be_trained() -> None:
    with pytest.raises(ModelError, match="no weights to train; only its prompt can be improved"):
        Policy().trainable_module()


def test_tied_parameters_count_once(make_policy: Callable[..., Policy]) -> None:
    tied, untied = (make_policy("llama", tie_word_embeddings=tie).weights for tie in (True, False))
    vocabulary, width = tied.module.get_input_embeddings().weight.shape
    assert untied.parameter_count - tied.parameter_count == vocabulary * width


def test_end_ids_are_the_generation_configs_and_the_tokenizers(policy: Policy) -> None:
    def ends(ids: Any) -> tuple[int, ...]:
        policy.weights.module.generation_config.eos_token_id = ids
        return policy.end_ids

    assert ends(7) == (7, 1)
    assert ends([1, 9]) == (1, 9)
    assert ends(None) == (1,)
    assert Policy().end_ids == ()


def test_presets_are_a_pure_function_of_the_seed(runtime: Runtime) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = create_policy(ModelConfig(create="demo"), runtime)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(4)
    assert create_policy(ModelConfig(create="demo"), runtime).id == first.id
    assert create_policy(ModelConfig(create="demo"), replace(runtime, seed=1)).id != first.id
    assert first.weights.parameter_count == pytest.approx(0.40e6, rel=0.02)
