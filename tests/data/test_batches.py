"""The order of training rows: pure functions of their arguments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwise.data.batches import MIXTURE_BLOCK, MixtureBatch, batch_indices, epoch_order, mixed_batch, mixture_batch
from loopwise.errors import ConfigError, DataError


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


def draws(counts: list[int], weights: list[float], batch_size: int, steps: int, seed: int = 0) -> MixtureBatch:
    batches = [mixture_batch(counts, weights, batch_size, seed, step) for step in range(steps)]
    assert {len(batch.source) for batch in batches} == {batch_size}
    return MixtureBatch(*(np.concatenate([getattr(b, n) for b in batches]) for n in ("source", "index", "epoch")))


sources = st.lists(st.tuples(st.integers(1, 300), st.floats(0.05, 1)), min_size=1, max_size=4)
few = settings(max_examples=30, deadline=None)


@few
@given(sources, st.integers(150, 700), st.integers(0, 3))
def test_a_mixture_walks_each_source_through_its_epochs(
    given_sources: list[tuple[int, float]], batch_size: int, seed: int
) -> None:
    counts, weights = [count for count, _ in given_sources], [weight for _, weight in given_sources]
    drawn = draws(counts, weights, batch_size, 2 * MIXTURE_BLOCK // batch_size + 1, seed)
    for source, count in enumerate(counts):
        own = drawn.source == source
        index, epoch = drawn.index[own], drawn.epoch[own]
        assert (epoch == np.arange(len(epoch)) // count).all()
        for number in range(len(epoch) // count):
            assert sorted(index[epoch == number]) == list(range(count))


@few
@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=6), st.integers(0, 2))
def test_the_shares_of_a_mixture_hold_in_every_block(weights: list[float], seed: int) -> None:
    drawn = draws([500] * len(weights), weights, MIXTURE_BLOCK, 2, seed)
    for block in drawn.source.reshape(2, MIXTURE_BLOCK):
        exact = np.array(weights) / sum(weights) * MIXTURE_BLOCK
        assert np.abs(np.bincount(block, minlength=len(weights)) - exact).max() < 1 + 1e-9


def test_the_shares_of_a_mixture_are_spread_evenly() -> None:
    drawn = draws([50, 50, 50], [5, 3, 2], 20, 200)
    for source, share in enumerate([10, 6, 4]):
        counts = (drawn.source.reshape(-1, 20) == source).sum(axis=1)
        # Drawn one by one they would be off by up to 8.
        assert np.abs(counts - share).max() <= 3
        assert len(set(counts)) > 1
    assert len({tuple(batch) for batch in drawn.source.reshape(-1, 20)}) > 150


def test_any_step_of_a_mixture_is_found_alone_and_does_not_depend_on_the_batch_size() -> None:
    arguments = [70, 9], [0.6, 0.4]
    whole = draws(*arguments, 12, 600)
    for step in (599, 3, 341):
        alone = mixture_batch(*arguments, 12, 0, step)
        for name in ("source", "index", "epoch"):
            assert (getattr(alone, name) == getattr(whole, name)[12 * step : 12 * step + 12]).all()
            assert getattr(alone, name).dtype == np.int64
    other = draws(*arguments, 100, 72)
    assert (other.index == whole.index).all()
    assert (draws(*arguments, 100, 72, seed=1).index != whole.index).any()
    assert mixture_batch(*arguments, 4, 0, 10**12).epoch.min() > 10**10


def test_one_source_alone_is_walked_as_batch_indices_does() -> None:
    for step in (0, 7, 400):
        assert (mixture_batch([33], [2.5], 16, 4, step).index == batch_indices(33, 16, 4, step)).all()


def test_sources_of_one_size_are_walked_in_different_orders() -> None:
    drawn = draws([40, 40], [1, 1], 80, 1)
    first, second = (drawn.index[(drawn.source == source) & (drawn.epoch == 0)] for source in (0, 1))
    assert (first != second).any()


def test_a_mixture_that_cannot_be_drawn() -> None:
    with pytest.raises(DataError) as caught:
        mixture_batch([3, 0], [1, 1], 4, 0, 0)
    assert str(caught.value) == "source 2 of the mixture has no rows. Give it one, or leave it out."
    with pytest.raises(ConfigError) as caught:
        mixture_batch([3, 3], [1, 9999], 4, 0, 0)
    assert str(caught.value) == (
        "source 1 of the mixture: its weight 1 of 10000 is less than one row in 1024. "
        "Raise the weight, or leave the source out."
    )
