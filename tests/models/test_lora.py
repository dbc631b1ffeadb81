"""Low-rank adapters: what they share, what is trained, what is saved, and that merging changes nothing."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.tiny import tiny_lstm
from torch import nn

from loopwise.config.blocks import LoraConfig, OptimizerConfig
from loopwise.errors import ConfigError, ModelError
from loopwise.generate.check import check_sampling
from loopwise.models.folders import load_policy, save_policy
from loopwise.models.logps import TokenRow, token_logps
from loopwise.models.lora import adapters_off, merged, with_lora
from loopwise.models.policy import Policy, Weights, is_adapter
from loopwise.runtime import Runtime
from loopwise.update.learner import Learner
from loopwise.update.losses import likelihood_loss

SHAPES = ("gpt2", "llama", "qwen3")
IDS = torch.tensor([[5, 6, 7, 8, 9], [20, 21, 22, 23, 24]])
ROWS = [TokenRow((5, 6, 7), (8, 9, 1)), TokenRow((20, 21), (22, 1))]


def logits(policy: Policy) -> torch.Tensor:
    module: Any = policy.weights.module
    with torch.inference_mode():
        return module(IDS, use_cache=False).logits


def named(module: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """The adapters' parameters, and those below."""
    parameters = dict(module.named_parameters())
    adapters = {name: parameter for name, parameter in parameters.items() if is_adapter(name)}
    return adapters, {name: parameter for name, parameter in parameters.items() if name not in adapters}


@pytest.fixture
def adapted(make_policy: Callable[..., Policy], runtime: Runtime) -> Callable[..., Policy]:
    """Make a policy with adapters that were trained for two steps, so that they change something."""

    def make(shape: str = "gpt2", **options: Any) -> Policy:
        policy = with_lora(make_policy(shape), LoraConfig(rank=4, **options), runtime)
        module = policy.weights.trainable()
        learner = Learner(module, OptimizerConfig(lr=0.05), runtime, total_steps=2)
        for _ in range(2):
            learner.step([ROWS], lambda model, rows: likelihood_loss(*token_logps(model, rows), 5))
        return policy.with_module(module)

    return make


@pytest.mark.parametrize("shape", SHAPES)
def test_fresh_adapters_change_nothing(make_policy: Callable[..., Policy], runtime: Runtime, shape: str) -> None:
    base = make_policy(shape)
    policy = with_lora(base, LoraConfig(), runtime)
    assert torch.equal(logits(policy), logits(base))
    assert policy.id != base.id
    assert type(policy.weights.module) is type(base.weights.module)
    assert with_lora(base, LoraConfig(), runtime).id == policy.id
    assert with_lora(base, LoraConfig(), replace(runtime, seed=1)).id != policy.id
    assert with_lora(base, LoraConfig(alpha=8), runtime).weights.id != policy.weights.id
    assert named(base.weights.module)[0] == {}, "the base stays without"


def test_a_scale_alone_is_another_policy(make_policy: Callable[..., Policy], runtime: Runtime) -> None:
    policy = with_lora(make_policy(), LoraConfig(), runtime)
    twin = Weights.of(policy.weights.module)
    assert twin.id == policy.weights.id
    louder = Weights.of(policy.weights.module)
    for layer in louder.module.modules():
        if isinstance(getattr(layer, "scaling", None), dict):
            layer.scaling["default"] *= 2
    assert louder.id != twin.id


@pytest.mark.parametrize("shape", SHAPES)
def test_adapters_alone_are_trained_and_copied(
    adapted: Callable[..., Policy], make_policy: Callable[..., Policy], shape: str
) -> None:
    policy = adapted(shape)
    module = policy.weights.trainable()
    adapters, below = named(module)
    assert adapters
    assert all(parameter.requires_grad for parameter in adapters.values())
    assert not any(parameter.requires_grad for parameter in below.values())
    before = policy.weights.id
    snapshot = Weights.of(module)
    for copy in (module, snapshot.module):
        own_adapters, own_below = named(copy)
        frozen_adapters, frozen_below = named(policy.weights.module)
        assert all(own_below[name].data_ptr() == frozen_below[name].data_ptr() for name in frozen_below)
        assert not any(own_adapters[name].data_ptr() == frozen_adapters[name].data_ptr() for name in frozen_adapters)
    with torch.no_grad():
        for parameter in adapters.values():
            parameter.zero_()
    assert Weights(policy.weights.module).id == before == snapshot.id
    base = dict(make_policy(shape).weights.module.named_parameters())
    for name, parameter in below.items():
        assert torch.equal(parameter, base[name.replace(".base_layer", "")]), "training left the base as it was"


