"""Rows to train on, and the pool of samples that were worth keeping."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loopwise.config.methods import SFTConfig
from loopwise.errors import DataError
from loopwise.models.chat import end_of_turn_id
from loopwise.models.logps import TokenRow
from loopwise.models.policy import Policy
from loopwise.models.tokens import encode_rows
from loopwise.types import Completion, Problem, Sample


@dataclass(frozen=True)
class Encoding:
    """What became of labelled rows on their way to tokens: counts of rows, then of tokens.

    ``places`` are the given rows that are trained on, in order, ``rows`` in number; of them, ``truncated`` lost the end
    of their completion, and ``without_end_of_text`` end in another token than end-of-text or end of turn. ``dropped``
    are the others. ``tokens`` counts prompts too, ``trained_tokens`` what is learned.
    """

    places: tuple[int, ...]
    rows: int
    dropped: int
    truncated: int
    without_end_of_text: int
    tokens: int
    trained_tokens: int


def encode_labelled(
    policy: Policy,
    problems: Sequence[Problem],
    completions: Sequence[Completion],
    config: SFTConfig,
    name: str = "labelled",
) -> tuple[tuple[TokenRow, ...], Encoding]:
    """``encode_fitting_rows``; a DataError too, where there are rows and none is left."""
    rows, encoding = encode_fitting_rows(policy, problems, completions, config, name)
    if problems and not rows:
        limit = row_limit(policy, config)
        over = f"is over the limit of {limit} tokens or " if limit is not None else ""
        mend = "Fill them in" if limit is None else f"Shorten them, or {_longer(config, limit)}"
        raise DataError(
            f"{name} rows: none of {len(problems)} is left, because each {over}has an empty completion. {mend}."
        )
    return rows, encoding


def encode_fitting_rows(
    policy: Policy,
    problems: Sequence[Problem],
    completions: Sequence[Completion],
    config: SFTConfig,
    name: str = "labelled",
) -> tuple[tuple[TokenRow, ...], Encoding]:
    """Tokenised prompts and completions, in order, and what became of them.

    Rows over ``config.max_length`` or the model's context are an error, left out, or lose the end of their completion,
    as ``config.too_long`` says; a row that would have nothing left to learn is left out. ``config.end_of_text`` closes
    completions, and that is learned. ``name`` is what errors call the rows. Raises DataError naming the first row that
    is too long, and what ``encode_rows`` does.
    """
    limit = row_limit(policy, config)
    rows: list[TokenRow] = []
    places: list[int] = []
    truncated = 0
    encoded = encode_rows(policy, problems, completions, end_of_text=config.end_of_text)
    for place, (problem, row) in enumerate(zip(problems, encoded, strict=True)):
        too_long = limit is not None and row.total_tokens > limit
        if too_long and config.too_long == "error":
            where = problem.place or f"{name} row {problem.id}"
            raise DataError(
                f"{where}: {row.total_tokens} tokens, over the limit of {limit}. Shorten it, "
                f"{_longer(config, limit)}, or leave such rows out with update.too_long: drop."
            )
        if too_long and config.too_long == "drop":
            continue
        fitted = _truncate(row, limit) if too_long and limit is not None else row
        if fitted.trained_tokens:
            rows.append(fitted)
            places.append(place)
            truncated += too_long
    ends = {*policy.end_ids, end_of_turn_id(policy)}
    return tuple(rows), Encoding(
        places=tuple(places),
        rows=len(rows),
        dropped=len(problems) - len(rows),
        truncated=truncated,
        without_end_of_text=sum(row.token_ids[-1] not in ends for row in rows),
        tokens=sum(row.total_tokens for row in rows),
        trained_tokens=sum(row.trained_tokens for row in rows),
    )


def labelled_rows(
    policy: Policy, problems: Sequence[Problem], completions: Sequence[Completion], max_length: int | None
) -> tuple[TokenRow, ...]:
    """Tokenised prompts and completions, one for each problem; end-of-text is trained on.

    Raises DataError naming the first row longer than ``max_length`` or the model's context.
    """
    return encode_labelled(policy, problems, completions, SFTConfig(max_length=max_length))[0]


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
        self._began_with = len(self)

    @property
    def new(self) -> int:
        """How many rows were added to those it began with."""
        return len(self) - self._began_with

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
            "loss_mask": np.array([bit for row in self for bit in row.mask], dtype=np.uint8),
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


def row_limit(policy: Policy, config: SFTConfig) -> int | None:
    """The most tokens a row may have: ``config.max_length`` or the model's context; None where there is no limit."""
    context = policy.weights.context_length if policy.weights else None
    return min((limit for limit in (config.max_length, context) if limit), default=None)


def _longer(config: SFTConfig, limit: int | None) -> str:
    return "raise update.max_length" if limit == config.max_length else "take a model with a longer context"


def _truncate(row: TokenRow, limit: int) -> TokenRow:
    """The row without what does not fit into ``limit`` tokens, and without what nothing is learned from at its end."""
    kept = max(limit - len(row.prompt_ids), 0)
    if row.loss_mask is not None:
        kept = max((position + 1 for position, bit in enumerate(row.loss_mask[:kept]) if bit), default=0)
    return TokenRow(row.prompt_ids, row.token_ids[:kept], None if row.loss_mask is None else row.loss_mask[:kept])
