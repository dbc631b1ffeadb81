"""Low-rank adapters beside frozen weights (Hu et al. 2021): ``W x + (alpha / rank) B A x``, only A and B are trained.

The module stays the plain transformers class; peft puts its layers inside.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from loopwise.config.blocks import LoraConfig
from loopwise.errors import ConfigError, ModelError, nearest
from loopwise.models.policy import Policy, Weights, has_adapters
from loopwise.runtime import Runtime, seed_key

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def with_lora(policy: Policy, config: LoraConfig, runtime: Runtime) -> Policy:
    """The policy with fresh adapters, which change nothing yet; the weights below are shared with it.

    The adapters' first values follow from their shape and ``runtime.seed``. Raises ConfigError where a target is
    no linear layer inside the model's blocks, or none is there; ModelError for a policy that has adapters already, or
    no weights.
    """
    from peft import LoraConfig as PeftConfig

    if policy.weights is None:
        raise ModelError("this policy has no weights to put adapters in; only its prompt can be improved.")
    if has_adapters(policy.weights.module):
        raise ModelError(
            "this model carries adapters already. Merge them first, or leave model.lora out to train them."
        )
    shared = {id(parameter): parameter for parameter in policy.weights.module.parameters()}
    module: Any = copy.deepcopy(policy.weights.module, shared)
    targets, transposed = _targets(module, config)
    adapters = PeftConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        fan_in_fan_out=transposed,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_key("adapters", config.model_dump_json(exclude={"merge"}), runtime.seed) % 2**63)
        module.add_adapter(adapters)
    adapters.base_model_name_or_path = None  # it may be a path of this machine, and the base is saved beside them
    return replace(policy, weights=Weights(module.requires_grad_(False).eval()))


def merged(policy: Policy) -> Policy:
    """The policy with its adapters added into plain weights; a policy without adapters as it is."""
    if policy.weights is None or not has_adapters(policy.weights.module):
        return policy
    module = copy.deepcopy(policy.weights.module)
    for layer in _adapted(module).values():
        layer.merge(safe_merge=True)
    return replace(policy, weights=Weights.of(_unwrapped(module)))


def require_adapters(module: nn.Module | None, key: str = "reference") -> None:
    """Raise ConfigError where ``key`` of a recipe is adapters_off, and the module has no adapters to switch off."""
    if module is None or not has_adapters(module):
        raise ConfigError(
            f'key "{key}": adapters_off compares with the weights below the adapters, and this model has none. Set '
            "model.lora, or reference: base."
        )


@contextlib.contextmanager
def adapters_off(module: nn.Module) -> Iterator[None]:
    """The module as it is below its adapters, in evaluation mode; afterwards all is as it was before.

    Raises ConfigError for a module without adapters.
    """
    require_adapters(module)
    modes = [(part, part.training) for part in module.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    layers = [layer for layer in _adapted(module).values() if not layer.disable_adapters]
    module.eval()
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        # Switching adapters off and on, peft decides anew what is trained.
        for parameter, wanted in trained:
            parameter.requires_grad_(wanted)
        for part, mode in modes:
            part.training = mode


def save_adapters(module: Any, folder: Path) -> None:
    """Write the frozen model below the adapters, and the adapters as peft does, into one folder.

    Transformers opens that folder as the adapted model. The base is copied into every checkpoint: one file under
    several names would be lost under all of them at once.
    """
    shared = {id(parameter): parameter for parameter in module.parameters()}
    _unwrapped(copy.deepcopy(module, shared)).save_pretrained(folder)  # type: ignore[operator]  # a transformers module
    module.save_pretrained(folder)
    path = folder / ADAPTER_CONFIG
    content = json.loads(path.read_text(encoding="utf-8"))
    content["target_modules"] = sorted(content["target_modules"])  # a set, written in another order by each process
    path.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")


def check_adapters(folder: Path) -> None:
    """Raise ModelError unless the adapters in ``folder`` can be loaded without running code, and are low-rank ones."""
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ModelError(
            f"{folder}: {ADAPTER_CONFIG} without {ADAPTER_WEIGHTS}. Save the adapter again as safetensors."
        )
    try:
        kind = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["peft_type"]
    except (ValueError, KeyError, TypeError):
        raise ModelError(f"{folder / ADAPTER_CONFIG}: not as peft writes it. Save the adapter again.") from None
    if kind != "LORA":
        raise ModelError(
            f"{folder}: an adapter of the kind {kind}; loopwise knows LoRA. Merge it, and name the result."
        )


def _targets(module: Any, config: LoraConfig) -> tuple[list[str], bool]:
    """Names of the layers to adapt, and whether their weights are stored ``[inputs, outputs]``, as GPT-2's are."""
    from transformers.pytorch_utils import Conv1D

    output = module.get_output_embeddings()
    linear = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and layer is not output
    }
    known = sorted({name.rpartition(".")[2] for name in linear})
    if not known:
        raise ConfigError(
            f'key "model.lora": a model of the type {module.config.model_type} has no linear layers inside its blocks '
            "to adapt. Leave it out, or take a transformer."
        )
    for target in config.targets:
        if target not in known:
            raise ConfigError(
                f'key "model.lora.targets": no linear layer {target!r} in this model. {nearest(target, known)}'
            )
    chosen = list(config.targets) or known
    kinds = {isinstance(layer, Conv1D) for name, layer in linear.items() if name.rpartition(".")[2] in chosen}
    return chosen, kinds == {True}


def _adapted(module: nn.Module) -> dict[str, Any]:
    """The layers that peft wraps, by name."""
    from peft.tuners.lora import LoraLayer

    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module with its adapters taken off again, in place."""
    for name, layer in _adapted(module).items():
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, layer.get_base_layer())
    del module.peft_config, module._hf_peft_config_loaded
    return module
