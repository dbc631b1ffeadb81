"""Scores of tokens against log_softmax taken by hand, row by row; whole and in parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.models.foreign import foreign
from tests.models.tiny import tiny_lstm

from loopwise.data.windows import Windows
from loopwise.errors import DataError, ModelError
from loopwise.models import logps as module_of_logps
from loopwise.models.heads import logits_of
from loopwise.models.logps import TokenRow, read_states, score_tokens, token_logps, window_logps
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


def test_double_logits_are_scored_in_double(policy: Policy) -> None:
    model = policy.weights.trainable().double()
    scores = score_tokens(model, RAGGED, 0.7, entropies=True)
    assert scores.logps.dtype == scores.entropies.dtype == torch.float64
    for place, row in enumerate(RAGGED[:2]):
        expected = by_hand(model, row, 0.7)
        torch.testing.assert_close(scores.logps[place, : len(expected)], expected, atol=1e-12, rtol=0)


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


SHARED = [
    TokenRow((5, 6, 7, 8), (11, 12, 1)),
    TokenRow((20,), (21, 22, 23, 24)),
    TokenRow((5, 6, 7, 8), (13, 14, 15, 16, 1), (1, 1, 0, 0, 1)),
    TokenRow((5, 6, 7, 8), (17,)),
]


@pytest.fixture(params=["shared", "padded"])
def module(request: pytest.FixtureRequest, make_policy: Callable[..., Policy], tokenizer: Any) -> torch.nn.Module:
    """A model that reads prompts once, and one that cannot."""
    policy = make_policy("llama") if request.param == "shared" else tiny_lstm(tokenizer)
    return policy.weights.trainable()


def distributions(model: torch.nn.Module, row: TokenRow) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([[*row.prompt_ids, *row.token_ids]]), use_cache=False).logits[0]
    return logits[len(row.prompt_ids) - 1 : -1]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_entropies_equal_those_by_hand(module: torch.nn.Module, temperature: float) -> None:
    scores = score_tokens(module, SHARED, temperature, entropies=True)
    assert scores.entropies is not None
    torch.testing.assert_close(scores.logps, token_logps(module, SHARED, temperature)[0])
    for place, row in enumerate(SHARED):
        by_torch = torch.distributions.Categorical(logits=distributions(module, row) / temperature).entropy()
        expected = by_torch * torch.tensor(row.loss_mask or [1] * len(row.token_ids))
        torch.testing.assert_close(scores.entropies[place, : len(expected)], expected, atol=2e-5, rtol=0)
        assert not scores.entropies[place, len(expected) :].any()


def test_states_predict_the_tokens(module: torch.nn.Module) -> None:
    scores, read = score_tokens(module, SHARED, states=True), read_states(module, SHARED)
    assert scores.states is not None
    assert torch.equal(scores.states, read.values)
    assert torch.equal(scores.mask, read.mask)
    assert not read.values[read.mask == 0].any()
    logits = logits_of(module, read.values[read.mask > 0])
    expected = torch.cat([distributions(module, row)[np.array(row.loss_mask or [1]) > 0] for row in SHARED[2:3]])
    torch.testing.assert_close(logits[7:10], expected, atol=2e-5, rtol=0)


def test_scores_in_parts_equal_the_whole(module: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def everything() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        module.zero_grad()
        scores = score_tokens(module, SHARED, 0.8, entropies=True)
        weights = torch.linspace(-1, 1, scores.logps.numel()).view_as(scores.logps)
        ((scores.logps + 2 * scores.entropies) * weights).sum().backward()
        return [scores.logps, scores.entropies], [parameter.grad.clone() for parameter in module.parameters()]

    scores, gradients = everything()
    most = 3 * module.config.vocab_size
    seen: list[int] = []
    original = module_of_logps._score

    def counted(logits: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
        seen.append(logits.numel())
        return original(logits, *rest)

    monkeypatch.setattr(module_of_logps, "LOGITS_AT_ONCE", most)
    monkeypatch.setattr(module_of_logps, "_score", counted)
    in_parts, their_gradients = everything()
    assert max(seen) == most
    assert len(seen) == 8, "eleven tokens in four parts, read again for the gradient"
    torch.testing.assert_close(in_parts, scores)
    torch.testing.assert_close(their_gradients, gradients, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gemma2", {"final_logit_softcapping": 5.0}),
        ("cohere", {"logit_scale": 0.25}),
        ("granite", {"logits_scaling": 8.0}),
        ("opt", {}),
    ],
)
def test_logits_of_states_are_the_models_own(kind: str, changes: dict[str, Any]) -> None:
    """Also where the forward pass scales or caps what its output layer gives, and where logits are small."""
    for width in (0.02, 0.2):
        model = foreign(kind, initializer_range=width, **changes).train()
        read = read_states(model, SHARED)
        found = logits_of(model, read.values[read.mask > 0])
        counted = [np.array(row.loss_mask or [1] * len(row.token_ids)) > 0 for row in SHARED]
        expected = torch.cat(
            [distributions(model, row)[mask] for row, mask in zip(SHARED, counted, strict=True)]
        ).detach()
        torch.testing.assert_close(found, expected, atol=2e-5 * max(1.0, float(expected.abs().max())), rtol=0)
        found.sum().backward()
        assert model.get_output_embeddings().weight.grad.isfinite().all()


def test_a_hidden_output_layer_is_scored_whole_or_refused(
    make_policy: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_policy("llama").weights.trainable()
    expected = token_logps(model, SHARED)[0]
    monkeypatch.setattr(type(model), "get_output_embeddings", lambda self: None)
    monkeypatch.setattr(module_of_logps, "LOGITS_AT_ONCE", 1)
    torch.testing.assert_close(token_logps(model, SHARED)[0], expected)
    with pytest.raises(ModelError, match="get_output_embeddings"):
        read_states(model, SHARED)
    with pytest.raises(ModelError, match="output layer"):
        logits_of(model, torch.zeros(1, 32))


def test_a_row_without_a_prompt_is_refused(policy: Policy) -> None:
    with pytest.raises(DataError, match=r"row 1 has no prompt.*beginning-of-text"):
        token_logps(policy.weights.module, [TokenRow((3,), (4,)), TokenRow((), (4, 5))])


def test_rows_of_which_nothing_counts(module: torch.nn.Module) -> None:
    logps, mask = token_logps(module, [TokenRow((3, 4), (5, 6), (0, 0))])
    assert logps.tolist() == mask.tolist() == [[0.0, 0.0]]
    logps.sum().backward()


@pytest.mark.parametrize("shape", ["gpt2", "llama", "qwen3"])
def test_bfloat16_trees_are_close_to_fp32(make_policy: Callable[..., Policy], runtime: Runtime, shape: str) -> None:
    model = make_policy(shape).weights.trainable()
    exact = score_tokens(model, SHARED, entropies=True, states=True)
    with replace(runtime, dtype="bfloat16").autocast():
        found = score_tokens(model, SHARED, entropies=True, states=True)
    assert found.logps.dtype == found.entropies.dtype == torch.float32
    torch.testing.assert_close(found.logps, exact.logps, atol=0.3, rtol=0.1)
    (found.logps.sum() + found.entropies.sum()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
