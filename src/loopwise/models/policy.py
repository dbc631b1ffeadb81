"""A policy: everything that decides what is generated, immutable and named by its content."""

from __future__ import annotations

import copy
import hashlib
import json
import weakref
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import nn

from loopwise.errors import ModelError
from loopwise.types import PromptState

_TOKENIZER_HASHES: weakref.WeakKeyDictionary[Any, _TokenizerHashes] = weakref.WeakKeyDictionary()
_PASSING = frozenset({"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"})
"""Where a configuration was loaded from and by what, not what it says of the model."""


class _TokenizerHashes(NamedTuple):
    """SHA-256 of how a tokenizer reads text, and of that with its chat template."""

    reading: str
    whole: str


def has_adapters(module: nn.Module) -> bool:
    """Whether a transformers module carries low-rank adapters (see lora.py)."""
    return bool(getattr(module, "_hf_peft_config_loaded", False))


def is_adapter(name: str) -> bool:
    """Whether a parameter or module of this name belongs to a low-rank adapter, as peft names them."""
    return "lora_" in name


@dataclass(frozen=True, eq=False)
class Weights:
    """A frozen transformers module. Never trained in place: ``trainable`` hands out a copy.

    Where it carries adapters, these alone are trained and copied: the tensors below them are one in all copies.
    """

    module: nn.Module

    @staticmethod
    def of(module: nn.Module) -> Weights:
        """A snapshot of a module that goes on being trained."""
        frozen = copy.deepcopy(module, _shared(module))
        for parameter in frozen.parameters():
            parameter.grad = None
        return Weights(frozen.requires_grad_(False).eval())

    def trainable(self) -> nn.Module:
        """A copy in training mode whose parameters require gradients; the adapters' alone where there are any."""
        module = copy.deepcopy(self.module, _shared(self.module)).train()
        adapters = has_adapters(module)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(not adapters or is_adapter(name))
        return module

    @cached_property
    def id(self) -> str:
        """SHA-256 over configuration, adapters' scales, and names, types, shapes and bytes of all tensors by name."""
        digest = hashlib.sha256(json.dumps(_shape(self.module), sort_keys=True, default=str).encode())
        for name, layer in self.module.named_modules() if has_adapters(self.module) else ():
            scaling = getattr(layer, "scaling", None)
            if isinstance(scaling, dict):  # attention has a scaling of its own, a number
                digest.update(f"{name} {sorted(scaling.items())}\n".encode())
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @cached_property
    def parameter_count(self) -> int:
        """Number of parameters, tied ones counted once."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    @cached_property
    def finite(self) -> bool:
        """Whether no parameter holds NaN or infinity."""
        return all(bool(torch.isfinite(parameter).all()) for parameter in self.module.parameters())

    @property
    def context_length(self) -> int | None:
        """Most tokens a sequence may have, where the architecture has a limit."""
        length = getattr(self.module.config, "max_position_embeddings", None)
        return int(length) if isinstance(length, int) and length > 0 else None

    @property
    def window(self) -> int | None:
        """Tokens of the windows to train it on: its limit, or the ``context`` a model without one was made for."""
        return self.context_length or getattr(self.module.config, "context", None)


@dataclass(frozen=True, eq=False)
class Policy:
    """Weights, tokenizer and prompt state. A remote or text-only policy has neither weights nor tokenizer.

    ``name`` stands for the content's hash where that would take too long (``live``).
    """

    weights: Weights | None = None
    tokenizer: Any = None
    prompt_state: PromptState = PromptState()
    name: str | None = None

    @cached_property
    def id(self) -> str:
        """16 hex digits that name this exact content."""
        if self.name is not None:
            return self.name
        state = self.prompt_state
        parts = [
            self.weights.id if self.weights else "",
            _hashes(self.tokenizer).whole if self.tokenizer is not None else "",
            json.dumps([state.system, state.examples, state.memory, *_later(state)]),
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def with_module(self, module: nn.Module) -> Policy:
        """The same policy with a snapshot of other weights."""
        return replace(self, weights=Weights.of(module), name=None)

    def shares_tokenizer(self, other: Policy) -> bool:
        """Whether token ids mean the same to both, whatever their chat templates. Both must have a tokenizer."""
        return _hashes(self.tokenizer).reading == _hashes(other.tokenizer).reading

    def live(self, module: nn.Module, moment: str) -> Policy:
        """The same policy with ``module`` itself, not a copy: for the moment only, before it is trained further.

        Its id follows from this policy's and the moment's name, since hashing large weights at every step takes long.
        """
        name = hashlib.sha256(f"{self.id}\n{moment}".encode()).hexdigest()[:16]
        return replace(self, weights=Weights(module), name=name)

    def trainable_module(self) -> nn.Module:
        """A copy of the weights to train. Raises ModelError for a policy without any."""
        if self.weights is None:
            raise ModelError("this policy has no weights to train; only its prompt can be improved.")
        return self.weights.trainable()

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Token ids that end a completion: the generation config's and the tokenizer's."""
        found: list[int] = []
        if self.weights is not None:
            config = getattr(self.weights.module, "generation_config", None)
            ids = getattr(config, "eos_token_id", None)
            found += [ids] if isinstance(ids, int) else list(ids or [])
        if self.tokenizer is not None and self.tokenizer.eos_token_id is not None:
            found.append(self.tokenizer.eos_token_id)
        return tuple(dict.fromkeys(found))


def _later(state: PromptState) -> list[Any]:
    """What prompt states have had since ids were first made, where it is not empty: ids of old are as they were."""
    return [state.lessons, state.suffix] if state.lessons or state.suffix else []


def _shape(module: Any) -> Any:
    """A module's configuration as ``config.json`` has it, less what differs between equal models.

    Attention implementations are not part of it: they compute the same.
    """
    return _steady(module.config.to_diff_dict())


def _steady(content: Any) -> Any:
    if isinstance(content, dict):  # parts of a model have configurations of their own
        return {key: _steady(value) for key, value in content.items() if key not in _PASSING}
    return [_steady(value) for value in content] if isinstance(content, list | tuple) else content


def _shared(module: nn.Module) -> dict[int, Any]:
    """What ``deepcopy`` is to take as copied already: the frozen tensors below adapters."""
    if not has_adapters(module):
        return {}
    return {id(parameter): parameter for name, parameter in module.named_parameters() if not is_adapter(name)}


def _hashes(tokenizer: Any) -> _TokenizerHashes:
    if tokenizer not in _TOKENIZER_HASHES:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        content = (
            json.loads(backend.to_str()) if backend is not None else {"vocab": sorted(tokenizer.get_vocab().items())}
        )
        # Padding and truncation are switches that the last call left behind, not content.
        content |= {"padding": None, "truncation": None}
        reading, whole = (
            hashlib.sha256(json.dumps(content | {"chat_template": template}).encode()).hexdigest()
            for template in (None, tokenizer.chat_template)
        )
        _TOKENIZER_HASHES[tokenizer] = _TokenizerHashes(reading, whole)
    return _TOKENIZER_HASHES[tokenizer]
