"""Decoding with shared prompts against plain forward passes and padded rows: the same, and the module is untouched."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models.tiny import tiny_lstm
from transformers import AttentionInterface

from loopwise.generate import check, prefix, prefix_cache
from loopwise.generate.check import why_not_shared_prefix
from loopwise.generate.local import LocalGenerator
from loopwise.generate.prefix import NotShareableError, SharedRows
from loopwise.generate.prefix_cache import closed_up
from loopwise.models.policy import Policy
from loopwise.runtime import Runtime
from loopwise.types import Request, Sample, Sampling

CPU = torch.device("cpu")
TOLERANCE = 1e-5
PROMPTS = {
    "one length": [[5, 6, 7], [20, 21, 22], [30, 31, 32]],
    "ragged": [[5, 6, 7, 8, 9, 10, 11], [20, 21], [30, 31, 32, 33]],
}
OWNERS = [0, 0, 0, 1, 2, 2, 1, 0]
LEAVING = [{1: [4, 0, 2, 3]}, {2: [7, 6, 5, 4, 3], 4: [1, 3]}, {1: [3, 6], 3: [1]}]
"""Rows that stay after some steps, in their new order; in the last two whole groups are gone."""


def assert_rows_are_plain_passes(
    module: Any, rows: Any, prompts: list[list[int]], leaving: dict[int, list[int]]
) -> None:
    texts = [list(prompts[owner]) for owner in OWNERS]
    draws = np.random.default_rng(0)
    for step in range(6):
        expected = torch.stack(
            [module(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1] for text in texts]
        )
        torch.testing.assert_close(rows.logits, expected, atol=TOLERANCE, rtol=0)
        if step in leaving:
            rows.keep(np.array(leaving[step]))
            texts = [texts[place] for place in leaving[step]]
        tokens = draws.integers(3, 40, len(texts))
        rows.read(torch.from_numpy(tokens))
        for text, token in zip(texts, tokens.tolist(), strict=True):
            text.append(token)


@pytest.mark.parametrize("shape", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("leaving", LEAVING, ids=["one group shrinks", "a group goes", "one is left"])
def test_logits_are_those_of_plain_forward_passes(
    make_policy: Callable[..., Policy],
    monkeypatch: pytest.MonkeyPatch,
    shape: str,
    share: bool,
    prompts: list[list[int]],
    leaving: dict[int, list[int]],
) -> None:
    monkeypatch.setattr(prefix_cache, "SPARE", 2)  # so that memory has to grow
    monkeypatch.setattr(prefix, "PREFILL_TOKENS", 10)  # so that prompts take several passes
    module = make_policy(shape).weights.module
    with torch.inference_mode():
        rows = SharedRows(module, prompts, OWNERS, 6, CPU, share=share)
        assert_rows_are_plain_passes(module, rows, prompts, leaving)


@pytest.mark.parametrize("shape", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("count", [1, 5])
def test_samples_are_those_of_padded_rows(
    make_policy: Callable[..., Policy],
    make_requests: Callable[..., list[Request]],
    runtime: Runtime,
    monkeypatch: pytest.MonkeyPatch,
    shape: str,
    count: int,
) -> None:
    policy = make_policy(shape)
    policy.weights.module.generation_config.eos_token_id = list(range(3, 9))  # rows leave at different steps
    requests = make_requests(["12+34=", "a", "what is 5?", "one two three"], k=count)

    def draw() -> list[Sample]:
        return asyncio.run(LocalGenerator(runtime).generate(policy, requests, Sampling(max_tokens=12)))

    found = []
    for least in (1, 99):  # prompts are shared, and are not
        monkeypatch.setattr(prefix, "SHARED_FROM", least)
        found.append(draw())
    monkeypatch.setattr("loopwise.generate.local.why_not_shared_prefix", lambda module: "told so")
    padded = draw()
    assert len({len(sample.token_ids) for sample in padded}) > 1
    for samples in found:
        assert [sample.token_ids for sample in samples] == [sample.token_ids for sample in padded]
        for ours, theirs in zip(samples, padded, strict=True):
            assert ours.logps == pytest.approx(theirs.logps, abs=1e-4)


def test_sharing_is_left_where_it_does_not_pay(make_policy: Callable[..., Policy]) -> None:
    module = make_policy().weights.module

    def shares(length: int, owners: list[int]) -> bool:
        with torch.inference_mode():
            rows = SharedRows(module, [[5] * length] * (max(owners) + 1), owners, 2, CPU)
        return rows.shares

    assert shares(prefix.SHARED_FROM, [0, 0, 1, 1])
    assert not shares(prefix.SHARED_FROM - 1, [0, 0, 1, 1])
    assert not shares(prefix.SHARED_FROM, [0, 1, 2, 2])


def test_only_the_last_position_of_a_prompt_gets_logits(make_policy: Callable[..., Policy]) -> None:
    module = make_policy("llama").weights.module
    shapes: list[tuple[int, ...]] = []
    module.lm_head.register_forward_hook(lambda layer, given, logits: shapes.append(tuple(logits.shape[:2])))
    with torch.inference_mode():
        SharedRows(module, PROMPTS["ragged"], OWNERS, 6, CPU)
    assert shapes == [(3, 1)], "also, the hook of the module is one of its twin"


@pytest.mark.parametrize(
    ("lengths", "expected"), [([3, 9, 4], [[0, 2], [1]]), ([30], [[0]]), ([2, 2, 2, 2, 2, 2], [[0, 1, 2, 3, 4], [5]])]
)
def test_a_forward_pass_of_prompts_is_bounded(
    monkeypatch: pytest.MonkeyPatch, lengths: list[int], expected: list[list[int]]
) -> None:
    monkeypatch.setattr(prefix, "PREFILL_TOKENS", 10)
    assert prefix.passes(lengths) == expected


@pytest.mark.parametrize("shape", ["gpt2", "llama", "qwen3"])
def test_plain_attention_can_share(make_policy: Callable[..., Policy], shape: str) -> None:
    assert why_not_shared_prefix(make_policy(shape).weights.module) is None


def test_what_cannot_share_says_why(make_policy: Callable[..., Policy], tokenizer: Any) -> None:
    for module, reason in (
        (tiny_lstm(tokenizer).weights.module, "memory of its own kind"),
        (make_policy("mistral").weights.module, "do not see the whole text"),
        (make_policy(max_position_embeddings=5).weights.module, "context of 5 tokens is too short"),
    ):
        assert reason in str(why_not_shared_prefix(module))


def test_attention_that_is_more_than_plain_is_refused(make_policy: Callable[..., Policy]) -> None:
    attention = AttentionInterface()[prefix.ATTENTION]
    tensor = torch.zeros(1, 4, 1, 8)
    for options, told in (
        ({"softcap": 30.0, "sliding_window": None, "use_cache": True}, "its attention has softcap"),
        ({"s_aux": tensor, "dropout": 0.1}, "its attention has s_aux and dropout"),
    ):
        with pytest.raises(NotShareableError, match=told):
            attention(make_policy().weights.module, tensor, tensor, tensor, None, **options)


def test_a_kind_of_module_is_tried_once(make_policy: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_REASONS_OF_KINDS", {})
    tried: list[Any] = []

    def reason(module: Any) -> str:
        tried.append(module)
        return "told so"

    monkeypatch.setattr(check, "_reason", reason)
    first, second, other = make_policy(seed=1), make_policy(seed=2), make_policy(n_layer=1)
    for policy in (first, second, first, other):
        assert why_not_shared_prefix(policy.weights.module) == "told so"
    assert tried == [first.weights.module, other.weights.module]


def test_wrong_logits_are_noticed(make_policy: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch) -> None:
    # As of an architecture whose attention does more than is asked of ours.
    attend = prefix_cache.PrefixCache.attend
    monkeypatch.setattr(prefix_cache.PrefixCache, "attend", lambda self, *given: 1.1 * attend(self, *given))
    assert "away from those without" in str(
        why_not_shared_prefix(make_policy("llama", seed=9, n_unknown=1).weights.module)
    )


def test_the_module_is_never_changed(make_policy: Callable[..., Policy]) -> None:
    module = make_policy("llama").weights.module
    ids, before = torch.tensor([[5, 6, 7]]), module.config.to_dict()
    names, told = [], []

    def elsewhere() -> None:
        names.append(module.config._attn_implementation)
        told.append(module(ids).logits)

    def look(layer: Any, given: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            raise RuntimeError("enough")

    expected = module(ids).logits
    handle = module.model.norm.register_forward_pre_hook(look)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="enough"):
        SharedRows(module, PROMPTS["ragged"], OWNERS, 6, CPU)
    handle.remove()
    assert names == ["sdpa"]
    assert torch.equal(told[0], expected), "another thread computes as ever"
    assert module.config.to_dict() == before
    assert not hasattr(module.config, "loopwise_prefix_cache")


@pytest.mark.parametrize("share", [True, False])
def test_bfloat16_keeps_half_the_bytes(make_policy: Callable[..., Policy], share: bool) -> None:
    module = make_policy("qwen3").weights.module
    logits = []
    for enabled in (False, True):
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            rows = SharedRows(module, PROMPTS["ragged"], OWNERS, 6, CPU, share=share)
            rows.read(torch.tensor([7] * len(OWNERS)))
        logits.append(rows.logits.float())
        kept = [tensor for layer in rows._cache._layers.values() for tensor in (*layer.rows, *(layer.prompts or ()))]
        assert {tensor.dtype for tensor in kept} == {torch.bfloat16 if enabled else torch.float32}
    assert 0 < (logits[0] - logits[1]).abs().max() < 0.05 * logits[0].abs().max()


@pytest.mark.parametrize("shape", ["gpt2", "llama", "lstm"])
def test_weights_cast_ahead_draw_what_autocast_draws(
    make_policy: Callable[..., Policy],
    tokenizer: Any,
    make_requests: Callable[..., list[Request]],
    runtime: Runtime,
    monkeypatch: pytest.MonkeyPatch,
    shape: str,
) -> None:
    policy = tiny_lstm(tokenizer) if shape == "lstm" else make_policy(shape)
    generator, requests = LocalGenerator(replace(runtime, dtype="bfloat16")), make_requests(["12+34=", "a"], k=3)
    ahead = asyncio.run(generator.generate(policy, requests, Sampling(max_tokens=6)))
    monkeypatch.setattr("loopwise.generate.local.twin_of", lambda module, linear: module)
    assert asyncio.run(generator.generate(policy, requests, Sampling(max_tokens=6))) == ahead


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_gaps_are_closed_from_the_end(going: list[bool]) -> None:
    kept = closed_up(np.array(going)).tolist()
    assert sorted(kept) == [place for place, goes in enumerate(going) if goes]
    assert all(place == new or place >= len(kept) for new, place in enumerate(kept))
