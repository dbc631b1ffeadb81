"""Perplexity and bits per byte of plain text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from loopwise.data.encoding import encode_documents
from loopwise.data.sources import Document
from loopwise.data.windows import HeldOut, Windows, evaluation_windows
from loopwise.errors import ModelError
from loopwise.models.logps import window_logps
from loopwise.models.policy import Policy
from loopwise.runtime import Runtime

TOKENS_AT_ONCE = 16_384
UNLIMITED = 1024
"""Tokens a window of a model without a limit."""


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text: summed ``nats`` over ``tokens`` predictions of ``bytes`` bytes of UTF-8."""

    nats: float
    tokens: int
    bytes: int
    documents: int

    @property
    def nats_per_token(self) -> float:
        """Cross-entropy."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """Its exponential; depends on the tokenizer."""
        return math.exp(min(700.0, self.nats_per_token))

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers."""
        return self.nats / math.log(2) / self.bytes


def text_perplexity(
    policy: Policy, documents: Sequence[str], runtime: Runtime, window: int | None = None
) -> Perplexity:
    """Perplexity of documents read in windows that do not overlap, ``window`` tokens each (default: the context).

    Raises ModelError for a policy without weights or a window over its context, DataError where there is no text.
    """
    if policy.weights is None:
        raise ModelError("a policy without weights gives no probabilities. Name a model folder.")
    limit = policy.weights.context_length
    if window is not None and limit is not None and window > limit:
        raise ModelError(f"windows of {window} tokens are over the model's context of {limit}. Choose at most that.")
    framed = encode_documents(policy, [Document(text, f"document {place}") for place, text in enumerate(documents, 1)])
    held_out = evaluation_windows(framed, window or policy.weights.window or UNLIMITED)
    nats = -float(window_sums(policy, held_out, runtime).sum())
    return Perplexity(nats, held_out.tokens, sum(len(text.encode()) for text in documents), len(documents))


def window_sums(
    policy: Policy, held_out: HeldOut, runtime: Runtime, progress: Callable[[int, int], None] | None = None
) -> np.ndarray:
    """Summed log-probability (nats) of each held-out window, in order: float64 ``[W]``."""
    assert policy.weights is not None
    module = policy.weights.module
    total = -(-held_out.tokens // held_out.window)
    sums: list[np.ndarray] = []
    with torch.inference_mode(), runtime.autocast():
        for windows, _ in held_out.batches(max(1, TOKENS_AT_ONCE // held_out.window)):
            sums.append(_sums(module, windows))
            if progress is not None:
                progress(sum(map(len, sums)), total)
    return np.concatenate(sums)


def _sums(module: torch.nn.Module, windows: Windows) -> np.ndarray:
    return np.asarray(window_logps(module, windows).double().sum(-1).cpu().numpy())
