"""The device of the tests that need a GPU; LOOPWISE_TEST_DEVICE=cpu runs them without one, to try the tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from loopwise.config.blocks import RuntimeConfig
from loopwise.models.policy import Policy, Weights
from loopwise.runtime import Runtime, make_runtime
from loopwise.types import Context


@pytest.fixture(scope="session")
def device() -> str:
    """``cuda``, or what the environment names."""
    import torch

    name = os.environ.get("LOOPWISE_TEST_DEVICE", "cuda")
    if name.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    return name


@pytest.fixture
def runtime_of(device: str) -> Callable[[str], Runtime]:
    """The runtime of the device in a compute type, seed 0."""
    return lambda dtype: make_runtime(RuntimeConfig(device=device, dtype=dtype, threads=1), seed=0)  # type: ignore[arg-type]


@pytest.fixture
def context_of(context: Context, runtime_of: Callable[[str], Runtime]) -> Callable[[str], Context]:
    """What an update is handed in round 1 on the device."""
    return lambda dtype: replace(context, runtime=runtime_of(dtype))


@pytest.fixture
def policy_on(make_policy: Callable[..., Policy], device: str) -> Callable[..., Policy]:
    """``make_policy`` with the weights on the device."""

    def make(shape: str = "gpt2", **changes: Any) -> Policy:
        made = make_policy(shape, **changes)
        assert made.weights is not None
        return replace(made, weights=Weights(made.weights.module.to(device)))

    return make
