"""The texts from which a judge's body learns to read, before it learns to judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from loopwise.config.judge_blocks import MaskedConfig
from loopwise.models.judges import Reading, encode_readings
from loopwise.models.policy import Policy
from loopwise.models.trees import evaluating
from loopwise.runtime import Runtime
from loopwise.update.judging import units_of
from loopwise.update.masked import MaskedReading, MaskedText, Vocabulary, mask_text, masked_logits

TOKENS_PER_PASS = 8192


@dataclass(frozen=True)
class MaskedTexts:
    """A base that fills in masked tokens, its training texts, and held-out ones, masked once and for all."""

    base: Policy
    texts: tuple[tuple[int, ...], ...]
    held_out: tuple[MaskedText, ...]
    runtime: Runtime

    @staticmethod
    def of(
        base: Policy,
        train: Sequence[Reading],
        held_out: Sequence[Reading],
        most: int | None,
        share: float,
        runtime: Runtime,
    ) -> MaskedTexts:
        """Encode the texts, each different one once, without those of more than ``most`` tokens."""
        vocabulary = Vocabulary.of(base.tokenizer)

        def encoded(readings: Sequence[Reading]) -> list[tuple[int, ...]]:
            rows = encode_readings(base, list(dict.fromkeys(readings)))
            return [row for row in rows if most is None or len(row) <= most]

        shown = [
            mask_text(row, vocabulary, share, runtime.seed, "held out", place)
            for place, row in enumerate(encoded(held_out))
        ]
        return MaskedTexts(base, tuple(encoded(train)), tuple(text for text in shown if text.places), runtime)

    def update(self, config: MaskedConfig) -> MaskedReading:
        """How the training texts are learned."""
        return MaskedReading(config, self.texts, Vocabulary.of(self.base.tokenizer))

    def score(self, policy: Policy, split: str) -> np.ndarray:
        """Mean log-probability (nats) of the masked tokens of each held-out text: float64 ``[N]``."""
        assert policy.weights is not None
        module = policy.weights.module
        scores = np.zeros(len(self.held_out))
        with torch.no_grad(), evaluating(module), self.runtime.autocast():
            for unit in units_of([text.shown for text in self.held_out], TOKENS_PER_PASS):
                part = [self.held_out[place] for place in unit]
                logits, targets = masked_logits(module, part)
                logps = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0].double().cpu()
                counts = np.array([len(text.places) for text in part], dtype=np.int64)
                scores[unit] = np.add.reduceat(logps.numpy(), np.cumsum(counts) - counts) / counts
        return scores
