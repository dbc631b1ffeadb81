"""A second view of a module: the same tensors and hooks, with other settings. The module itself is never touched."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


def twin_of(module: nn.Module, *, linear: torch.dtype | None = None, **settings: Any) -> Any:
    """The module once more, over the same parameters, buffers and hooks, for the length of one call.

    Attributes in ``settings`` are set on copies of its configurations, so that other threads, which may run the module
    at the same time, see none of them. ``linear`` casts the weights of linear layers once: autocast would do so again
    in every forward pass, with the same results.
    """
    return _Twins(linear, settings).of(module)


class _Twins:
    """Copies by the identity of what they are copied from, so that what was shared is shared again."""

    def __init__(self, linear: torch.dtype | None, settings: dict[str, Any]) -> None:
        from transformers.pytorch_utils import Conv1D

        self._linear = linear
        self._settings = settings
        self._cast: tuple[type[nn.Module], ...] = (nn.Linear, Conv1D)
        self._made: dict[int, Any] = {}

    def of(self, module: nn.Module) -> nn.Module:
        if id(module) not in self._made:
            self._made[id(module)] = self._copy(module)
        made: nn.Module = self._made[id(module)]
        return made

    def _copy(self, module: nn.Module) -> nn.Module:
        twin = object.__new__(type(module))
        inside = twin.__dict__
        inside.update(module.__dict__)
        inside["_modules"] = {name: child and self.of(child) for name, child in module._modules.items()}
        if self._settings and hasattr(inside.get("config"), "_attn_implementation"):
            inside["config"] = self._configured(inside["config"])
        if self._linear is not None and isinstance(module, self._cast):
            inside["_parameters"] = {name: self._lowered(tensor) for name, tensor in module._parameters.items()}
        return twin

    def _configured(self, config: Any) -> Any:
        if id(config) not in self._made:
            made = self._made[id(config)] = copy.copy(config)
            # Past the configuration's own setters, which would reach into the parts that the copy shares.
            made.__dict__.update(self._settings)
        return self._made[id(config)]

    def _lowered(self, tensor: nn.Parameter | None) -> torch.Tensor | None:
        # Only what autocast would cast; tensors of other kinds (quantised, sharded) have a way of their own.
        plain = type(tensor) is nn.Parameter and tensor.dtype == torch.float32
        return tensor.detach().to(self._linear) if plain and tensor is not None else tensor
