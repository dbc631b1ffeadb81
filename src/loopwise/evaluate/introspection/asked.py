"""A model asked for one word: how likely it finds each of a few words as the next, without generating any."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from loopwise.errors import ConfigError, ModelError
from loopwise.models.folders import load_policy
from loopwise.models.heads import logits_of
from loopwise.models.logps import LOGITS_AT_ONCE, TokenRow, read_states
from loopwise.models.policy import Policy
from loopwise.models.tokens import encode_prompts, encode_texts
from loopwise.models.trees import vocabulary_size
from loopwise.runtime import Runtime
from loopwise.types import Problem, Prompt, PromptState

TOKENS_AT_ONCE = 4_096
"""Padded tokens of a forward pass. With more, what its layers hand on leaves a processor's caches, and is slower."""
ANCHOR = ":"


@dataclass(frozen=True)
class Asked:
    """Whom ``source`` asks: the policy it is told of, or the model in ``folder``, which stays as it is."""

    source: str
    runtime: Runtime
    folder: Path | None = None
    policy: Policy | None = None

    def told(self, policy: Policy) -> Asked:
        """The same, asking this policy where it asks the policy at all."""
        return self if self.folder is not None else replace(self, policy=policy)

    @cached_property
    def model(self) -> Policy:
        """Whose probabilities are read, without a prompt state: that is for answers. Raises ConfigError, ModelError."""
        policy = self.policy if self.folder is None else load_policy(self.folder, self.runtime)
        if policy is None:
            raise ConfigError(f'source "{self.source}": it asks the policy, and was told of none. Call asking(policy).')
        if policy.weights is None:
            raise ModelError(
                f'source "{self.source}": this policy has no weights to read probabilities from. Name another judge '
                "with the option model: path/to/folder."
            )
        return replace(policy, prompt_state=PromptState())

    def questions(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each question: what a user says, where the model has a chat template, or else plain text."""
        chat = bool(self.model.tokenizer.chat_template)
        prompts: list[Prompt] = [({"role": "user", "content": text},) if chat else text for text in texts]
        return encode_prompts(self.model, [Problem(f"question {n}", prompt) for n, prompt in enumerate(prompts)])

    def too_long(self, question: Sequence[int]) -> str | None:
        """Why a question cannot be asked, or None."""
        limit = self.model.weights.context_length if self.model.weights else None
        if limit is None or len(question) <= limit:
            return None
        return f"the question about it has {len(question)} tokens, over the context of {limit} of the model asked"

    async def log_probabilities(self, questions: Sequence[Sequence[Sequence[int]]], words: Sequence[str]) -> np.ndarray:
        """log p of each of ``words`` as the next token after each question: float64 ``[Q, W]``, in nats.

        ``questions`` come in groups, whose common beginning is read once where the model allows it. A word may be
        spelled with a space before it. Raises ModelError for a word that is no single token.
        """
        spellings = [self._spellings(word) for word in words]
        weights = self.model.weights
        assert weights is not None
        found = np.zeros((sum(map(len, questions)), len(words)))
        for places, rows in _batches(questions, vocabulary_size(weights.module)):
            with torch.inference_mode(), self.runtime.autocast():
                states = read_states(weights.module, rows)
                logits = logits_of(weights.module, states.values[states.mask > 0])
            logps = logits.float().log_softmax(-1)
            for column, tokens in enumerate(spellings):
                found[places, column] = logps[:, tokens].double().logsumexp(-1).cpu().numpy()
            # Where cancellation comes in: without it, Ctrl-C would wait for the last batch.
            await asyncio.sleep(0)
        return found

    def _spellings(self, word: str) -> list[int]:
        """The tokens that spell a word, by itself or as it goes on after other text, with a space before it or not."""
        forms = [word, f" {word}"]
        anchor, *after = encode_texts(self.model, [ANCHOR, *(ANCHOR + form for form in forms)])
        rows = [
            *encode_texts(self.model, forms),
            *(ids[len(anchor) :] for ids in after if ids[: len(anchor)] == anchor),
        ]
        tokens = {ids[0] for ids in rows if len(ids) == 1} - {self.model.tokenizer.unk_token_id}
        if not tokens:
            raise ModelError(
                f'source "{self.source}": "{word}" is no single token of the model asked, so its probability cannot '
                "be read off the next one. Choose words that are, such as letters or digits."
            )
        return sorted(tokens)


def expected(log_probabilities: np.ndarray, values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The mean of ``values`` [W] under ``[Q, W]`` normalised over W, and the probability that W had in all: ``[Q]``."""
    most = log_probabilities.max(axis=1, keepdims=True)
    shares = np.exp(log_probabilities - most)
    total = shares.sum(axis=1)
    return shares @ np.asarray(values) / total, np.exp(most[:, 0] + np.log(total))


def _batches(
    questions: Sequence[Sequence[Sequence[int]]], vocabulary: int
) -> Iterator[tuple[list[int], list[TokenRow]]]:
    """Questions of similar length, groups together: their places in the flat list, and what is read of each."""
    starts = np.cumsum([0, *map(len, questions)])
    order = sorted(range(len(questions)), key=lambda group: max(map(len, questions[group]), default=0))
    places: list[int] = []
    rows: list[TokenRow] = []
    longest = 0
    for group in order:
        shared = max(1, _shared(questions[group]))
        for place, ids in enumerate(questions[group], start=int(starts[group])):
            longest = max(longest, len(ids))
            if rows and (longest * (len(rows) + 1) > TOKENS_AT_ONCE or (len(rows) + 1) * vocabulary > LOGITS_AT_ONCE):
                yield places, rows
                places, rows, longest = [], [], len(ids)
            # The last token stands for whichever comes next: only what predicts it is read.
            rest = [*ids[shared:], 0]
            rows.append(TokenRow(ids[:shared], rest, [*[0] * (len(rest) - 1), 1]))
            places.append(place)
    if rows:
        yield places, rows


def _shared(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with."""
    if not rows:
        return 0
    # What the least and the greatest have in common, all between them have too.
    first, last = min(map(tuple, rows)), max(map(tuple, rows))
    return next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
