"""Rows to train on, and the pool they gather in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from loopwise.errors import DataError
from loopwise.models.logps import TokenRow
from loopwise.models.policy import Policy
from loopwise.models.tokens import decode
from loopwise.runs.state import read_state, write_state
from loopwise.types import Problem, Sample
from loopwise.update.rows import Pool, labelled_rows, sample_rows

ROWS = [
    TokenRow((1, 2), (3, 4, 5), (1, 0, 1)),
    TokenRow((1, 2), (3, 4), (1, 1)),
    TokenRow((9,), (), ()),
    TokenRow((1,), (2, 3, 4), (1, 1, 1)),
]


def sample(**changes: object) -> Sample:
    fields = {
        "id": "s",
        "problem_id": "p",
        "group": 0,
        "index": 0,
        "policy_id": "x",
        "text": "2",
        "finish_reason": "stop",
    }
    return Sample(**fields | changes)


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], []], ids=["several", "one", "none"])
def test_a_pool_comes_back_from_disk_as_it_was(tmp_path: Path, rows: list[TokenRow]) -> None:
    pool = Pool(rows)
    write_state(tmp_path, pool.state())
    again = Pool.from_state(read_state(tmp_path))
    assert list(again) == list(pool) == rows
    assert not any(again.add(row) for row in rows)


def test_a_row_without_mask_comes_back_with_one() -> None:
    assert list(Pool.from_state(Pool([TokenRow((1,), (2, 3))]).state())) == [TokenRow((1,), (2, 3), (1, 1))]


def test_the_same_prompt_and_tokens_are_kept_once_in_order() -> None:
    pool = Pool()
    assert [pool.add(row) for row in [*ROWS, *ROWS]] == [True] * 4 + [False] * 4
    assert len(pool) == 4
    assert pool[1] == ROWS[1]
    # Where prompt and completion meet counts: (1, 2) + (3, 4) is not (1,) + (2, 3, 4).
    assert pool.add(TokenRow((1, 2, 3), (4,)))


def test_a_full_prompt_takes_no_more_and_comes_back_full() -> None:
    pool = Pool(per_prompt=1)
    assert [pool.add(row) for row in ROWS] == [True, False, True, True]
    again = Pool.from_state(pool.state(), pool.per_prompt)
    assert list(again) == list(pool) == [ROWS[0], *ROWS[2:]]
    assert not again.add(ROWS[1])
    assert ROWS[1] not in again
    assert Pool.from_state(Pool().state(), 1).per_prompt == 1


def test_labelled_rows_end_with_end_of_text(policy: Policy) -> None:
    [row] = labelled_rows(policy, [Problem("p", "1+1=")], ["2"], None)
    assert decode(policy, [row.prompt_ids, row.token_ids[:-1]]) == ["1+1=", "2"]
    assert row.token_ids[-1] == policy.tokenizer.eos_token_id
    assert (row.trained_tokens, row.total_tokens) == (2, 6)


def test_a_labelled_row_over_the_limit_is_named(policy: Policy) -> None:
    problems = [Problem("short", "1+1="), Problem("long", "1" * 40)]
    labelled_rows(policy, problems, ["2", "2" * 7], None)
    with pytest.raises(DataError, match=r"labelled row long: 49 tokens, over the limit of 48\. .*longer context"):
        labelled_rows(policy, problems, ["2", "2" * 8], None)
    with pytest.raises(DataError, match=r"labelled row short: 6 tokens, over the limit of 5\. .*update\.max_length"):
        labelled_rows(policy, problems, ["2", "2"], 5)


def test_samples_train_on_the_ids_they_were_drawn_with(policy: Policy) -> None:
    drawn = sample(prompt_ids=(5, 6), token_ids=(7, 8), loss_mask=(0, 1))
    assert sample_rows(policy, [drawn], [Problem("p", "ignored")]) == [TokenRow((5, 6), (7, 8), (0, 1))]


def test_samples_without_ids_train_on_their_text(make_policy: Callable[..., Policy]) -> None:
    policy, problem = make_policy(), Problem("p", "1+1=")
    assert sample_rows(policy, [sample()], [problem]) == list(labelled_rows(policy, [problem], ["2"], None))