def test_the_base_is_shared_with_the_policy_it_came_from(policy: Policy, runtime: Runtime) -> None:
    _, below = named(with_lora(policy, LoraConfig(), runtime).weights.module)
    base = {parameter.data_ptr() for parameter in policy.weights.module.parameters()}
    assert {parameter.data_ptr() for parameter in below.values()} == base


@pytest.mark.parametrize("shape", SHAPES)
def test_every_linear_layer_inside_the_blocks_is_adapted(
    make_policy: Callable[..., Policy], runtime: Runtime, shape: str
) -> None:
    adapters, _ = named(with_lora(make_policy(shape), LoraConfig(rank=3), runtime).weights.module)
    assert len(adapters) == 2 * 2 * (4 if shape == "gpt2" else 7)
    assert not any("lm_head" in name for name in adapters)
    assert {min(parameter.shape) for parameter in adapters.values()} == {3}


def test_named_targets_alone(make_policy: Callable[..., Policy], runtime: Runtime) -> None:
    config = LoraConfig(targets=("q_proj", "v_proj"))
    adapters, _ = named(with_lora(make_policy("llama"), config, runtime).weights.module)
    assert len(adapters) == 2 * 2 * 2
    assert all("q_proj" in name or "v_proj" in name for name in adapters)


def test_what_cannot_be_adapted_is_refused(
    make_policy: Callable[..., Policy], tokenizer: Any, runtime: Runtime
) -> None:
    with pytest.raises(ConfigError, match=r"model.lora.targets.*no linear layer 'q_porj'.*Did you mean \"q_proj\"\?"):
        with_lora(make_policy("llama"), LoraConfig(targets=("q_porj",)), runtime)
    with pytest.raises(ConfigError, match=r"no linear layer 'lm_head'.*Known: .*down_proj"):
        with_lora(make_policy("llama"), LoraConfig(targets=("lm_head",)), runtime)
    with pytest.raises(ConfigError, match="loopwise_lstm has no linear layers"):
        with_lora(tiny_lstm(tokenizer), LoraConfig(), runtime)
    with pytest.raises(ModelError, match="carries adapters already"):
        with_lora(with_lora(make_policy(), LoraConfig(), runtime), LoraConfig(), runtime)
    with pytest.raises(ModelError, match="no weights"):
        with_lora(Policy(), LoraConfig(), runtime)


@pytest.mark.parametrize("shape", SHAPES)
def test_merging_leaves_the_logits_and_no_trace(
    adapted: Callable[..., Policy], make_policy: Callable[..., Policy], runtime: Runtime, tmp_path: Path, shape: str
) -> None:
    policy = adapted(shape)
    before = policy.weights.id
    plain = merged(policy)
    assert (logits(policy) - logits(make_policy(shape))).abs().max() > 0.1
    torch.testing.assert_close(logits(plain), logits(policy), atol=1e-5, rtol=1e-5)
    assert Weights(policy.weights.module).id == before, "merging works on a copy"
    assert merged(plain) is plain
    assert plain.weights.module.state_dict().keys() == make_policy(shape).weights.module.state_dict().keys()
    assert all(parameter.requires_grad for parameter in plain.weights.trainable().parameters())
    save_policy(plain, tmp_path)
    assert not list(tmp_path.glob("adapter*"))
    assert load_policy(tmp_path, runtime).id == plain.id


@pytest.mark.parametrize("shape", SHAPES)
def test_a_folder_of_adapters_is_restored_bit_for_bit(
    adapted: Callable[..., Policy], runtime: Runtime, tmp_path: Path, shape: str
) -> None:
    policy = adapted(shape)
    save_policy(policy, tmp_path / "a")
    loaded = load_policy(tmp_path / "a", runtime)
    assert loaded.id == policy.id
    torch.testing.assert_close(logits(loaded), logits(policy), atol=1e-5, rtol=1e-5)
    trained = named(loaded.weights.trainable())
    assert all(parameter.requires_grad for parameter in trained[0].values())
    assert not any(parameter.requires_grad for parameter in trained[1].values())
    save_policy(loaded, tmp_path / "b")
    shutil.rmtree(tmp_path / "a")  # a checkpoint must outlive the ones before
    assert load_policy(tmp_path / "b", runtime).id == policy.id
    check_sampling(loaded, runtime)
    save_policy(merged(loaded), tmp_path / "merged")
    assert load_policy(tmp_path / "merged", runtime).id == merged(policy).id


