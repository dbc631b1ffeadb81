"""Rows to train on, and the pool of samples that were worth keeping."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from loopwise.errors import DataError
from loopwise.models.logps import TokenRow
from loopwise.models.policy import Policy
from loopwise.models.tokens import encode_completions, encode_prompts
from loopwise.types import Problem, Sample


def labelled_rows(
    policy: Policy, problems: Sequence[Problem], completions: Sequence[str], max_length: int | None
) -> tuple[TokenRow, ...]:
    """Tokenised prompt and completion pairs; end-of-text is trained on.

    Raises DataError naming the first row longer than ``max_length`` or the model's context.
    """
    limits = [limit for limit in (max_length, policy.weights.context_length if policy.weights else None) if limit]
    pairs = zip(encode_prompts(policy, problems), encode_completions(policy, completions), strict=True)
    rows = tuple(TokenRow(tuple(prompt), tuple(completion)) for prompt, completion in pairs)
    for problem, row in zip(problems, rows, strict=True):
        if limits and row.total_tokens > min(limits):
            raise DataError(
                f"labelled row {problem.id}: {row.total_tokens} tokens, over the limit of {min(limits)}. "
                "Shorten it, raise update.max_length, or take a model with a longer context."
            )
    return rows


def sample_rows(policy: Policy, samples: Sequence[Sample], problems: Sequence[Problem]) -> list[TokenRow]:
    """What a sample trains on: the ids it was drawn with, or its text tokenised where the generator gave no ids."""
    rows: list[TokenRow] = []
    for sample, problem in zip(samples, problems, strict=True):
        if sample.token_ids:
            rows.append(TokenRow(sample.prompt_ids, sample.token_ids, sample.loss_mask))
        else:
            rows.extend(labelled_rows(policy, [problem], [sample.text], None))
    return rows


class Pool:
    """Distinct rows in the order they were first kept, at most ``per_prompt`` of one prompt where that is given."""

    def __init__(self, rows: Iterable[TokenRow] = (), per_prompt: int | None = None) -> None:
        self.per_prompt = per_prompt
        self._rows: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
        self._counts: Counter[tuple[int, ...]] = Counter()
        self._order: list[TokenRow] = []
        for row in rows:
            self.add(row)

    def add(self, row: TokenRow) -> bool:
        """Add a row; False if the same prompt and tokens are there already, or as many of the prompt as may be."""
        prompt = tuple(row.prompt_ids)
        if row in self or (self.per_prompt is not None and self._counts[prompt] >= self.per_prompt):
            return False
        self._rows.add((prompt, tuple(row.token_ids)))
        self._counts[prompt] += 1
        self._order.append(row)
        return True

    def __contains__(self, row: TokenRow) -> bool:
        return (tuple(row.prompt_ids), tuple(row.token_ids)) in self._rows

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, place: int) -> TokenRow:
        return self._order[place]

    def __iter__(self) -> Iterator[TokenRow]:
        return iter(self._order)

    def state(self) -> dict[str, Any]:
        """The pool as flat int32 arrays."""
        return {
            "prompt_lengths": np.array([len(row.prompt_ids) for row in self], dtype=np.int32),
            "token_lengths": np.array([len(row.token_ids) for row in self], dtype=np.int32),
            "prompt_ids": np.array([token for row in self for token in row.prompt_ids], dtype=np.int32),
            "token_ids": np.array([token for row in self for token in row.token_ids], dtype=np.int32),
            "loss_mask": np.array([bit for row in self for bit in _mask(row)], dtype=np.uint8),
        }

    @staticmethod
    def from_state(state: Any, per_prompt: int | None = None) -> Pool:
        """The pool that ``state`` was taken of, in its order; ``per_prompt`` is the cap it goes on with."""
        prompts = np.split(state["prompt_ids"], np.cumsum(state["prompt_lengths"])[:-1])
        ends = np.cumsum(state["token_lengths"])[:-1]
        tokens, masks = np.split(state["token_ids"], ends), np.split(state["loss_mask"], ends)
        if not len(state["token_lengths"]):
            return Pool(per_prompt=per_prompt)
        rows = (
            TokenRow(tuple(prompt.tolist()), tuple(token.tolist()), tuple(mask.tolist()))
            for prompt, token, mask in zip(prompts, tokens, masks, strict=True)
        )
        return Pool(rows, per_prompt)


def _mask(row: TokenRow) -> Sequence[int]:
    return row.loss_mask if row.loss_mask is not None else [1] * len(row.token_ids)
