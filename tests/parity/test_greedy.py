"""Greedy decoding against transformers' own ``generate``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import torch

from loopwise.generate.local import LocalGenerator
from loopwise.models.policy import Policy
from loopwise.runtime import Runtime
from loopwise.types import Request, Sample, Sampling

PROMPTS = ["12+34=", "a", "what is 5?", "one two three", "0", "9 9 9 9"]
TOKENS = 16
TIE = 1e-4


@pytest.mark.parametrize("shape", ["gpt2", "llama", "qwen3", "mistral"])
@pytest.mark.parametrize("ends", [[1], [1, *range(3, 13)]], ids=["runs on", "ends early"])
def test_greedy_tokens_equal_transformers_generate(
    make_policy: Callable[..., Policy],
    make_requests: Callable[..., list[Request]],
    runtime: Runtime,
    shape: str,
    ends: list[int],
) -> None:
    policy = make_policy(shape)
    module = policy.weights.module
    module.generation_config.eos_token_id = ends
    sampling = Sampling(max_tokens=TOKENS, temperature=0.0)
    samples = asyncio.run(LocalGenerator(runtime).generate(policy, make_requests(PROMPTS), sampling))
    batch = policy.tokenizer(PROMPTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        output = module.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    theirs = output.sequences[:, batch["input_ids"].shape[1] :]
    for row, sample in enumerate(samples):
        gaps = [float(best - second) for best, second in (step[row].topk(2).values.tolist() for step in output.logits)]
        check_equal(sample, theirs[row].tolist(), gaps, set(ends))
    assert len(ends) == 1 or any(len(sample.token_ids) < TOKENS for sample in samples)


def check_equal(sample: Sample, theirs: list[int], gaps: list[float], ends: set[int]) -> None:
    """Equal tokens up to the first near tie, then nothing but padding where the completion ended."""
    for position, (ours, other) in enumerate(zip(sample.token_ids, theirs, strict=False)):
        if ours != other:
            assert gaps[position] < TIE
            return
    assert set(theirs[len(sample.token_ids) :]) <= {0}
    assert (sample.token_ids[-1] in ends) == (sample.finish_reason == "stop")
