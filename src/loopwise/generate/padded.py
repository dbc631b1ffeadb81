"""Decoding with the module's own cache, for any architecture: every row keeps its whole prompt, padded on the left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from loopwise.models.logps import last_logits


class PaddedRows:
    """Rows that grow token by token. ``logits`` ``[S, V]`` predict each row's next token."""

    def __init__(
        self, module: Any, prompts: Sequence[Sequence[int]], row_prompts: Sequence[int], device: torch.device
    ) -> None:
        """Read each of ``prompts`` once; row i begins with ``prompts[row_prompts[i]]``."""
        self._module = module
        self._cache, logits, self._mask, lengths = prefill(module, prompts, device)
        select = torch.tensor(row_prompts, device=device)
        self._cache.batch_select_indices(select)
        self.logits, self._positions = logits[select], lengths[select]
        self._mask = self._mask[select] if self._mask is not None else None

    def keep(self, kept: np.ndarray) -> None:
        """Go on with the rows ``kept`` ``[S]``, in that order."""
        chosen = torch.from_numpy(kept).to(self._positions.device)
        self._cache.batch_select_indices(chosen)
        self._positions = self._positions[chosen]
        self._mask = self._mask[chosen] if self._mask is not None else None

    def read(self, tokens: torch.Tensor) -> None:
        """Read one token more of each row, ``[S]``."""
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        output = self._module(
            input_ids=tokens[:, None],
            attention_mask=self._mask,
            position_ids=self._positions[:, None],
            past_key_values=self._cache,
            use_cache=True,
        )
        self.logits = output.logits[:, -1]
        self._positions = self._positions + 1


def left_padded(
    prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Token ids and positions ``[P, T]`` of prompts padded on the left, and a bool mask ``[P, T]`` of what is there.

    The mask is ``None`` when all have one length.
    """
    lengths = np.array([len(prompt) for prompt in prompts])
    width = int(lengths.max())
    ids = np.zeros((len(prompts), width), dtype=np.int64)
    for row, prompt in zip(ids, prompts, strict=True):
        row[width - len(prompt) :] = prompt
    positions = np.arange(width) - (width - lengths)[:, None]
    real = None if (lengths == width).all() else torch.from_numpy(positions >= 0).to(device)
    return torch.from_numpy(ids).to(device), torch.from_numpy(positions.clip(min=0)).to(device), real


def prefill(
    module: Any, prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[Any, torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Read each prompt once: the cache, next-token logits ``[P, V]``, attention mask ``[P, T]`` and lengths ``[P]``."""
    input_ids, positions, real = left_padded(prompts, device)
    mask = None if real is None else real.long()
    cache = _new_cache(module)
    output = module(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        **last_logits(module, 1),
    )
    return cache, output.logits[:, -1], mask, positions[:, -1] + 1


def _new_cache(module: Any) -> Any:
    """The module's own kind of memory where it makes one, as our LSTM does, and keys and values elsewhere."""
    if hasattr(module, "make_cache"):
        return module.make_cache()
    from transformers import DynamicCache

    return DynamicCache(config=module.config)
