"""State survives the disk exactly, without pickle."""

from __future__ import annotations

import enum
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from loopwise.errors import CheckpointError
from loopwise.runs.state import read_state, write_state

TEXT = st.text(st.characters(exclude_categories=()))
ARRAYS = st_numpy.arrays(
    st.sampled_from(["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"]).map(np.dtype),
    st_numpy.array_shapes(min_dims=0, min_side=0, max_side=3),
)
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.binary() | ARRAYS | ARRAYS.map(torch.tensor)
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(TEXT | st.integers(), inner),
    max_leaves=8,
)


def round_trip(folder, state):
    write_state(folder, state)
    return read_state(folder)


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other), "keys, their types or their order changed"
        assert [type(key) for key in one] == [type(key) for key in other]
        one, other = list(one.values()), list(other.values())
    if isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    elif isinstance(one, torch.Tensor | np.ndarray):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert bytes_of(one) == bytes_of(other)
    elif isinstance(one, float):
        assert repr(one) == repr(other)
    else:
        assert one == other


def bytes_of(array):
    if isinstance(array, torch.Tensor):
        return bytes(array.detach().contiguous().untyped_storage())[: array.nbytes]
    return array.tobytes()


@settings(max_examples=80, deadline=None)
@given(state=TREES)
def test_comes_back(tmp_path_factory, state):
    assert_same(round_trip(tmp_path_factory.mktemp("state"), state), state)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4).T,
        torch.randn(4)[::2],
        torch.tensor(1.5, dtype=torch.bfloat16),
        torch.empty(0, 3),
        torch.ones(2, requires_grad=True),
        torch.nn.Parameter(torch.ones(2)).data,
        torch.zeros(2, dtype=torch.float8_e4m3fn),
    ],
    ids=["transposed", "strided", "bfloat16", "empty", "trained", "parameter", "float8"],
)
def test_odd_tensors(tmp_path, tensor):
    found = round_trip(tmp_path, tensor)
    assert not found.requires_grad
    assert_same(found, tensor.detach())


def test_tensors_that_share_memory_come_back_apart(tmp_path):
    whole = torch.arange(4.0)
    found = round_trip(tmp_path, [whole, whole, whole[:2], np.arange(3)])
    assert_same(found, [whole, whole, whole[:2], np.arange(3)])
    found[0][0] = 9
    assert found[1][0] == 0
    assert found[2][0] == 0


def test_an_optimizer_goes_on_alike(tmp_path):
    def steps(parameter, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            (parameter**2).sum().backward()
            optimizer.step()

    first = torch.nn.Parameter(torch.linspace(-1, 1, 5))
    optimizer = torch.optim.AdamW([first], lr=0.1)
    steps(first, optimizer, 3)
    write_state(tmp_path, {"optimizer": optimizer.state_dict(), "parameter": first})
    saved = read_state(tmp_path)
    second = torch.nn.Parameter(saved["parameter"])
    other = torch.optim.AdamW([second], lr=0.7)
    other.load_state_dict(saved["optimizer"])
    steps(first, optimizer, 3)
    steps(second, other, 3)
    assert_same(second.data, first.data)


def test_arrays_can_be_written_to(tmp_path):
    found = round_trip(tmp_path, [np.zeros(2)])
    found[0][0] = 1


class Colour(enum.StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": [1, {2, 3}]}, "state['a'][1]: set"),
        ({"a": np.float64(1)}, "state['a']: float64"),
        ({"a": Colour.RED}, "state['a']: Colour"),
        ({(1, 2): 3}, "state: key (1, 2) is tuple"),
        ({True: 3}, "state: key True is bool"),
        (np.array(["a"]), "state: array of <U1"),
        (np.array([1], dtype=">i4"), "state: array of >i4"),
        (torch.zeros(2, dtype=torch.complex64), "state: tensor of torch.complex64"),
        (torch.device("cpu"), "state: device"),
    ],
)
def test_refuses_what_would_not_come_back(tmp_path, state, message):
    with pytest.raises(TypeError) as caught:
        write_state(tmp_path, state)
    assert str(caught.value).startswith(message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"pickle": 1}', b'{"tensor": "tensor-0"}'])
def test_what_is_no_state(tmp_path, content):
    (tmp_path / "state.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state\.json"):
        read_state(tmp_path)


@pytest.mark.parametrize("state", [np.ones(2), torch.ones(2)])
def test_tensors_cut_short(tmp_path, state):
    write_state(tmp_path, state)
    os.truncate(tmp_path / "state.safetensors", 60)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_state(tmp_path)


def test_torch_stays_away_where_there_are_no_tensors(tmp_path):
    code = (
        "import sys, pathlib, numpy\n"
        "from loopwise.runs.state import read_state, write_state\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "write_state(folder, {'a': numpy.ones(2)})\n"
        "assert read_state(folder)['a'].sum() == 2\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
