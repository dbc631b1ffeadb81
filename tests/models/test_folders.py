"""Policies from folders: what loads, what is refused, and how."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loopwise.errors import ModelError, VocabularyError
from loopwise.models.folders import load_policy, save_policy
from loopwise.models.policy import Policy
from loopwise.models.presets import character_tokenizer
from loopwise.runtime import Runtime
from loopwise.types import PromptState


def refusal(path: Path | str, runtime: Runtime, kind: type[ModelError] = ModelError) -> str:
    with pytest.raises(kind) as caught:
        load_policy(path, runtime)
    return str(caught.value)


def test_plain_transformers_opens_what_was_saved(policy: Policy, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    save_policy(replace(policy, prompt_state=PromptState("Be brief.")), tmp_path / "model")
    module = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    rows = torch.tensor([tokenizer("1+1=")["input_ids"]])
    assert torch.equal(module(rows).logits, policy.weights.module(rows).logits)
    note = json.loads((tmp_path / "model" / "prompt_state.json").read_text())["note"]
    assert "ignored by plain from_pretrained" in note


def test_an_empty_prompt_state_leaves_no_file(policy: Policy, tmp_path: Path) -> None:
    save_policy(policy, tmp_path / "model")
    assert not (tmp_path / "model" / "prompt_state.json").exists()


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_stay_tied(
    make_policy: Callable[..., Policy], runtime: Runtime, tmp_path: Path, tied: bool
) -> None:
    policy = make_policy("llama", tie_word_embeddings=tied)
    save_policy(policy, tmp_path / "model")
    for module in (load_policy(tmp_path / "model", runtime).weights.module, policy.weights.trainable()):
        shared = module.get_input_embeddings().weight is module.get_output_embeddings().weight
        assert shared == tied


def test_half_precision_weights_become_float32_masters(folder: Path, runtime: Runtime) -> None:
    policy = load_policy(folder, runtime)
    policy.weights.module.to(torch.bfloat16).save_pretrained(folder)
    loaded = load_policy(folder, runtime).weights.module
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_a_policy_of_prompts_alone_survives(runtime: Runtime, tmp_path: Path) -> None:
    for state in (PromptState(), PromptState("Be brief.", (("a", "b"),))):
        policy = Policy(prompt_state=state)
        save_policy(policy, tmp_path / policy.id)
        loaded = load_policy(tmp_path / policy.id, runtime)
        assert (loaded.id, loaded.weights, loaded.tokenizer) == (policy.id, None, None)


def test_a_missing_folder(tmp_path: Path, runtime: Runtime) -> None:
    assert f"{tmp_path / 'nowhere'}: no such model folder" in refusal(tmp_path / "nowhere", runtime)


def test_a_file_is_no_folder(tmp_path: Path, runtime: Runtime) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "no such model folder" in refusal(tmp_path / "model.safetensors", runtime)


def test_a_folder_of_something_else(tmp_path: Path, runtime: Runtime) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    assert "no config.json" in refusal(tmp_path, runtime)


def test_pickled_weights_are_never_loaded(folder: Path, runtime: Runtime) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, ("raise SystemExit('the pickle ran')",)

    (folder / "model.safetensors").unlink()
    torch.save(Bomb(), folder / "pytorch_model.bin")
    message = refusal(folder, runtime)
    assert "no weights (*.safetensors)" in message
    assert "pytorch_model.bin is a pickle, which can run code and is never loaded" in message


def test_no_weights_at_all(folder: Path, runtime: Runtime) -> None:
    (folder / "model.safetensors").unlink()
    assert "Save the model with save_pretrained" in refusal(folder, runtime)


def test_no_tokenizer(folder: Path, runtime: Runtime) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "no tokenizer (tokenizer.json)" in refusal(folder, runtime)


def test_truncated_weights(folder: Path, runtime: Runtime) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    assert f"{folder}: not loadable as a causal language model" in refusal(folder, runtime)


def test_broken_config(folder: Path, runtime: Runtime) -> None:
    (folder / "config.json").write_text("{")
    assert f"{folder}: not loadable as a causal language model" in refusal(folder, runtime)


def test_a_vocabulary_larger_than_the_model(folder: Path, runtime: Runtime) -> None:
    character_tokenizer("abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ").save_pretrained(folder)
    message = refusal(folder, runtime, VocabularyError)
    assert "the tokenizer has token id 64, but the model has embeddings for 44 tokens (ids 0 to 43)" in message
    assert "resize the embeddings" in message


def test_a_model_larger_than_the_vocabulary_is_fine(folder: Path, runtime: Runtime) -> None:
    character_tokenizer("0123456789").save_pretrained(folder)
    assert load_policy(folder, runtime).weights is not None


CODE = "open({trace!r}, 'w').close()\n"


def test_code_in_a_folder_is_never_run_nor_asked_about(
    folder: Path, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "trace"
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(CODE.format(trace=str(trace)))
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda *_: asked.append("") or "y")
    message = refusal(folder, runtime)
    assert "it needs program code from its own folder, which loopwise never runs" in message
    assert "trust_remote_code" not in message
    assert not asked
    assert not trace.exists()
