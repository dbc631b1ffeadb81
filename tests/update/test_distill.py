"""On-policy distillation: towards a teacher, token by token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.update.sampled import PROBLEMS, SAMPLING, Sampled

from loopwise.blocks import OptimizerConfig
from loopwise.errors import ConfigError
from loopwise.methods import DistillConfig
from loopwise.models import logps
from loopwise.models.folders import save_policy
from loopwise.models.logps import score_tokens
from loopwise.models.policy import Policy
from loopwise.models.presets import character_tokenizer
from loopwise.runtime import Runtime
from loopwise.types import Context, Updated
from loopwise.update import distill as module
from loopwise.update.distill import Distill, load_teacher
from loopwise.update.online import row_of


def configured(**changes: object) -> DistillConfig:
    return DistillConfig.model_validate(
        {"teacher": "t", "problems_per_step": 2, "optimizer": OptimizerConfig(lr=1e-2, weight_decay=0.0), **changes}
    )


def learn(
    policy: Policy, teacher: Policy, config: DistillConfig, context: Context
) -> tuple[Updated, list[Mapping[str, float]]]:
    steps: list[Mapping[str, float]] = []
    watched = replace(context, record=lambda step, metrics: steps.append(metrics))
    made = Distill(config, 4, 1, SAMPLING, teacher)(policy, None, PROBLEMS, Sampled(context.runtime), watched)
    return made, steps


def test_the_reverse_divergence_is_that_of_the_samples(
    policy: Policy, make_policy: Callable[..., Policy], context: Context
) -> None:
    teacher = make_policy(seed=1)
    scored = Sampled(context.runtime)(policy, PROBLEMS[:2], 4)
    rows = [row_of(scored, place) for place in range(8)]
    assert policy.weights is not None
    assert teacher.weights is not None
    wanted = 0.0
    for row in rows:
        ids = torch.tensor([[*row.prompt_ids, *row.token_ids]])
        start = len(row.prompt_ids) - 1
        own, theirs = (
            one.weights.module(input_ids=ids).logits[0, start:-1].log_softmax(-1)  # type: ignore[union-attr]
            for one in (policy, teacher)
        )
        wanted += float((own.exp() * (own - theirs)).sum())
    _, steps = learn(policy, teacher, configured(), context)
    assert steps[0]["loss"] == pytest.approx(wanted / sum(row.trained_tokens for row in rows), rel=1e-4)


@pytest.mark.parametrize("divergence", [0.0, 0.5, 1.0])
def test_the_student_comes_nearer(
    divergence: float, policy: Policy, make_policy: Callable[..., Policy], context: Context
) -> None:
    teacher = make_policy(seed=1)
    config = configured(divergence=divergence, passes=6)
    made, steps = learn(policy, teacher, config, context)
    _, after = learn(made.candidate, teacher, config, context)
    assert after[0]["loss"] < 0.8 * steps[0]["loss"]


def test_a_teacher_like_oneself_teaches_nothing(policy: Policy, context: Context) -> None:
    _, steps = learn(policy, policy, configured(), context)
    assert steps[0]["loss"] == pytest.approx(0.0, abs=1e-6)


def test_parts_add_up_to_the_whole(
    policy: Policy, make_policy: Callable[..., Policy], context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = make_policy(seed=1)
    _, whole = learn(policy, teacher, configured(), context)
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 5 * policy.tokenizer.vocab_size)
    _, parts = learn(policy, teacher, configured(tokens_per_pass=40), context)
    assert parts[0] == pytest.approx(whole[0], rel=1e-4)
    assert 5 * policy.tokenizer.vocab_size < logps.LOGITS_AT_ONCE


def test_a_teacher_must_read_the_same_tokens(policy: Policy, runtime: Runtime, tmp_path: Path) -> None:
    save_policy(policy, tmp_path / "same")
    assert load_teacher(configured(teacher=str(tmp_path / "same")), policy, runtime).id == policy.id
    save_policy(replace(policy, tokenizer=character_tokenizer("abcdefgh")), tmp_path / "other")
    with pytest.raises(ConfigError, match="another tokenizer"):
        load_teacher(configured(teacher=str(tmp_path / "other")), policy, runtime)


def test_scores_are_of_the_same_rows(policy: Policy, context: Context) -> None:
    scored = Sampled(context.runtime)(policy, PROBLEMS, 4)
    assert policy.weights is not None
    rows = [row_of(scored, place) for place in range(16)]
    with torch.no_grad():
        scores = score_tokens(policy.weights.module, rows)
    for place, sample in enumerate(scored.samples):
        assert sample.logps == pytest.approx(scores.logps[place, : len(sample.token_ids)].tolist(), abs=1e-4)