def test_equal_policies_are_saved_as_equal_bytes(
    adapted: Callable[..., Policy], runtime: Runtime, tmp_path: Path
) -> None:
    policy = adapted("llama")
    save_policy(policy, tmp_path / "a")
    save_policy(load_policy(tmp_path / "a", runtime), tmp_path / "b")
    for name in ("model.safetensors", "adapter_model.safetensors", "adapter_config.json", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])
    assert config["base_model_name_or_path"] is None


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own use of transformers
def test_the_folder_opens_in_transformers_and_peft(
    adapted: Callable[..., Policy], make_policy: Callable[..., Policy], tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    policy = adapted("qwen3")
    save_policy(policy, tmp_path / "apart")
    save_policy(make_policy("qwen3"), tmp_path / "base")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "apart").eval()
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    through_peft = PeftModel.from_pretrained(base, tmp_path / "apart").eval()
    with torch.inference_mode():
        torch.testing.assert_close(opened(IDS).logits, logits(policy), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(through_peft(IDS).logits, logits(policy), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "an adapter without the model below it"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "without adapter_model.safetensors"),
        (
            lambda folder: (folder / "adapter_config.json").write_text("{}"),
            "adapter_config.json: not as peft writes it",
        ),
        (lambda folder: (folder / "adapter_config.json").write_text('{"peft_type": "IA3"}'), "of the kind IA3"),
        (lambda folder: (folder / "model.safetensors").unlink(), "not loadable as a causal language model"),
    ],
)
def test_half_a_folder_is_refused(
    adapted: Callable[..., Policy], runtime: Runtime, tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    save_policy(adapted(), tmp_path)
    spoil(tmp_path)
    with pytest.raises(ModelError, match=message) as caught:
        load_policy(tmp_path, runtime)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("file", ["model.safetensors", "adapter_model.safetensors"])
def test_missing_tensors_are_noticed_on_both_sides(
    adapted: Callable[..., Policy], runtime: Runtime, tmp_path: Path, file: str
) -> None:
    from safetensors.torch import load_file, save_file

    save_policy(adapted(), tmp_path)
    tensors = load_file(tmp_path / file)
    name = next(name for name in sorted(tensors) if "c_fc" in name and "weight" in name)
    del tensors[name]
    save_file(tensors, tmp_path / file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="no weights for 1 tensors"):
        load_policy(tmp_path, runtime)


def test_half_precision_adapters_become_float32(
    adapted: Callable[..., Policy], runtime: Runtime, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    save_policy(adapted(), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    halves = {name: tensor.bfloat16() for name, tensor in load_file(file).items()}
    save_file(halves, file, metadata={"format": "pt"})
    adapters, below = named(load_policy(tmp_path, runtime).weights.module)
    assert {parameter.dtype for parameter in (*adapters.values(), *below.values())} == {torch.float32}


def test_dropout_of_adapters_is_seeded(make_policy: Callable[..., Policy], runtime: Runtime) -> None:
    policy = with_lora(make_policy("llama"), LoraConfig(dropout=0.5), runtime)

    def trained(seed: int) -> str:
        module = policy.weights.trainable()
        learner = Learner(module, OptimizerConfig(lr=0.05), replace(runtime, seed=seed), total_steps=3)
        for _ in range(3):
            learner.step([ROWS], lambda model, rows: likelihood_loss(*token_logps(model, rows), 5))
        return policy.with_module(module).id

    assert trained(0) == trained(0) != trained(1)


def test_the_optimizer_holds_adapters_alone(policy: Policy, runtime: Runtime) -> None:
    module = with_lora(policy, LoraConfig(), runtime).weights.trainable()
    learner = Learner(module, OptimizerConfig(name="muon"), runtime, total_steps=1)
    learner.step([ROWS], lambda model, rows: likelihood_loss(*token_logps(model, rows), 5))
    assert learner.state()["moments"].keys() == named(module)[0].keys()
    assert all("momentum" not in entry for entry in learner.state()["moments"].values()), "AdamW, not Muon"


@pytest.mark.parametrize("shape", SHAPES)
def test_adapters_are_off_for_a_while(
    make_policy: Callable[..., Policy], adapted: Callable[..., Policy], shape: str
) -> None:
    module = adapted(shape, dropout=0.5).weights.trainable()
    next(module.children()).eval()  # modes differ from part to part
    modes = [part.training for part in module.modules()]
    trained = [parameter.requires_grad for parameter in module.parameters()]
    assert len(set(modes)) == len(set(trained)) == 2

    def unchanged() -> bool:
        now = [part.training for part in module.modules()], [p.requires_grad for p in module.parameters()]
        return now == (modes, trained)

    with torch.no_grad(), adapters_off(module):
        below = module(IDS, use_cache=False).logits
    assert unchanged()
    with contextlib.suppress(KeyboardInterrupt), adapters_off(module):
        raise KeyboardInterrupt
    assert unchanged()
    assert torch.equal(below, logits(make_policy(shape)))
    assert not torch.equal(module.eval()(IDS, use_cache=False).logits, below)


def test_a_model_without_adapters_has_none_to_switch_off(make_policy: Callable[..., Policy]) -> None:
    refusal = pytest.raises(ConfigError, match=r"this model has none\. Set model\.lora, or reference: base")
    with refusal, adapters_off(make_policy().weights.module):
        pass
