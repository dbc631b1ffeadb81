"""Prefix trees against padded rows on a GPU: the same logits, gradients and samples."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from loopwise.generate import prefix
from loopwise.generate.local import LocalGenerator
from loopwise.models.logps import TokenRow, score_tokens
from loopwise.models.policy import Policy
from loopwise.models.trees import Layout, padded_layout, tree_layout, why_not_shared
from loopwise.runtime import Runtime
from loopwise.types import Request, Sample, Sampling

pytestmark = pytest.mark.gpu
SHAPES = ("gpt2", "llama", "qwen3")
TOLERANCES = {"float32": (1e-4, 1e-3), "bfloat16": (0.05, 0.1)}
"""Largest difference of logits, and of gradients by their norm, as a share of the largest."""


def ragged(groups: int, members: int) -> list[TokenRow]:
    """Groups of rows with prompts of several lengths; a masked token in every row."""
    draw = random.Random(0)
    rows = []
    for _ in range(groups):
        prompt = tuple(draw.randrange(3, 40) for _ in range(draw.randrange(2, 20)))
        for _ in range(members):
            tokens = tuple(draw.randrange(3, 40) for _ in range(draw.randrange(2, 16)))
            rows.append(TokenRow(prompt, tokens, (1, 0, *[1] * (len(tokens) - 2))))
    return rows


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_trees_equal_padded_rows(
    policy_on: Callable[..., Policy], runtime_of: Callable[[str], Runtime], shape: str, dtype: str
) -> None:
    rows, runtime = ragged(4, 5), runtime_of(dtype)
    counted = np.zeros((len(rows), max(len(row.token_ids) for row in rows)), dtype=bool)
    for place, row in enumerate(rows):
        counted[place, : len(row.token_ids)] = row.loss_mask
    model = policy_on(shape).weights.trainable()
    assert why_not_shared(model) is None

    def read(layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        with runtime.autocast():
            logits = layout.logits(model)
        (logits.float().log_softmax(-1).gather(-1, layout.targets[:, None])).sum().backward()
        return logits.detach().float(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    logits, gradient = read(padded_layout(rows, counted, runtime.torch_device))
    found, ours = read(tree_layout(rows, counted, runtime.torch_device))
    close, steep = TOLERANCES[dtype]
    assert float((found - logits).abs().max()) <= close * float(logits.abs().max())
    assert float((ours - gradient).norm()) <= steep * float(gradient.norm())


@pytest.mark.parametrize("shape", SHAPES)
def test_scores_are_those_of_the_processor(
    make_policy: Callable[..., Policy], policy_on: Callable[..., Policy], shape: str
) -> None:
    rows = ragged(3, 4)
    expected = score_tokens(make_policy(shape).weights.module, rows, 0.7, entropies=True, states=True)
    found = score_tokens(policy_on(shape).weights.module, rows, 0.7, entropies=True, states=True)
    for name in ("logps", "entropies", "states"):
        torch.testing.assert_close(getattr(found, name).cpu(), getattr(expected, name), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_samples_are_those_of_padded_rows(
    policy_on: Callable[..., Policy],
    make_requests: Callable[..., list[Request]],
    runtime_of: Callable[[str], Runtime],
    monkeypatch: pytest.MonkeyPatch,
    shape: str,
) -> None:
    policy, runtime = policy_on(shape), runtime_of("float32")
    policy.weights.module.generation_config.eos_token_id = list(range(3, 9))  # rows leave at different steps
    requests = make_requests(["12+34=", "a", "what is 5?", "one two three"], k=5)

    def draw() -> list[Sample]:
        return asyncio.run(LocalGenerator(runtime).generate(policy, requests, Sampling(max_tokens=12)))

    monkeypatch.setattr(prefix, "SHARED_FROM", 1)
    shared = draw()
    monkeypatch.setattr("loopwise.generate.local.why_not_shared_prefix", lambda module: "told so")
    padded = draw()
    assert [sample.token_ids for sample in shared] == [sample.token_ids for sample in padded]
    for ours, theirs in zip(shared, padded, strict=True):
        assert ours.logps == pytest.approx(theirs.logps, abs=1e-3)
