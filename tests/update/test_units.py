"""How batches are cut into forward passes."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwise.models.logps import TokenRow, token_logps
from loopwise.models.policy import Policy
from loopwise.update.units import work_units


def row(prompt: int, length: int, start: int = 3) -> TokenRow:
    return TokenRow((start,) * prompt, tuple(range(4, 4 + length)))


def padded(rows: list[TokenRow], unit: list[int]) -> int:
    return len(unit) * max(rows[place].total_tokens for place in unit)


ROWS = st.lists(st.builds(row, st.integers(1, 4), st.integers(0, 30), st.integers(3, 5)), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(1, 200))
def test_every_row_is_in_one_unit_that_fits(rows: list[TokenRow], limit: int) -> None:
    units = work_units(rows, limit)
    assert sorted(place for unit in units for place in unit) == list(range(len(rows)))
    assert all(len(unit) == 1 or padded(rows, unit) <= limit for unit in units)
    assert units == work_units(list(rows), limit)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(40, 400))
def test_a_prompt_is_in_one_unit_unless_its_rows_alone_are_too_many(rows: list[TokenRow], limit: int) -> None:
    units = work_units(rows, limit)
    for prompt in {row.prompt_ids for row in rows}:
        group = [place for place, row in enumerate(rows) if row.prompt_ids == prompt]
        if padded(rows, group) <= limit:
            assert sum(any(place in group for place in unit) for unit in units) == 1


def test_a_group_too_large_is_split_evenly() -> None:
    assert [len(unit) for unit in work_units([row(5, 5)] * 8, 70)] == [4, 4]


def test_similar_lengths_go_together() -> None:
    rows = [row(1, length, start) for start, length in enumerate((100, 4, 98, 5, 101, 3))]
    assert work_units(rows, 10_000) == [[0, 2, 4], [1, 3, 5]]


def test_a_few_rows_are_padded_rather_than_read_apart() -> None:
    rows = [row(1, length, start) for start, length in enumerate((20, 4, 18, 5))]
    assert work_units(rows, 10_000) == [[0, 1, 2, 3]]


def test_nothing_is_no_work() -> None:
    assert work_units([], 100) == []


def test_ragged_rows_are_padded_little() -> None:
    draw = random.Random(0)
    rows = [row(1, round(16 * 32 ** draw.random()), start) for start in range(64)]
    tokens = sum(row.total_tokens for row in rows)
    spent = sum(padded(rows, unit) for unit in work_units(rows, 4096))
    assert spent < 1.15 * tokens < 0.5 * padded(rows, list(range(64)))


@pytest.mark.parametrize("limit", [20, 60, 1000])
def test_gradients_of_units_add_up_to_those_of_the_batch(make_policy: Callable[..., Policy], limit: int) -> None:
    rows = [row(prompt, length, start) for prompt, length, start in ((3, 5, 3), (3, 2, 3), (4, 9, 5), (1, 1, 6))]
    rows.append(TokenRow((3, 3, 3), (7, 8, 9, 10), (1, 0, 0, 1)))
    whole, parts = (make_policy("gpt2").weights.trainable().double() for _ in range(2))

    def loss(module: torch.nn.Module, places: list[int]) -> torch.Tensor:
        logps, mask = token_logps(module, [rows[place] for place in places])
        return -(logps * mask).sum() / sum(row.trained_tokens for row in rows)

    loss(whole, list(range(len(rows)))).backward()
    for unit in work_units(rows, limit):
        loss(parts, unit).backward()
    for ours, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7)
