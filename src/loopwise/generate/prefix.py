"""Decoding groups that share their prompt: its keys and values are read and kept once for all rows of a group.

An attention function of ours, named to transformers' attention interface, scores all queries of a group against the
prompt in one product and each row against its own tokens, with one softmax over both (as in Hydragen, Juravsky et al.
2024). Keys and values lie in memory that is taken ahead, and a row that leaves is replaced by the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function

from loopwise.errors import ModelError
from loopwise.generate.padded import left_padded
from loopwise.generate.prefix_cache import PrefixCache
from loopwise.generate.twin import twin_of
from loopwise.models.logps import last_logits

ATTENTION = "loopwise_shared_prefix"
SHARED_FROM = 24
"""Tokens of the longest prompt from which sharing pays. Rows keep shorter ones themselves, which takes fewer steps."""
PREFILL_TOKENS = 2**11
"""Prompt tokens of one forward pass, at most (a longer prompt goes alone)."""
_PASSED_ALONG = frozenset({"position_ids", "use_cache", "cache_position", "position_embeddings"})
"""Arguments that models hand to any attention function, and that change nothing about it."""


class NotShareableError(ModelError):
    """This architecture's attention needs more than ours does."""


class SharedRows:
    """Rows that grow token by token. ``logits`` ``[S, V]`` predict each row's next token; ``shares``: they share.

    ``share`` None: as the lengths of the prompts and the sizes of their groups make it pay.
    """

    def __init__(
        self,
        module: Any,
        prompts: Sequence[Sequence[int]],
        row_prompts: Sequence[int],
        max_tokens: int,
        device: torch.device,
        share: bool | None = None,
    ) -> None:
        """Read each of ``prompts`` once; row i begins with ``prompts[row_prompts[i]]``, ``max_tokens`` follow at most.

        Raises NotShareableError where the module's attention is not plain causal attention.
        """
        width = max(map(len, prompts))
        if share is None:
            share = width >= SHARED_FROM and len(row_prompts) >= 2 * len(prompts)
        self.shares = share
        owners = np.asarray(row_prompts)
        self._cache = PrefixCache([len(prompt) for prompt in prompts], owners, max_tokens, device, share)
        self._module = twin_of(module, _attn_implementation_internal=ATTENTION, loopwise_prefix_cache=self._cache)
        logits = self._read_prompts(prompts, device)
        select = torch.from_numpy(owners).to(device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self.logits, self._positions = logits.index_select(0, select), lengths[select]

    def keep(self, kept: np.ndarray) -> None:
        """Go on with the rows ``kept`` ``[S]``, in that order: as many in their place as can be."""
        self._cache.keep(kept)
        self._positions = self._positions[torch.from_numpy(kept).to(self._positions.device)]

    def read(self, tokens: torch.Tensor) -> None:
        """Read one token more of each row, ``[S]``."""
        self._cache.open_column()
        self.logits = self._forward(tokens[:, None], self._positions[:, None])
        self._positions = self._positions + 1

    def _read_prompts(self, prompts: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
        """Next-token logits ``[P, V]`` of each prompt."""
        logits: list[torch.Tensor] = []
        order: list[int] = []
        for places in passes([len(prompt) for prompt in prompts]):
            ids, positions, real = left_padded([prompts[place] for place in places], device)
            self._cache.open_prompts(places, real)
            logits.append(self._forward(ids, positions))
            order += places
        return torch.cat(logits)[torch.from_numpy(np.argsort(order)).to(device)]

    def _forward(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        output = self._module(
            input_ids=input_ids,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            **last_logits(self._module, 1),
        )
        return output.logits[:, -1]  # type: ignore[no-any-return]


def passes(lengths: Sequence[int]) -> list[list[int]]:
    """Places of the prompts, shortest first, cut into forward passes of at most PREFILL_TOKENS padded tokens."""
    found: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if found and (len(found[-1]) + 1) * lengths[place] <= PREFILL_TOKENS:
            found[-1].append(place)
        else:
            found.append([place])
    return found


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers' interface wants it, over the cache that the twin's configuration holds."""
    more = [name for name, value in options.items() if value is not None and value is not False]
    asked = sorted({*more} - _PASSED_ALONG) + (["dropout"] if dropout else [])
    if asked or attention_mask is not None:
        raise NotShareableError(f"its attention has {' and '.join(asked or ['a mask of its own'])}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return module.config.loopwise_prefix_cache.attend(query, key, value, scale), None


def _no_mask(*, mask_function: Any = None, **_: Any) -> None:
    """No mask: the cache knows who sees what. A model that asks for any but the causal one is found out here."""
    if mask_function is not causal_mask_function:
        raise NotShareableError("some of its layers do not see the whole text before a token")


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, _no_mask)
