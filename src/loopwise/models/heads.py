"""Hidden states before a model's output layer, and the logits of some of them."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from loopwise.errors import ConfigError, ModelError
from loopwise.models.trees import Layout, evaluating, why_not_shared

_LARGE = 1000.0
_PLAIN: weakref.WeakKeyDictionary[nn.Module, bool | None] = weakref.WeakKeyDictionary()
"""Whether a model's logits are its output layer's; None where its output layer cannot be told."""
_IN_STEP: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Models whose forward passes are of all ranks together."""


def keep_in_step(module: nn.Module) -> None:
    """From now on, a batch costs the language model in ``module`` as many forward passes whatever its size.

    To be called before its weights are sharded: what is otherwise found out with a first batch, by forward passes of
    this process alone, is found out here. ``module`` may hold no language model; then there is nothing to do.
    """
    for part in module.modules():
        if hasattr(getattr(part, "config", None), "get_text_config") and hasattr(part, "get_output_embeddings"):
            why_not_shared(part)
            _output_is_plain(part)
            _IN_STEP.add(part)
            return


def comes_in_parts(model: nn.Module) -> bool:
    """Whether ``logits_of`` may be called as often as a batch needs; not where every call is one of all ranks."""
    return model not in _IN_STEP or bool(_output_is_plain(model))


def states_before_output(model: nn.Module, layout: Layout, *, required: bool) -> torch.Tensor | None:
    """The states ``[N, H]`` that predict a layout's N tokens. The output layer reads one position and no more.

    None for a model that hides its output layer, or ModelError if they are ``required``.
    """
    if _output_is_plain(model) is None:
        if required:
            raise ModelError(
                f"{type(model).__name__} does not say which of its layers is the output layer: "
                "get_output_embeddings() has to return the layer whose input are the last hidden states."
            )
        return None
    seen: list[torch.Tensor] = []

    def keep(states: torch.Tensor) -> torch.Tensor:
        seen.append(states)
        return states[:, :1]

    with _before_output(model, keep):
        model(**layout.inputs)
    return seen[0].flatten(0, 1)[layout.predicting]


def logits_of(model: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """Logits ``[n, V]`` of hidden states ``[n, H]`` from ``read_states``, as the model's forward pass would give them.

    A model that scales or caps what its output layer gives (Gemma 2, Cohere, Granite) is run on one token, with the
    states in place of that token's: whatever it does to logits, it does to these. Raises ModelError for a model that
    hides its output layer, and ConfigError for such a model in shards.
    """
    plain = _output_is_plain(model)
    if plain is None:
        raise ModelError(f"{type(model).__name__} does not say which of its layers is the output layer.")
    if not comes_in_parts(model):
        raise ConfigError(
            f'key "runtime.shard": {type(model).__name__} scales or caps its logits, and those of a few tokens take a '
            "forward pass of their own, which ranks with shards cannot make at different times. Leave it out, or "
            "choose a method without a value head or a teacher."
        )
    return _output(model)(states) if plain else _transplanted(model, states)


def _transplanted(model: nn.Module, states: torch.Tensor) -> torch.Tensor:
    token = torch.zeros((1, 1), dtype=torch.long, device=states.device)
    with _before_output(model, lambda _: states[None]):
        logits: torch.Tensor = model(input_ids=token, use_cache=False).logits[0]
    return logits


def _output_is_plain(model: nn.Module) -> bool | None:
    """Found out once for each module, on two tokens."""
    if model not in _PLAIN:
        _PLAIN[model] = _compare(model)
    return _PLAIN[model]


def _compare(model: nn.Module) -> bool | None:
    output = _output(model)
    if output is None:
        return None
    seen: list[torch.Tensor] = []

    def keep(states: torch.Tensor) -> torch.Tensor:
        seen.append(states)
        return states

    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad(), torch.autocast(device.type, enabled=False):
        with _before_output(model, keep):
            logits = model(input_ids=torch.tensor([[0, 1]], device=device), use_cache=False).logits[0]
        if len(seen) != 1 or seen[0].shape[:2] != (1, 2) or not _equal(_transplanted(model, seen[0][0]), logits):
            return None
        # Capped logits differ from others only where they are large.
        large = seen[0][0] * (_LARGE / logits.abs().max().clamp(min=1e-6))
        return _equal(output(large), _transplanted(model, large))


def _equal(found: torch.Tensor, expected: torch.Tensor) -> bool:
    tolerance = 0.01 if expected.dtype.itemsize == 2 else 1e-5
    return found.shape == expected.shape and bool((found - expected).abs().max() <= tolerance * expected.abs().max())


@contextlib.contextmanager
def _before_output(model: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Replace what the output layer reads, for the calling thread alone."""
    caller = threading.get_ident()

    def hook(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return (change(arguments[0]), *arguments[1:]) if threading.get_ident() == caller else None

    handle = _output(model).register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _output(model: Any) -> Any:
    return model.get_output_embeddings()
