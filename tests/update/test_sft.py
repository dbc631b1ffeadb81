"""Supervised fine-tuning."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from loopwise.config.blocks import OptimizerConfig
from loopwise.config.methods import SFTConfig
from loopwise.generate.local import LocalGenerator
from loopwise.models.policy import Policy
from loopwise.runtime import Runtime
from loopwise.types import Budget, Context, Partial, Problem, Request, Sampling, Updated
from loopwise.update.fitting import supervised
from loopwise.update.losses import likelihood_loss
from loopwise.update.rows import labelled_rows
from loopwise.update.sft import SFT

PAIRS = {"1+1=": "2", "2+3=": "five", "a": "bcd", "what is x?": "unknown", "0": ""}
CONFIG = SFTConfig(
    steps=60,
    batch_size=5,
    tokens_per_pass=24,
    optimizer=OptimizerConfig(name="muon", lr=3e-3, matrix_lr=0.02, warmup_steps=5, schedule="linear"),
)


def no_rollout(*_: Any, **__: Any) -> Any:
    raise AssertionError("supervised fine-tuning draws no samples")


def make(policy: Policy, config: SFTConfig, rounds: int = 1) -> SFT:
    problems = [Problem(f"p{place}", prompt) for place, prompt in enumerate(PAIRS)]
    return SFT(config, labelled_rows(policy, problems, list(PAIRS.values()), None), rounds)


def test_five_rows_are_learned_by_heart(
    policy: Policy, context: Context, runtime: Runtime, make_requests: Callable[..., list[Request]]
) -> None:
    updated = make(policy, CONFIG)(policy, None, (), no_rollout, context)
    assert updated.metrics["steps"] == 60
    requests, greedy = make_requests(list(PAIRS)), Sampling(max_tokens=10, temperature=0.0)
    samples = asyncio.run(LocalGenerator(runtime).generate(updated.candidate, requests, greedy))
    assert [sample.text for sample in samples] == list(PAIRS.values())
    assert {sample.finish_reason for sample in samples} == {"stop"}
    before = asyncio.run(LocalGenerator(runtime).generate(policy, requests, greedy))
    assert [sample.text for sample in before] != list(PAIRS.values())


def test_the_policy_handed_in_is_not_touched(policy: Policy, context: Context) -> None:
    before = policy.weights.id
    candidate = make(policy, CONFIG.model_copy(update={"steps": 1}))(policy, None, (), no_rollout, context).candidate
    assert policy.with_module(policy.weights.module).weights.id == before
    assert candidate.weights.id != before
    assert candidate.prompt_state == policy.prompt_state


def test_what_was_done_is_booked_and_recorded(policy: Policy, context: Context) -> None:
    spent: list[Budget] = []
    steps: list[tuple[int, float]] = []
    offered: list[int] = []
    watched = replace(
        context,
        spend=spent.append,
        record=lambda step, metrics: steps.append((step, metrics["loss"])),
        checkpoint=lambda step, progress: offered.append(step),
    )
    config = CONFIG.model_copy(update={"steps": 3})
    update = make(policy, config)
    updated = update(policy, None, (), no_rollout, watched)
    # A batch holds every row once: five rows, five steps of them make an epoch.
    tokens = sum(row.total_tokens for row in update.labelled)
    flops = 6.0 * policy.weights.parameter_count * tokens
    assert spent == [Budget(tokens_trained=tokens, flops=flops)] * 3
    assert [step for step, _ in steps] == offered == [1, 2, 3]
    assert updated.metrics["loss"] == pytest.approx(sum(loss for _, loss in steps) / 3)
    assert set(updated.metrics) == {"loss", "grad_norm", "learning_rate", "steps", "skipped"}


def test_a_prompt_of_several_rows_is_booked_once_however_they_are_cut(policy: Policy) -> None:
    rows = labelled_rows(policy, [Problem("a", "1+1="), Problem("b", "1+1=")], ["2", "10"], None)
    assert [supervised(rows, size).tokens for size in (4096, 1)] == [4 + 2 + 3] * 2


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_a_round_stopped_in_the_middle_ends_the_same(policy: Policy, context: Context, stop: int) -> None:
    update = make(policy, CONFIG.model_copy(update={"steps": 6, "batch_size": 2}))
    partials: dict[int, Partial] = {}
    watched = replace(context, checkpoint=lambda step, go: partials.setdefault(step, Partial(step, *go())))
    whole = update(policy, None, (), no_rollout, watched)
    assert sorted(partials) == [1, 2, 3, 4, 5, 6]
    resumed = update(policy, None, (), no_rollout, replace(context, partial=partials[stop]))
    assert resumed.candidate.id == whole.candidate.id
    assert resumed.metrics == whole.metrics


@pytest.mark.parametrize("stop", [1, 3])
def test_skipped_steps_are_counted_across_a_stop(
    policy: Policy, context: Context, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    steps: list[int] = []

    def loss(logps: torch.Tensor, mask: torch.Tensor, tokens: int) -> torch.Tensor:
        return likelihood_loss(logps, mask, tokens) * (float("nan") if len(steps) in (0, 2) else 1.0)

    monkeypatch.setattr("loopwise.update.fitting.likelihood_loss", loss)
    update = make(policy, CONFIG.model_copy(update={"steps": 4}))
    partials: dict[int, Partial] = {}
    watched = replace(
        context,
        record=lambda step, metrics: steps.append(step),
        checkpoint=lambda step, go: partials.setdefault(step, Partial(step, *go())),
    )
    whole = update(policy, None, (), no_rollout, watched)
    assert whole.metrics["skipped"] == 2
    del steps[stop:]
    resumed = update(policy, None, (), no_rollout, replace(watched, partial=partials[stop]))
    assert resumed.metrics["skipped"] == 2
    assert resumed.candidate.id == whole.candidate.id
    following = update(whole.candidate, whole.state, (), no_rollout, replace(context, round=2))
    assert following.metrics["skipped"] == 0, "each round counts its own"


def test_rounds_go_on_through_the_rows_and_the_schedule(policy: Policy, context: Context) -> None:
    def rounds(config: SFTConfig, count: int) -> tuple[Updated, list[float]]:
        rates: list[float] = []
        update, state, at = make(policy, config, count), None, policy
        for number in range(1, count + 1):
            here = replace(context, round=number, record=lambda step, metrics: rates.append(metrics["learning_rate"]))
            updated = update(at, state, (), no_rollout, here)
            at, state = updated.candidate, updated.state
        return updated, rates

    config = CONFIG.model_copy(update={"batch_size": 2})
    one, rates_of_one = rounds(config.model_copy(update={"steps": 6}), 1)
    three, rates_of_three = rounds(config.model_copy(update={"steps": 2}), 3)
    assert rates_of_three == rates_of_one
    assert three.candidate.id == one.candidate.id
