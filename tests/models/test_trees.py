"""Prefix trees in one row against the same rows padded, in every model that can read them and some that cannot."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.models.foreign import FOREIGN, foreign
from tests.models.tiny import tiny_lstm

from loopwise.models import forest as forests
from loopwise.models import tree_attention
from loopwise.models.forest import Forest, Stretch, Tree
from loopwise.models.logps import TokenRow, score_tokens
from loopwise.models.policy import Policy
from loopwise.models.tree_attention import TreeMask
from loopwise.models.trees import Layout, lay_out, padded_layout, tree_layout, why_not_shared

CPU = torch.device("cpu")
FIRST, SECOND, THIRD = (5, 6, 7, 8, 9), (10, 11, 12, 13, 14), (20, 21, 22, 23, 24, 25, 26, 27)
ROWS = {
    "equal": [TokenRow(prompt, (start, 31, 32, 1)) for prompt in (FIRST, SECOND) for start in (33, 34, 35)],
    "ragged": [
        TokenRow(FIRST, (11, 12, 1)),
        TokenRow(THIRD, (13,)),
        TokenRow(FIRST, (14, 15, 16, 17, 18, 19, 1)),
        TokenRow((30,), (31, 32, 33)),
        TokenRow(SECOND, (33, 34)),
        TokenRow(THIRD, (33, 34, 35, 36), (0, 1, 1, 0)),
        TokenRow(FIRST, (11,)),
        TokenRow((30, 31), (32, 33, 34, 35, 1)),
        TokenRow(SECOND, (33, 34, 1), (1, 0, 1)),
    ],
    "one prompt": [TokenRow(THIRD, (30 + place, 1)) for place in range(4)],
    "no prompt twice": [TokenRow((place, 3), tuple(range(4, 4 + 3 * place))) for place in range(1, 4)],
}


def counted(rows: list[TokenRow]) -> np.ndarray:
    found = np.zeros((len(rows), max(len(row.token_ids) for row in rows)), dtype=bool)
    for place, row in enumerate(rows):
        found[place, : len(row.token_ids)] = True if row.loss_mask is None else np.array(row.loss_mask, dtype=bool)
    return found


def gradients(model: Any, layout: Layout) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The logits of a layout, and the gradients of a sum of them with fixed weights."""
    model.zero_grad()
    logits = layout.logits(model)
    (logits * torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)).sum().backward()
    return logits.detach(), [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.fixture(params=["merged", "apart", "masked"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Attention in few padded calls, in one call for each size, and under a mask as devices other than this have it."""
    if request.param == "apart":
        monkeypatch.setattr(forests, "_SMALL", 0)
        monkeypatch.setattr(forests, "_WASTE", 1.0)
    if request.param == "masked":
        monkeypatch.setattr(
            tree_attention._MergedAttention,
            "apply",
            lambda query, key, value, *rest: tree_attention._masked_attention([query, key, value], *rest, 0.0),
        )
    return str(request.param)


@pytest.mark.parametrize("shape", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_trees_equal_padded_rows(
    make_policy: Callable[..., Policy], way: str, shape: str, rows: list[TokenRow]
) -> None:
    for dtype, close, steep in ((torch.float32, 1e-5, 1e-4), (torch.float64, 1e-9, 1e-6)):
        if way != "merged" and dtype == torch.float32:
            continue
        model = make_policy(shape).weights.trainable().to(dtype)
        assert why_not_shared(model) is None
        expected, steps = gradients(model, padded_layout(rows, counted(rows), CPU))
        found, ours = gradients(model, tree_layout(rows, counted(rows), CPU))
        torch.testing.assert_close(found, expected, atol=close * float(expected.abs().max()), rtol=0)
        for mine, theirs in zip(ours, steps, strict=True):
            # Llama's norms and rotations are computed in fp32, whatever the weights are.
            bound = 1e-9 if dtype == torch.float64 and shape == "gpt2" else steep
            torch.testing.assert_close(mine, theirs, atol=bound * float(theirs.abs().max()), rtol=0)


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_a_prompt_is_read_once_and_nothing_is_padded(rows: list[TokenRow]) -> None:
    layout = tree_layout(rows, counted(rows), CPU)
    prompts = {row.prompt_ids for row in rows}
    assert layout.input_ids.shape == (1, sum(map(len, prompts)) + sum(len(row.token_ids) - 1 for row in rows))


def test_a_prompt_too_short_to_pay_is_read_by_every_row() -> None:
    rows = [TokenRow((5,), tuple(range(6, 36)))] * 4
    assert tree_layout(rows, counted(rows), CPU).input_ids.shape == (1, 4 * 30)


def test_the_mask_lets_tokens_see_their_stem_and_branch() -> None:
    forest = Forest((Tree(Stretch(0, 2), (Stretch(3, 2), Stretch(5, 1))), Tree(Stretch(2, 1))), 6, CPU)
    assert forest.dense(torch.arange(6)).int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 1, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("small", [0, 2**16])
def test_attention_against_finite_differences(monkeypatch: pytest.MonkeyPatch, small: int) -> None:
    monkeypatch.setattr(forests, "_SMALL", small)
    trees = (Tree(Stretch(0, 2), (Stretch(5, 2), Stretch(7, 1))), Tree(Stretch(2, 3), (Stretch(8, 3),)))
    rows = torch.randn(3, 1, 2, 11, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inputs = [row.requires_grad_() for row in rows.unbind()]
    forest = Forest(trees, 11, CPU)
    dense = forest.dense(torch.arange(11))
    expected = F.scaled_dot_product_attention(*inputs, attn_mask=dense, scale=0.7)

    def attend(*inputs: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(*inputs, attn_mask=TreeMask.of(forest), scale=0.7)

    torch.testing.assert_close(attend(*inputs), expected)
    assert torch.autograd.gradcheck(attend, inputs, fast_mode=True)


def test_attention_with_grouped_queries_and_dropout() -> None:
    forest = Forest((Tree(Stretch(0, 3), (Stretch(3, 2), Stretch(5, 3))),), 8, CPU)
    query, key, value = torch.randn(1, 4, 8, 4), torch.randn(1, 2, 8, 4), torch.randn(1, 2, 8, 4)
    dense = forest.dense(torch.arange(8))
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=dense, enable_gqa=True)
    mask = TreeMask.of(forest)
    torch.testing.assert_close(
        F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True), expected
    )
    assert (mask.calls, mask.unfolded) == (1, False)
    dropped = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=0.5, enable_gqa=True)
    assert not torch.allclose(dropped, expected)


def test_any_other_use_of_the_mask_gets_its_entries() -> None:
    mask = TreeMask.of(Forest((Tree(Stretch(0, 2)),), 2, CPU))
    assert (mask.shape, mask.dtype, mask.ndim, mask.unfolded) == ((1, 1, 2, 2), torch.bool, 4, False)
    assert (~mask)[0, 0].tolist() == [[False, True], [False, False]]
    assert mask.unfolded


def test_models_that_cannot_share_say_why_and_are_padded(make_policy: Callable[..., Policy], tokenizer: Any) -> None:
    eager = make_policy("llama", attn_implementation="eager").weights.module
    lstm = tiny_lstm(tokenizer).weights.module
    assert 'computed by "eager"' in (why_not_shared(eager) or "")
    assert why_not_shared(lstm) is not None
    for model in (eager, lstm):
        assert lay_out(model, ROWS["ragged"], counted(ROWS["ragged"])).mask is None


@pytest.mark.parametrize("kind", FOREIGN)
def test_architectures_that_share_and_that_do_not_score_alike(kind: str) -> None:
    model, rows = foreign(kind).eval(), ROWS["ragged"]
    shares = {"opt", "gpt_neox", "cohere", "granite"}
    reason = why_not_shared(model)
    assert (reason is None) == (kind in shares), reason
    found = score_tokens(model, rows).logps
    for place, row in enumerate(rows):
        ids = [*row.prompt_ids, *row.token_ids]
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, len(row.prompt_ids) - 1 : -1]
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(row.token_ids)[:, None])[:, 0]
        expected = expected * torch.tensor(row.loss_mask or [1] * len(row.token_ids))
        torch.testing.assert_close(found[place, : len(row.token_ids)], expected, atol=2e-4, rtol=1e-4)


def test_windows_shorter_than_a_row_are_padded(make_policy: Callable[..., Policy]) -> None:
    rows = ROWS["equal"]
    for window, shared in ((8, True), (7, False), (4, False)):
        model = make_policy("mistral", sliding_window=window).weights.module
        assert why_not_shared(model) is None
        assert (lay_out(model, rows, counted(rows)).mask is not None) == shared
        assert (why_not_shared(model, max(row.total_tokens for row in rows)) is None) == shared
    assert why_not_shared(model, 9) == "rows of up to 9 tokens exceed the 4 its attention looks back on"


def test_training_mode_and_dropout_come_back_after_the_check(make_policy: Callable[..., Policy]) -> None:
    model = make_policy("gpt2", attn_pdrop=0.5, resid_pdrop=0.5).weights.trainable()
    model.transformer.h[0].eval()
    before = torch.random.get_rng_state()
    assert why_not_shared(model) is None
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.training
    assert not model.transformer.h[0].attn.training
    assert score_tokens(model, ROWS["ragged"]).logps.isfinite().all()


def test_nothing_of_the_model_changes(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy("llama")
    name, config = policy.id, policy.weights.module.config.to_dict()
    score_tokens(policy.weights.module, ROWS["ragged"])
    again = Policy(type(policy.weights)(policy.weights.module), policy.tokenizer)
    assert again.id == name
    assert policy.weights.module.config.to_dict() == config
    assert policy.weights.module.config._attn_implementation == "sdpa"


def test_threads_do_not_disturb_each_other(make_policy: Callable[..., Policy]) -> None:
    model = make_policy("llama").weights.module
    expected = {name: score_tokens(model, rows, states=True) for name, rows in ROWS.items()}
    wrong: list[str] = []

    def work(name: str) -> None:
        for _ in range(15):
            found = score_tokens(model, ROWS[name], states=True)
            wrong.extend([name] * (not torch.equal(found.logps, expected[name].logps)))

    threads = [threading.Thread(target=work, args=(name,)) for name in ROWS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
