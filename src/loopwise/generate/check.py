"""How an architecture can be sampled, found out in a few tiny forward passes before anything depends on it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from loopwise.errors import ModelError
from loopwise.generate.padded import PaddedRows
from loopwise.models.policy import Policy
from loopwise.runtime import Runtime

TOLERANCE = 1e-2
LENGTH = 6  # tokens the check reads at most in a row
_MOST_TOKENS = 3
_OWNERS = (0, 1, 0, 1, 1)
_REASONS: weakref.WeakKeyDictionary[Any, str | None] = weakref.WeakKeyDictionary()
_REASONS_OF_KINDS: dict[tuple[type, str], str | None] = {}


class Rows(Protocol):
    """Rows that grow token by token; ``logits`` ``[S, V]`` predict each row's next token."""

    logits: torch.Tensor

    def keep(self, kept: np.ndarray) -> None:
        """Go on with the rows ``kept`` ``[S]``, in that order."""

    def read(self, tokens: torch.Tensor) -> None:
        """Read one token more of each row, ``[S]``."""


Open = Callable[[Sequence[Sequence[int]], Sequence[int]], Rows]


def check_sampling(policy: Policy, runtime: Runtime) -> None:
    """Raise ModelError where decoding with a cache does not give the logits of plain forward passes.

    State-space and recurrent models keep another memory than keys and values: some raise, some go on with garbage.
    """
    if policy.weights is None or (policy.weights.context_length or LENGTH) < LENGTH:
        return
    module: Any = policy.weights.module
    device = runtime.torch_device
    fault = _fault(module, device, lambda prompts, owners: PaddedRows(module, prompts, owners, device))
    if fault is not None:
        raise ModelError(
            f"model_type {module.config.model_type}: loopwise cannot sample this architecture yet ({fault}). Take a "
            "decoder whose every layer is attention, as in GPT-2, Llama, Qwen3 or Mistral; "
            "`loopwise tune` without rewards trains this one too."
        )


def why_not_shared_prefix(module: Any) -> str | None:
    """Why groups of this module's samples cannot share their prompt's keys and values; None where they can.

    Tried once for each kind of module (its class and configuration), so that all policies of a run get one answer.
    """
    if module not in _REASONS:
        kind = type(module), str(module.config.to_json_string(use_diff=False))
        if kind not in _REASONS_OF_KINDS:
            _REASONS_OF_KINDS[kind] = _reason(module)
        _REASONS[module] = _REASONS_OF_KINDS[kind]
    return _REASONS[module]


def _reason(module: Any) -> str | None:
    from loopwise.generate.prefix import SharedRows

    if hasattr(module, "make_cache"):
        return "it keeps a memory of its own kind, not keys and values"
    length = getattr(module.config, "max_position_embeddings", None)
    if isinstance(length, int) and length < LENGTH:
        return f"its context of {length} tokens is too short to try it"
    device = next(module.parameters()).device
    for share in (True, False):

        def shared(prompts: Sequence[Sequence[int]], owners: Sequence[int], share: bool = share) -> Rows:
            return SharedRows(module, prompts, owners, _MOST_TOKENS, device, share=share)

        fault = _fault(module, device, shared)
        if fault is not None:
            return f"tried on a few tokens: {fault}"
    return None


@torch.inference_mode()
def _fault(module: Any, device: torch.device, start: Open) -> str | None:
    """What goes wrong with rows as ``start`` opens them; None where their logits are those of plain forward passes."""
    try:
        with torch.autocast(device.type, enabled=False):
            cached, plain = _logits(module, device, start)
        # Models fresh from their initialisation have logits next to 0, among which any error would look small.
        allowed = TOLERANCE * min(1.0, float(plain.abs().max()))
        gap = float((cached - plain).abs().max())
        return None if gap <= allowed else f"its logits with a cache are {gap:.2g} away from those without"
    except Exception as error:  # whatever an architecture of anybody's raises when its cache is no key-value cache
        return str(error).strip().partition("\n")[0] or type(error).__name__


def _logits(module: Any, device: torch.device, start: Open) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``[10, V]`` of rows that begin, read a token, leave and change places, and read another: with a cache,
    and without.
    """
    size = module.get_input_embeddings().weight.shape[0]
    ids = [size * place // 12 for place in range(1, 12)]
    prompts = [ids[:2], ids[2:6]]
    texts = [[*prompts[owner], ids[6 + row]] for row, owner in enumerate(_OWNERS)]
    kept = np.array([3, 1, 2])
    rows = start(prompts, _OWNERS)
    found, whole = [rows.logits[:2].clone()], [*prompts]
    rows.read(torch.tensor([text[-1] for text in texts], device=device))
    found.append(rows.logits)
    whole += texts
    rows.keep(kept)
    rows.read(torch.tensor([ids[0], ids[4], ids[8]], device=device))
    found.append(rows.logits)
    whole += [[*texts[row], token] for row, token in zip(kept, (ids[0], ids[4], ids[8]), strict=True)]
    # Padding on the right, which a causal model cannot see.
    read = torch.tensor([[*row, *[ids[0]] * (LENGTH - len(row))] for row in whole], device=device)
    ends = torch.tensor([len(row) - 1 for row in whole], device=device)
    plain = module(input_ids=read, use_cache=False).logits[torch.arange(len(whole), device=device), ends]
    return torch.cat(found).float(), plain.float()
