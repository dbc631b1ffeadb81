"""Equal outputs and unequal ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwise.evaluate.sandbox.comparison import same_output, same_text

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(max_examples=50, deadline=None)
@given(VALUES)
def test_what_went_through_json_is_the_same(value: Any) -> None:
    assert same_output(json.loads(json.dumps(value)), value, 0.0)


@settings(max_examples=50, deadline=None)
@given(VALUES, VALUES)
def test_it_does_not_matter_which_is_which(one: Any, other: Any) -> None:
    assert same_output(one, other, 1e-6) == same_output(other, one, 1e-6)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (1, True),
        (True, 1.0),
        (0, False),
        (0, None),
        ("1", 1),
        ([], {}),
        ([1, 2], [1]),
        ([1, 2], [2, 1]),
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": [True]}, {"a": [1]}),
        (float("nan"), float("nan")),
        (10**400, 1.5),
        (2, 3),
        (0.1, 0.2),
    ],
)
def test_different_outputs(found: Any, expected: Any) -> None:
    assert not same_output(found, expected, 1e-6)


def test_tolerance_is_for_floats() -> None:
    assert same_output([0.1 + 0.2, 1], [0.3, 1.0], 1e-9)
    assert not same_output(0.1 + 0.2, 0.3, 0.0)
    assert same_output(1e12, 1e12 + 1, 1e-9)
    assert not same_output(10**12, 10**12 + 1, 1e-9)


def test_nesting_without_end_is_no_match() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert not same_output(deep, [deep], 0.0)
    # Taken apart from the outside: freeing it at once would recurse as deep.
    while deep:
        deep = deep.pop()


def test_texts_but_for_white_space_at_the_ends_of_lines() -> None:
    assert same_text("1 2 \n3\n\n", "1 2\n3")
    assert not same_text("1  2", "1 2")
    assert not same_text(" 1", "1")
    assert not same_text("1\n\n2", "1\n2")
