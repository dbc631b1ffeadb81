"""The order of training rows: pure functions of their arguments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwise.data.batches import batch_indices, epoch_order, mixed_batch
from loopwise.errors import DataError


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 3))
def test_batches_cover_each_epoch_exactly_once(count: int, batch_size: int, seed: int) -> None:
    batches = [batch_indices(count, batch_size, seed, step) for step in range(3 * count // batch_size + 1)]
    assert {len(batch) for batch in batches} == {batch_size}
    walked = np.concatenate(batches)
    for epoch in range(len(walked) // count):
        rows = walked[epoch * count : (epoch + 1) * count]
        assert sorted(rows) == list(range(count))
        assert (rows == epoch_order(count, seed, epoch)).all()


def test_epochs_and_seeds_differ_and_are_the_same_on_every_machine() -> None:
    orders = [tuple(epoch_order(100, seed, epoch)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    assert tuple(range(100)) not in orders
    assert epoch_order(8, 0, 0).tolist() == [2, 3, 1, 4, 5, 6, 0, 7]


def test_the_cached_order_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(5, 0, 0)[0] = 3


def test_mixed_batch_draws_both_by_share() -> None:
    draws = [mixed_batch(10, 1000, 0.3, 200, 0, round, step) for round in range(5) for step in range(10)]
    is_labelled = np.concatenate([labelled for labelled, _ in draws])
    index = np.concatenate([index for _, index in draws])
    assert 0.27 < is_labelled.mean() < 0.33
    assert set(index[is_labelled]) == set(range(10))
    assert index[~is_labelled].max() < 1000
    assert 450 < index[~is_labelled].mean() < 550
    assert len({tuple(index) for _, index in draws}) == 50


def test_mixed_batch_is_pure() -> None:
    first, again, other_seed = (mixed_batch(5, 7, 0.5, 16, seed, 1, 2) for seed in (0, 0, 1))
    assert all((one == two).all() for one, two in zip(first, again, strict=True))
    assert (first[1] != other_seed[1]).any()
    assert first[0].dtype == np.bool_
    assert first[1].dtype == np.int64


@pytest.mark.parametrize(
    ("labelled", "pool", "share", "expected"), [(3, 0, 0.0, True), (0, 3, 1.0, False), (3, 3, 1.0, True)]
)
def test_mixed_batch_with_one_side_empty(labelled: int, pool: int, share: float, expected: bool) -> None:
    is_labelled, index = mixed_batch(labelled, pool, share, 64, 0, 0, 0)
    assert set(is_labelled) == {expected}
    assert set(index) == {0, 1, 2}


def test_nothing_to_train_on() -> None:
    with pytest.raises(DataError) as caught:
        mixed_batch(0, 0, 0.5, 4, 0, 0, 0)
    assert str(caught.value) == "neither labelled rows nor a pool to train on. Name rows with data.labelled."
    with pytest.raises(DataError) as caught:
        batch_indices(0, 4, 0, 0)
    assert str(caught.value) == "no rows to make batches of. Give at least one."
