"""The supervised loss against the one transformers computes from ``labels``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from loopwise.models.logps import TokenRow, token_logps
from loopwise.models.policy import Policy
from loopwise.update.losses import likelihood_loss

ROWS = [TokenRow((5, 6, 7), (8, 9, 1)), TokenRow((20,), (21, 22, 23, 24, 1)), TokenRow((30, 31), (32,))]
IGNORED = -100


@pytest.mark.parametrize("shape", ["gpt2", "llama", "qwen3", "mistral"])
def test_loss_and_gradients_equal_transformers(make_policy: Callable[..., Policy], shape: str) -> None:
    policy = make_policy(shape)
    ours, theirs = policy.weights.trainable(), policy.weights.trainable()
    tokens = sum(row.trained_tokens for row in ROWS)
    loss = likelihood_loss(*token_logps(ours, ROWS), tokens)
    loss.backward()

    width = max(row.total_tokens for row in ROWS)
    ids = [[*row.prompt_ids, *row.token_ids] for row in ROWS]
    labels = [[IGNORED] * len(row.prompt_ids) + list(row.token_ids) for row in ROWS]
    expected = theirs(
        input_ids=torch.tensor([row + [0] * (width - len(row)) for row in ids]),
        attention_mask=torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids]),
        labels=torch.tensor([row + [IGNORED] * (width - len(row)) for row in labels]),
    ).loss
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-4)
