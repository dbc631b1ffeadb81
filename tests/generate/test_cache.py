"""Decoding with a cache against full forward passes: the same logits, in every shape, prompts ragged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.models.tiny import tiny_lstm

from loopwise.generate.padded import prefill
from loopwise.models.policy import Policy

PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [20, 21], [30, 31, 32, 33, 34]]
STEPS = torch.tensor([[14, 15, 16, 17, 18, 19], [22, 23, 24, 25, 26, 27], [35, 36, 37, 38, 39, 40]])
TOLERANCE = 1e-4


@pytest.mark.parametrize("shape", ["gpt2", "llama", "qwen3", "mistral"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("prompts", [PROMPTS, [prompt[:2] for prompt in PROMPTS]], ids=["ragged", "one length"])
def test_cached_decoding_equals_full_forward(
    make_policy: Callable[..., Policy], shape: str, prompts: list[list[int]], attention: str
) -> None:
    module = make_policy(shape).weights.module
    module.set_attn_implementation(attention)
    assert_cached_equals_full(module, prompts)


@pytest.mark.parametrize("prompts", [PROMPTS, [prompt[:2] for prompt in PROMPTS]], ids=["ragged", "one length"])
def test_the_state_of_an_lstm_equals_full_forward(tokenizer: Any, prompts: list[list[int]]) -> None:
    assert_cached_equals_full(tiny_lstm(tokenizer).weights.module, prompts)


def assert_cached_equals_full(module: Any, prompts: list[list[int]]) -> None:
    with torch.inference_mode():
        cache, logits, mask, lengths = prefill(module, prompts, torch.device("cpu"))
        for position in range(STEPS.shape[1] + 1):
            for row, prompt in enumerate(prompts):
                whole = torch.tensor([prompt + STEPS[row, :position].tolist()])
                expected = module(input_ids=whole, use_cache=False).logits[0, -1]
                torch.testing.assert_close(logits[row], expected, atol=TOLERANCE, rtol=0)
            if position == STEPS.shape[1]:
                break
            mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1) if mask is not None else None
            logits = module(
                input_ids=STEPS[:, position, None],
                attention_mask=mask,
                position_ids=(lengths + position)[:, None],
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]


def test_the_tiny_models_look_back(make_policy: Callable[..., Policy]) -> None:
    # Otherwise the comparison above could not fail: a changed first token must change the last logits.
    for shape in ("gpt2", "llama", "qwen3"):
        module = make_policy(shape).weights.module
        with torch.inference_mode():
            rows = torch.tensor([[5, 6, 7, 8, 9], [20, 6, 7, 8, 9]])
            logits = module(input_ids=rows, use_cache=False).logits[:, -1]
        assert (logits[0] - logits[1]).abs().max() > 100 * TOLERANCE


def test_the_sliding_window_slides(make_policy: Callable[..., Policy]) -> None:
    # Two layers of window 4 reach 6 tokens back; the eighth from the end is out of sight, the second is not.
    module = make_policy("mistral").weights.module
    rows = torch.arange(5, 15).repeat(3, 1)
    rows[1, -9] = 40
    rows[2, -2] = 40
    with torch.inference_mode():
        logits = module(input_ids=rows, use_cache=False).logits[:, -1]
    assert torch.equal(logits[0], logits[1])
    assert (logits[0] - logits[2]).abs().max() > 100 * TOLERANCE
