"""On-policy distillation: towards a teacher, token by token."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.update.sampled import PROBLEMS, SAMPLING, Sampled

from loopwise.config.blocks import OptimizerConfig
from loopwise.config.methods import DistillConfig
from loopwise.errors import ConfigError
from loopwise.models import logps
from loopwise.models.folders import save_policy
from loopwise.models.logps import score_tokens
from loopwise.models.policy import Policy, Weights
from loopwise.models.presets import character_tokenizer
from loopwise.runtime import Runtime
from loopwise.types import Budget, Context, PromptState, Updated
from loopwise.update.distill import Distill, load_teacher
from loopwise.update.fitting import tokens_read
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
    assert 5 * policy.tokenizer.vocab_size < logps.LOGITS_AT_ONCE
    monkeypatch.setattr(logps, "LOGITS_AT_ONCE", 5 * policy.tokenizer.vocab_size)
    _, parts = learn(policy, teacher, configured(tokens_per_pass=40), context)
    assert parts[0] == pytest.approx(whole[0], rel=1e-4)


def test_a_teacher_must_read_the_same_tokens(policy: Policy, runtime: Runtime, tmp_path: Path) -> None:
    save_policy(policy, tmp_path / "same")
    assert load_teacher(configured(teacher=str(tmp_path / "same")), policy, runtime).id == policy.id
    save_policy(replace(policy, tokenizer=character_tokenizer("abcdefgh")), tmp_path / "other")
    with pytest.raises(ConfigError, match="another tokenizer"):
        load_teacher(configured(teacher=str(tmp_path / "other")), policy, runtime)


def padded(policy: Policy, more: int, scale: float) -> Policy:
    """The same model with ``more`` tokens that nobody knows, of random embeddings."""
    assert policy.weights is not None
    whole = copy.deepcopy(policy.weights.module)
    known = whole.get_input_embeddings().num_embeddings
    whole.resize_token_embeddings(known + more, mean_resizing=False)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        whole.get_input_embeddings().weight[known:].normal_(std=scale)
    return replace(policy, weights=Weights.of(whole))


def test_a_table_padded_to_another_size_changes_nothing(
    policy: Policy, make_policy: Callable[..., Policy], context: Context, runtime: Runtime, tmp_path: Path
) -> None:
    teacher = make_policy(seed=1)
    save_policy(padded(teacher, 20, 0.2), tmp_path / "t")
    larger = load_teacher(configured(teacher=str(tmp_path / "t")), policy, runtime)
    _, plain = learn(policy, teacher, configured(), context)
    _, steps = learn(policy, larger, configured(), context)
    assert steps[0]["loss"] == pytest.approx(plain[0]["loss"], rel=1e-5)


def test_what_the_teacher_cannot_read_is_not_learned_from(
    policy: Policy, make_policy: Callable[..., Policy], context: Context
) -> None:
    student, rollout = padded(policy, 3, 0.2), Sampled(context.runtime)
    known = len(policy.tokenizer)
    readable = {
        sample.id
        for step in range(2)
        for sample in rollout(student, PROBLEMS[2 * step : 2 * step + 2], 4, step=step).samples
        if max(sample.token_ids) < known
    }
    kept: list[str] = []
    still = OptimizerConfig(lr=1e-12, weight_decay=0.0)
    made, _ = learn(student, make_policy(seed=1), configured(optimizer=still), replace(context, keep=kept.extend))
    assert made.candidate.weights is not None
    assert made.candidate.weights.finite
    assert set(kept) == readable
    assert 0 < len(readable) < 16


def test_passes_of_the_teacher_are_booked_at_its_size(
    policy: Policy, make_policy: Callable[..., Policy], context: Context
) -> None:
    teacher, spent = make_policy(seed=1, n_layer=3), list[Budget]()
    learn(policy, teacher, configured(problems_per_step=4), replace(context, spend=spent.append))
    scored = Sampled(context.runtime)(policy, PROBLEMS, 4)
    tokens = tokens_read([row_of(scored, place) for place in range(16)])
    assert policy.weights is not None
    assert teacher.weights is not None
    each = 6.0 * policy.weights.parameter_count + 2.0 * teacher.weights.parameter_count
    assert spent == [Budget(tokens_trained=tokens, flops=each * tokens)]


def test_a_teacher_may_have_another_chat_template(policy: Policy, runtime: Runtime, tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(policy.tokenizer)
    tokenizer.chat_template = "{{ messages }}"
    teacher = replace(policy, tokenizer=tokenizer)
    save_policy(teacher, tmp_path / "t")
    assert load_teacher(configured(teacher=str(tmp_path / "t")), policy, runtime).id == teacher.id != policy.id


def test_a_teacher_must_read_all_that_the_model_writes(
    policy: Policy, make_policy: Callable[..., Policy], runtime: Runtime, tmp_path: Path
) -> None:
    save_policy(Policy(prompt_state=PromptState(system="x")), tmp_path / "prompt")
    with pytest.raises(ConfigError, match=r"prompt has no weights"):
        load_teacher(configured(teacher=str(tmp_path / "prompt")), policy, runtime)
    save_policy(make_policy(n_positions=32), tmp_path / "short")
    with pytest.raises(ConfigError, match="reads 32 tokens at most, and what the model writes may have 48"):
        load_teacher(configured(teacher=str(tmp_path / "short")), policy, runtime)
    save_policy(make_policy(n_positions=64), tmp_path / "long")
    load_teacher(configured(teacher=str(tmp_path / "long")), policy, runtime)


def test_scores_are_of_the_same_rows(policy: Policy, context: Context) -> None:
    scored = Sampled(context.runtime)(policy, PROBLEMS, 4)
    assert policy.weights is not None
    rows = [row_of(scored, place) for place in range(16)]
    with torch.no_grad():
        scores = score_tokens(policy.weights.module, rows)
    for place, sample in enumerate(scored.samples):
        assert sample.logps == pytest.approx(scores.logps[place, : len(sample.token_ids)].tolist(), abs=1e-4)
