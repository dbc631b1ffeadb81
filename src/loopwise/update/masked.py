"""Learning to read: tokens of a text are masked and predicted from the rest of it (BERT, Devlin et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from loopwise.config.judge_blocks import MaskedConfig
from loopwise.data.batches import batch_indices
from loopwise.models.judges import TokenIds, padded
from loopwise.runtime import seed_key
from loopwise.types import Context, Problem, Rollout, Updated
from loopwise.update.fitting import Batch, train_round
from loopwise.update.judging import units_of
from loopwise.update.losses import label_loss

SHOWN_MASKED, SHOWN_RANDOM = 0.8, 0.1


@dataclass(frozen=True)
class Vocabulary:
    """What masking needs to know of a tokenizer: its mask token, its ordinary ones, and its marks, never masked."""

    mask: int
    ordinary: np.ndarray
    marks: frozenset[int]

    @staticmethod
    def of(tokenizer: Any) -> Vocabulary:
        """The vocabulary of a tokenizer that has a mask token."""
        marks = frozenset(tokenizer.all_special_ids)
        ordinary = sorted(set(tokenizer.get_vocab().values()) - marks)
        return Vocabulary(int(tokenizer.mask_token_id), np.array(ordinary), marks)


@dataclass(frozen=True)
class MaskedText:
    """A text as it is shown, ``shown`` ``[T]``; ``places`` are the tokens to predict, and ``targets`` those."""

    shown: tuple[int, ...]
    places: tuple[int, ...]
    targets: tuple[int, ...]


def mask_text(text: TokenIds, vocabulary: Vocabulary, share: float, *key: object) -> MaskedText:
    """Choose ``share`` of a text's tokens (one at least) to be predicted: a pure function of text and ``key``.

    Of those, 80% are shown as the mask token, 10% as a random one and 10% as they are (Devlin et al. 2019, section
    3.1), so that the model cannot go by the mask token, which no text has later. Left out: whole-word masking.
    """
    free = [place for place, token in enumerate(text) if token not in vocabulary.marks]
    # Raw bits, whose stream NumPy guarantees across versions.
    bits = np.random.Philox(key=seed_key("masked", *key)).random_raw(3 * len(free)).reshape(3, len(free))
    order, kinds, others = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    shown = list(text)
    chosen = np.sort(np.argsort(order, kind="stable")[: max(1, round(share * len(free)))])
    for number in chosen.tolist():
        if kinds[number] < SHOWN_MASKED:
            shown[free[number]] = vocabulary.mask
        elif kinds[number] < SHOWN_MASKED + SHOWN_RANDOM:
            shown[free[number]] = int(vocabulary.ordinary[int(others[number] * len(vocabulary.ordinary))])
    places = [free[number] for number in chosen.tolist()]
    return MaskedText(tuple(shown), tuple(places), tuple(text[place] for place in places))


def masked_logits(judge: nn.Module, texts: Sequence[MaskedText]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``[N, V]`` of the N tokens to predict of some texts, text by text, and those tokens ``[N]``."""
    ids, mask = padded(judge, [text.shown for text in texts])
    predicting = torch.zeros_like(mask, dtype=torch.bool)
    for row, text in enumerate(texts):
        predicting[row, list(text.places)] = True
    targets = torch.tensor([target for text in texts for target in text.targets], device=ids.device)
    return judge(ids, mask, predicting), targets


@dataclass(frozen=True)
class MaskedReading:
    """``config.steps`` optimizer steps a round on ``config.batch_size`` texts each, masked anew every time.

    ``rounds`` is the run's number of rounds: the schedule spans them all.
    """

    config: MaskedConfig
    texts: tuple[tuple[int, ...], ...]
    vocabulary: Vocabulary
    needs = frozenset({"weights"})

    def __call__(
        self, policy: Any, state: Any, problems: Sequence[Problem], rollout: Rollout, context: Context
    ) -> Updated:
        return train_round(policy, state, context, self.config, self.config.rounds, self.batch)

    def batch(self, seed: int, step: int) -> Batch[Sequence[MaskedText]]:
        """The texts of optimizer step ``step`` of the run; the loss is the mean over their masked tokens, in nats."""
        config = self.config
        chosen = batch_indices(len(self.texts), config.batch_size, seed, step)
        texts = [
            mask_text(self.texts[place], self.vocabulary, config.share, seed, step, row)
            for row, place in enumerate(chosen)
        ]
        count = max(1, sum(len(text.places) for text in texts))

        def loss(module: nn.Module, part: Sequence[MaskedText]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            logits, targets = masked_logits(module, part)
            right = (logits.argmax(-1) == targets).sum()
            return label_loss(logits, targets).sum() / count, {"accuracy": right / count}

        units = units_of([text.shown for text in texts], config.tokens_per_pass)
        return Batch([[texts[place] for place in unit] for unit in units], loss, sum(len(text.shown) for text in texts))
