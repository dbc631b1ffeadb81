"""token_logps against log_softmax taken by hand, row by row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from loopwise.data.windows import Windows
from loopwise.models import logps as module_of_logps
from loopwise.models.logps import TokenRow, token_logps, window_logps
from loopwise.models.policy import Policy
from loopwise.runtime import Runtime

RAGGED = [
    TokenRow((5, 6, 7, 8, 9, 10), (11, 12, 1)),
    TokenRow((20,), (21, 22, 23, 24, 25, 26, 1)),
    TokenRow((30, 31, 32), (33,)),
    TokenRow((30, 31), (33, 34, 35), (1, 0, 1)),
]
ONE_PROMPT_LENGTH = [TokenRow((5, 6), (7, 8, 9)), TokenRow((10, 11), (12,)), TokenRow((5, 6), (7, 8, 9), (0, 1, 1))]


def by_hand(model: torch.nn.Module, row: TokenRow, temperature: float = 1.0) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([[*row.prompt_ids, *row.token_ids]]), use_cache=False).logits[0]
    before_each = logits[len(row.prompt_ids) - 1 : -1]
    everything = torch.log_softmax(before_each / temperature, dim=-1)
    return torch.stack([everything[place, token] for place, token in enumerate(row.token_ids)])


@pytest.mark.parametrize("shape", ["gpt2", "llama", "qwen3", "mistral"])
@pytest.mark.parametrize("rows", [RAGGED, ONE_PROMPT_LENGTH, RAGGED[1:2]], ids=["ragged", "one length", "one row"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_equal_those_by_hand(
    make_policy: Callable[..., Policy], shape: str, rows: list[TokenRow], temperature: float
) -> None:
    model = make_policy(shape).weights.module
    logps, mask = token_logps(model, rows, temperature)
    width = max(len(row.token_ids) for row in rows)
    assert logps.shape == mask.shape == (len(rows), width)
    assert logps.dtype == mask.dtype == torch.float32
    for place, row in enumerate(rows):
        count = len(row.token_ids)
        counted = torch.tensor(row.loss_mask or [1] * count, dtype=torch.float32)
        torch.testing.assert_close(logps[place, :count], by_hand(model, row, temperature) * counted, atol=2e-5, rtol=0)
        assert not logps[place, count:].any()
        assert mask[place].tolist() == counted.tolist() + [0.0] * (width - count)


@pytest.mark.parametrize("rows", [RAGGED, ONE_PROMPT_LENGTH], ids=["ragged", "one length"])
def test_gradients_equal_those_by_hand(make_policy: Callable[..., Policy], rows: list[TokenRow]) -> None:
    policy = make_policy()
    batched, single = policy.weights.trainable().double(), policy.weights.trainable().double()
    logps, _ = token_logps(batched, rows)
    logps.sum().backward()
    counted = [torch.tensor(row.loss_mask or [1] * len(row.token_ids)) for row in rows]
    sum((by_hand(single, row) * mask).sum() for row, mask in zip(rows, counted, strict=True)).backward()
    for ours, theirs in zip(batched.parameters(), single.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)


def test_trained_tokens_follow_the_mask() -> None:
    assert [row.trained_tokens for row in RAGGED] == [3, 7, 1, 2]
    assert [row.total_tokens for row in RAGGED] == [9, 8, 4, 5]


def test_bfloat16_compute_gives_finite_fp32(policy: Policy, runtime: Runtime) -> None:
    module = policy.weights.trainable()
    with replace(runtime, dtype="bfloat16").autocast():
        logps, _ = token_logps(module, RAGGED)
    logps.sum().backward()
    assert logps.dtype == torch.float32
    assert logps.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())
    exact, _ = token_logps(policy.weights.module, RAGGED)
    torch.testing.assert_close(logps.detach(), exact, atol=0.15, rtol=0.05)


def test_a_large_vocabulary_is_read_in_parts(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.arange(24).reshape(2, 12) + 3
    windows = Windows(ids, ids + 1, None)
    whole, parted = policy.weights.trainable(), policy.weights.trainable()
    expected = window_logps(whole, windows)
    expected.sum().backward()
    seen: list[int] = []
    original = module_of_logps._target_logps

    def counted(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(logits.numel())
        return original(logits, targets)

    most = 5 * policy.weights.module.config.vocab_size
    monkeypatch.setattr(module_of_logps, "LOGITS_AT_ONCE", most)
    monkeypatch.setattr(module_of_logps, "_target_logps", counted)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        found = window_logps(parted, windows)
    assert max(kept) <= max(most, *(parameter.numel() for parameter in parted.parameters()))
    found.sum().backward()
    assert torch.equal(found, expected)
    assert max(seen) == most
    assert len(seen) == 10, "five parts, read again for the gradient"
    for ours, theirs in zip(parted.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    with torch.inference_mode():
        assert torch.equal(window_logps(parted, windows), expected)
