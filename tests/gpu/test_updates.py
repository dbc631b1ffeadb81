"""One step of each kind of update on a GPU: in fp32 that of the processor, in bf16 finite and close to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.update.sampled import PROBLEMS, Sampled
from tests.update.test_pairs import GROUPS, Rollouts, make, scored
from tests.update.test_policy_gradient import configured, update_of

from loopwise.models.policy import Policy
from loopwise.runtime import Runtime
from loopwise.types import Context

pytestmark = pytest.mark.gpu
METHODS = ("dr_grpo", "ppo", "dpo")
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1}


def step(
    method: str, start: Policy, samples: Policy, context: Context, processor: Runtime
) -> tuple[Policy, Mapping[str, float]]:
    """One step from ``start`` on what ``samples`` drew, or on two pairs; the metrics of the step."""
    steps: list[Mapping[str, float]] = []
    watched = replace(context, record=lambda number, metrics: steps.append(metrics), reference=start)
    if method == "dpo":
        update: Any = make("dpo", steps=1)
        rollout = scored(start, GROUPS)
    else:
        passes = 2 if method == "ppo" else 1
        update = update_of(configured(method, problems_per_step=len(PROBLEMS), passes=passes))
        # Drawn by the processor in fp32, so that a rounding cannot send a sample another way.
        rollout = Sampled(processor)(samples, PROBLEMS, 6)
    made = update(start, None, rollout.problems, Rollouts(rollout), watched)
    return made.candidate, steps[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_step_is_the_processors(
    method: str,
    dtype: str,
    make_policy: Callable[..., Policy],
    policy_on: Callable[..., Policy],
    context: Context,
    context_of: Callable[[str], Context],
    device: str,
) -> None:
    here = make_policy("llama")
    _, expected = step(method, here, here, context, context.runtime)
    policy = policy_on("llama")
    candidate, found = step(method, policy, here, context_of(dtype), context.runtime)
    assert candidate.id != policy.id
    assert candidate.weights is not None
    assert candidate.weights.finite
    parameters = list(candidate.weights.module.parameters())
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    assert {parameter.device.type for parameter in parameters} == {device.partition(":")[0]}
    assert found.keys() == expected.keys()
    for name in ("loss", "grad_norm"):
        assert found[name] == pytest.approx(expected[name], rel=TOLERANCES[dtype], abs=TOLERANCES[dtype] / 10)
