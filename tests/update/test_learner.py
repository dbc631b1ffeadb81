"""The one place that steps an optimizer: accumulation, schedules, state, clipping, gradients that are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.tiny import tiny_lstm
from torch import nn

from loopwise.config.blocks import OptimizerConfig
from loopwise.models.logps import TokenRow, token_logps
from loopwise.models.policy import Policy
from loopwise.runs.state import read_state, write_state
from loopwise.runtime import Runtime
from loopwise.update.learner import Learner, block_matrices, draws_in_training, rate_share
from loopwise.update.losses import likelihood_loss

RAGGED = [
    TokenRow((5, 6, 7, 8), (9, 1)),
    TokenRow((20,), (21, 22, 23, 24, 25, 1), (1, 1, 0, 0, 1, 1)),
    TokenRow((30, 31), (32, 33, 1)),
    TokenRow((30,), (33,)),
    TokenRow((10, 11, 12), (13, 14, 15, 1)),
]
MUON = OptimizerConfig(name="muon", lr=3e-3, matrix_lr=0.02)
ADAMW = OptimizerConfig(lr=3e-3)


def losses(rows: list[TokenRow]) -> Callable[[nn.Module, list[TokenRow]], torch.Tensor]:
    tokens = sum(row.trained_tokens for row in rows)
    return lambda module, batch: likelihood_loss(*token_logps(module, batch), tokens)


def micro_batches(size: int) -> list[list[TokenRow]]:
    return [RAGGED[start : start + size] for start in range(0, len(RAGGED), size)]


@pytest.mark.parametrize("config", [ADAMW, MUON], ids=["adamw", "muon"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_accumulated_micro_batches_equal_the_whole_batch(
    policy: Policy, runtime: Runtime, config: OptimizerConfig, size: int
) -> None:
    metrics, weights = [], []
    for batches in (micro_batches(len(RAGGED)), micro_batches(size)):
        module = policy.weights.trainable().double()
        learner = Learner(module, config, runtime, total_steps=3)
        metrics.append([learner.step(batches, losses(RAGGED)) for _ in range(3)])
        weights.append([parameter.detach() for parameter in module.parameters()])
    for whole, accumulated in zip(*metrics, strict=True):
        assert accumulated == pytest.approx(whole, rel=1e-5)
    # Adam divides by the root of the squared gradient, which magnifies rounding where gradients are next to nothing.
    for whole, accumulated in zip(*weights, strict=True):
        torch.testing.assert_close(accumulated, whole, atol=1e-4, rtol=1e-4)
    assert metrics[0][2]["loss"] < metrics[0][0]["loss"]


def test_the_loss_is_the_mean_over_trained_tokens() -> None:
    logps = torch.tensor([[-1.0, -2.0, 0.0], [-3.0, -4.0, -5.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    assert likelihood_loss(logps, mask, 4).item() == pytest.approx((1 + 2 + 3 + 5) / 4)


def test_one_adamw_step_by_hand(runtime: Runtime) -> None:
    # The first step moves each weight by the rate against the sign of its gradient, after decoupled decay.
    module = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, -2.0]]))
    learner = Learner(module, OptimizerConfig(lr=0.1, weight_decay=0.01, clip=100.0), runtime, total_steps=1)
    learner.step([torch.tensor([3.0, -5.0])], lambda module, batch: module(batch).sum())
    expected = [1.0 * (1 - 0.1 * 0.01) - 0.1, -2.0 * (1 - 0.1 * 0.01) + 0.1]
    assert module.weight.detach()[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_the_norm_is_reported_before_clipping(runtime: Runtime) -> None:
    seen = {}
    for clip in (1e9, 0.5):
        module = nn.Linear(2, 1, bias=False)
        learner = Learner(module, OptimizerConfig(lr=1e-3, clip=clip), runtime, total_steps=1)
        found: list[torch.Tensor] = []
        for optimizer, _ in learner._optimizers:
            optimizer.register_step_pre_hook(lambda *_, module=module, found=found: found.append(module.weight.grad))
        metrics = learner.step([torch.tensor([3.0, 4.0])], lambda module, batch: module(batch).sum())
        assert metrics["grad_norm"] == pytest.approx(5.0)
        seen[clip] = float(found[0].norm())
    assert seen[1e9] == pytest.approx(5.0)
    assert seen[0.5] == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_skipped(policy: Policy, runtime: Runtime, bad: float) -> None:
    learner = Learner(policy.weights.trainable(), MUON, runtime, total_steps=4)
    learner.step(micro_batches(5), losses(RAGGED))
    weights = [parameter.clone() for parameter in learner.module.parameters()]
    state = learner.state()
    metrics = learner.step(micro_batches(2), lambda module, batch: losses(RAGGED)(module, batch) * bad)
    assert metrics["skipped"] == 1
    assert all(map(torch.equal, learner.module.parameters(), weights))
    for name, entry in learner.state()["moments"].items():
        assert all(torch.equal(value, state["moments"][name][key]) for key, value in entry.items())
    # The next step is an ordinary one: nothing of the bad gradient is left over.
    after = learner.step(micro_batches(5), losses(RAGGED))
    assert "skipped" not in after
    assert math.isfinite(after["grad_norm"])
    assert learner.steps_done == 3


@pytest.mark.parametrize("config", [ADAMW, MUON], ids=["adamw", "muon"])
def test_a_restored_learner_goes_on_bit_for_bit(
    policy: Policy, runtime: Runtime, tmp_path: Path, config: OptimizerConfig
) -> None:
    config = config.model_copy(update={"schedule": "cosine", "warmup_steps": 2})

    def step(learner: Learner) -> dict[str, float]:
        return learner.step(micro_batches(2), losses(RAGGED))

    whole = Learner(policy.weights.trainable(), config, runtime, total_steps=6)
    first = [step(whole) for _ in range(6)]
    begun = Learner(policy.weights.trainable(), config, runtime, total_steps=6)
    for _ in range(3):
        step(begun)
    write_state(tmp_path, begun.state())
    saved = policy.with_module(begun.module)
    step(begun)  # what the first learner does after it was saved must not reach the copy
    resumed = Learner(saved.weights.trainable(), config, runtime, total_steps=6, state=read_state(tmp_path))
    assert [step(resumed) for _ in range(3)] == first[3:]
    assert policy.with_module(resumed.module).id == policy.with_module(whole.module).id
    assert_equal_state(resumed.state(), whole.state())


def assert_equal_state(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours["steps_done"] == theirs["steps_done"]
    assert ours["moments"].keys() == theirs["moments"].keys()
    for name, entry in ours["moments"].items():
        assert entry.keys() == theirs["moments"][name].keys()
        assert all(torch.equal(value, theirs["moments"][name][key]) for key, value in entry.items())


@pytest.mark.parametrize("tied", [True, False])
def test_muon_takes_the_matrices_inside_the_blocks_alone(make_policy: Callable[..., Policy], tied: bool) -> None:
    module = make_policy("llama", tie_word_embeddings=tied).weights.trainable()
    names = {parameter: name for name, parameter in module.named_parameters()}
    chosen = sorted(names[matrix] for matrix in block_matrices(module))
    per_layer = ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"]
    per_layer += [f"self_attn.{letter}_proj" for letter in "koqv"]
    assert chosen == [f"model.layers.{layer}.{name}.weight" for layer in range(2) for name in per_layer]
    gpt2 = make_policy("gpt2").weights.trainable()
    assert len(block_matrices(gpt2)) == 2 * 4, "GPT-2 keeps its matrices in Conv1D layers"


def test_an_lstm_is_left_to_adamw(tokenizer: Any, runtime: Runtime) -> None:
    # Each of its matrices is four gates' in a stack, which no single orthogonal matrix should replace.
    module = tiny_lstm(tokenizer).weights.trainable()
    assert block_matrices(module) == []
    learner = Learner(module, MUON, runtime, total_steps=12)
    found = [learner.step(micro_batches(5), losses(RAGGED))["loss"] for _ in range(12)]
    assert found[-1] < 0.8 * found[0]
    assert learner.state()["moments"].keys() == dict(module.named_parameters()).keys()


def test_frozen_parameters_are_left_alone(policy: Policy, runtime: Runtime) -> None:
    module = policy.weights.trainable()
    frozen = [parameter.requires_grad_(False) for parameter in module.transformer.h[0].parameters()]
    before = [parameter.clone() for parameter in frozen]
    learner = Learner(module, MUON, runtime, total_steps=1)
    assert learner.step(micro_batches(5), losses(RAGGED))["grad_norm"] > 0
    assert all(map(torch.equal, frozen, before))
    assert not any(name.startswith("transformer.h.0.") for name in learner.state()["moments"])
    assert any(name.startswith("transformer.h.1.") for name in learner.state()["moments"])


def test_every_parameter_is_trained_once(make_policy: Callable[..., Policy], runtime: Runtime) -> None:
    module = make_policy("qwen3").weights.trainable()
    learner = Learner(module, MUON, runtime, total_steps=1)
    before = [parameter.clone() for parameter in module.parameters()]
    learner.step(micro_batches(5), losses(RAGGED))
    assert not any(map(torch.equal, module.parameters(), before))
    held = [p for optimizer, _ in learner._optimizers for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held)) == len(list(module.parameters()))


def test_rates_by_hand() -> None:
    def shares(**config: Any) -> list[float]:
        return [rate_share(OptimizerConfig(**config), step, 8) for step in (0, 1, 4, 6, 8, 9)]

    assert shares() == [1] * 6
    assert shares(warmup_steps=4) == [0.25, 0.5, 1, 1, 1, 1]
    assert shares(schedule="linear", final_share=0.1) == pytest.approx([1, 0.875, 0.5, 0.25, 0.1, 0.1])
    assert shares(schedule="linear", final_share=0.0, warmup_steps=2) == pytest.approx([0.5, 0.875, 0.5, 0.25, 0, 0])
    cosines = [0.5 * (1 + math.cos(math.pi * step / 8)) for step in (0, 1, 4, 6, 8, 8)]
    expected = [0.2 + 0.8 * cosine for cosine in cosines]
    assert shares(schedule="cosine", final_share=0.2) == pytest.approx(expected)
    assert expected[2] == pytest.approx(0.6)


def test_the_rate_reaches_every_optimizer(policy: Policy, runtime: Runtime) -> None:
    config = MUON.model_copy(update={"schedule": "linear", "final_share": 0.0})
    learner = Learner(policy.weights.trainable(), config, runtime, total_steps=4)
    reported = [learner.step(micro_batches(5), losses(RAGGED))["learning_rate"] for _ in range(3)]
    assert reported == pytest.approx([3e-3, 0.75 * 3e-3, 0.5 * 3e-3])
    rates = [group["lr"] for optimizer, _ in learner._optimizers for group in optimizer.param_groups]
    assert rates == pytest.approx([0.01, 1.5e-3])


def test_bfloat16_compute_keeps_float32_masters(policy: Policy, runtime: Runtime) -> None:
    learner = Learner(policy.weights.trainable(), MUON, replace(runtime, dtype="bfloat16"), total_steps=20)
    found = [learner.step(micro_batches(5), losses(RAGGED))["loss"] for _ in range(20)]
    assert found[-1] < 0.5 * found[0]
    assert {parameter.dtype for parameter in learner.module.parameters()} == {torch.float32}


DROPOUT = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}


def test_dropout_is_a_function_of_seed_round_and_step(make_policy: Callable[..., Policy], runtime: Runtime) -> None:
    policy = make_policy(**DROPOUT)

    def trained(global_seed: int, *, seed: int = 0, round: int = 1) -> str:
        learner = Learner(policy.weights.trainable(), ADAMW, replace(runtime, seed=seed), total_steps=2, round=round)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(global_seed)
            before = torch.random.get_rng_state()
            for _ in range(2):
                learner.step(micro_batches(2), losses(RAGGED))
            assert torch.equal(torch.random.get_rng_state(), before)
        return policy.with_module(learner.module).id

    assert trained(1) == trained(2)
    assert len({trained(1), trained(1, seed=1), trained(1, round=2)}) == 3


def test_micro_batches_and_steps_drop_differently(make_policy: Callable[..., Policy], runtime: Runtime) -> None:
    policy = make_policy(**DROPOUT)
    learner = Learner(policy.weights.trainable(), OptimizerConfig(lr=1e-30), runtime, total_steps=2)
    seen: list[float] = []

    def loss(module: nn.Module, batch: list[TokenRow]) -> torch.Tensor:
        value = losses(RAGGED)(module, batch)
        seen.append(value.item())
        return value

    for _ in range(2):
        learner.step([RAGGED, RAGGED], loss)
    assert len(set(seen)) == 4


def test_dropout_is_seen_wherever_it_is_kept(make_policy: Callable[..., Policy]) -> None:
    assert not draws_in_training(make_policy("gpt2").weights.module)
    assert not draws_in_training(make_policy("llama").weights.module)
    assert draws_in_training(make_policy("gpt2", embd_pdrop=0.1).weights.module)
    assert draws_in_training(make_policy("llama", attention_dropout=0.1).weights.module)
