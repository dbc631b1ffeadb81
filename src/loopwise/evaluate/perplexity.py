"""Perplexity and bits per byte of plain text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

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
LOGITS_AT_ONCE = 2**28
"""Logits that a batch of windows makes at most, each token one for every entry of the vocabulary: 1 GiB of fp32."""
UNLIMITED = 1024
"""Tokens a window of a model without a limit."""
PROBED = 4  # tokens of each document that the probe for leaks reads
LEAK = 1e-3  # share of what one document does to the next without restarts that is taken for none at all
ROUNDING = 1e-5


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text: summed ``nats`` over ``tokens`` predictions of ``bytes`` bytes of UTF-8.

    ``window_nats`` ``[W]`` are those of each window of ``window`` tokens, where they were kept.
    """

    nats: float
    tokens: int
    bytes: int
    documents: int
    window: int = 0
    window_nats: np.ndarray | None = field(default=None, compare=False, repr=False)

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
    """Perplexity of documents read in windows that do not overlap, ``window`` tokens each (default: the context, or as
    much of it as ``tokens_at_once`` allows).

    A model that would see from one document into the next reads each in windows of its own.
    Raises ModelError for a policy without weights or a window over its context, DataError where there is no text.
    """
    if policy.weights is None:
        raise ModelError("a policy without weights gives no probabilities. Name a model folder.")
    limit = policy.weights.context_length
    if window is not None and limit is not None and window > limit:
        raise ModelError(f"windows of {window} tokens are over the model's context of {limit}. Choose at most that.")
    framed = encode_documents(policy, [Document(text, f"document {place}") for place, text in enumerate(documents, 1)])
    window = window or min(policy.weights.window or UNLIMITED, tokens_at_once(policy))
    together = evaluation_windows(framed, window)
    parts = [together]
    if together.documents > 1 and not keeps_apart(policy):
        parts = [evaluation_windows([document], window) for document in framed if len(document) > 1]
    nats = -np.concatenate([window_sums(policy, part, runtime) for part in parts])
    size = sum(len(text.encode()) for text in documents)
    return Perplexity(float(nats.sum()), together.tokens, size, len(documents), window, nats)


def tokens_at_once(policy: Policy) -> int:
    """Tokens a forward pass may read when all their logits are kept: fewer, the larger the vocabulary."""
    assert policy.weights is not None
    module: Any = policy.weights.module
    vocabulary = int(module.get_input_embeddings().weight.shape[0])
    return max(1, min(TOKENS_AT_ONCE, LOGITS_AT_ONCE // vocabulary))


@torch.inference_mode()
def keeps_apart(policy: Policy) -> bool:
    """Whether positions that begin again keep packed documents from seeing one another in this architecture.

    Found out by changing the first of two documents, which must leave the log-probabilities of the second as they are.
    Architectures that ignore positions, and those whose memory is no attention, go on across such a place.
    """
    assert policy.weights is not None
    module: Any = policy.weights.module
    size = module.get_input_embeddings().weight.shape[0]
    length = max(1, min(PROBED, (policy.weights.context_length or 2 * PROBED) // 2))
    first, other, second = (np.arange(length * part, length * (part + 1)) * size // (3 * length) for part in range(3))
    rows = np.stack([np.concatenate([first, second]), np.concatenate([other, second])])
    positions = np.broadcast_to(np.tile(np.arange(length), 2), rows.shape).copy()
    windows = Windows(rows, np.concatenate([rows[:, 1:], rows[:, -1:]], axis=1), positions)
    try:
        packed, running_on = (
            window_logps(module, probe)[:, length:] for probe in (windows, replace(windows, position_ids=None))
        )
    except Exception:  # whatever an architecture of anybody's raises when it is given positions
        return False
    moved, at_most = (float((logps[0] - logps[1]).abs().max()) for logps in (packed, running_on))
    return moved <= max(LEAK * at_most, ROUNDING)


def window_sums(
    policy: Policy, held_out: HeldOut, runtime: Runtime, progress: Callable[[int, int], None] | None = None
) -> np.ndarray:
    """Summed log-probability (nats) of each held-out window, in order: float64 ``[W]``."""
    assert policy.weights is not None
    module = policy.weights.module
    total = -(-held_out.tokens // held_out.window)
    sums: list[np.ndarray] = []
    with torch.inference_mode(), runtime.autocast():
        for windows, _ in held_out.batches(max(1, tokens_at_once(policy) // held_out.window)):
            sums.append(_sums(module, windows))
            if progress is not None:
                progress(sum(map(len, sums)), total)
    return np.concatenate(sums)


def _sums(module: torch.nn.Module, windows: Windows) -> np.ndarray:
    return np.asarray(window_logps(module, windows).double().sum(-1).cpu().numpy())
