"""The policy gradient family on a tiny model: what each step does, adds up to, and goes on from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.update.sampled import PROBLEMS, SAMPLING, Sampled

from loopwise.config.blocks import LoraConfig, OptimizerConfig
from loopwise.config.methods import (
    AdvantageConfig,
    DAPOConfig,
    DrGRPOConfig,
    GRPOConfig,
    KLConfig,
    PolicyGradientConfig,
    PPOConfig,
    ReinforceConfig,
    RLOOConfig,
)
from loopwise.models.logps import score_tokens, token_logps
from loopwise.models.lora import with_lora
from loopwise.models.policy import Policy
from loopwise.runtime import Runtime
from loopwise.types import Budget, Context, Partial, Updated
from loopwise.update.fitting import tokens_read
from loopwise.update.online import minibatches, row_of
from loopwise.update.policy_gradient import PolicyGradient
from loopwise.update.ppo import PPO, WithValueHead
from loopwise.update.units import work_units

METHODS: dict[str, type[PolicyGradientConfig]] = {
    "reinforce": ReinforceConfig,
    "rloo": RLOOConfig,
    "grpo": GRPOConfig,
    "dr_grpo": DrGRPOConfig,
    "dapo": DAPOConfig,
    "ppo": PPOConfig,
}
OPTIMIZER = OptimizerConfig(lr=1e-2, weight_decay=0.0)


def update_of(config: PolicyGradientConfig, rounds: int = 1) -> PolicyGradient:
    kind = PPO if isinstance(config, PPOConfig) else PolicyGradient
    return kind(config, samples=6, rounds=rounds, sampling=SAMPLING)  # type: ignore[arg-type]


def configured(method: str, **changes: Any) -> PolicyGradientConfig:
    return METHODS[method](**{"problems_per_step": 2, "optimizer": OPTIMIZER, **changes})


def learn(
    policy: Policy,
    config: PolicyGradientConfig,
    context: Context,
    rollout: Sampled | None = None,
    reference: Policy | None = None,
) -> tuple[Updated, list[Mapping[str, float]]]:
    """A round, and the metrics of its steps."""
    steps: list[Mapping[str, float]] = []
    watched = replace(context, record=lambda step, metrics: steps.append(metrics), reference=reference or policy)
    update = update_of(config)
    made = update(policy, None, PROBLEMS, rollout or Sampled(context.runtime), watched)
    return made, steps


def weights(policy: Policy) -> torch.Tensor:
    assert policy.weights is not None
    return torch.cat([parameter.detach().flatten() for parameter in policy.weights.module.parameters()])


@pytest.mark.parametrize("method", METHODS)
def test_two_steps(method: str, policy: Policy, context: Context) -> None:
    rollout = Sampled(context.runtime)
    spent: list[Budget] = []
    made, steps = learn(policy, configured(method), replace(context, spend=spent.append), rollout)
    assert rollout.steps == [0, 1]
    assert made.candidate.id != policy.id
    assert made.candidate.weights is not None
    assert made.candidate.weights.finite
    assert [set(step) >= {"loss", "grad_norm", "learning_rate"} for step in steps] == [True, True]
    assert made.metrics["steps"] == 2
    assert all(budget.tokens_trained > 0 and budget.flops > 0 for budget in spent)


@pytest.mark.parametrize("method", METHODS)
def test_the_reward_rises(method: str, policy: Policy, context: Context) -> None:
    rollout, update = Sampled(context.runtime), update_of(configured(method, problems_per_step=4), rounds=15)
    here, state = policy, None
    for number in range(1, 16):
        here, state, _ = update(here, state, PROBLEMS, rollout, replace(context, round=number, reference=policy))
    assert np.mean(rollout.rewards[-3:]) > np.mean(rollout.rewards[:3]) + 0.15


def test_the_gradient_of_dr_grpo_is_the_papers(policy: Policy, context: Context) -> None:
    config = configured("dr_grpo", problems_per_step=4)
    scored = Sampled(context.runtime)(policy, PROBLEMS, 6)
    _, [step] = learn(policy, config, context)
    module = policy.trainable_module()
    rewards = scored.feedback.totals.reshape(4, 6)
    advantages = torch.tensor((rewards - rewards.mean(1, keepdims=True)).ravel(), dtype=torch.float32)
    logps, mask = token_logps(module, [row_of(scored, place) for place in range(24)])
    # Equation 2 of Liu et al. 2025 on policy, with their code's divisor: G samples of at most max_tokens each.
    (-(advantages[:, None] * logps * mask).sum() / (24 * SAMPLING.max_tokens)).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
    assert step["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert step["loss"] == pytest.approx(
        float(-(advantages * mask.sum(1)).sum() / (24 * SAMPLING.max_tokens)), abs=1e-6
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_size_of_a_forward_pass_changes_nothing(method: str, policy: Policy, context: Context) -> None:
    extras: dict[str, Any] = {"kl": KLConfig(weight=0.1), "entropy_bonus": 0.01, "passes": 2, "minibatches": 2}
    whole, steps_of_whole = learn(policy, configured(method, tokens_per_pass=4096, **extras), context)
    cut, steps_of_cut = learn(policy, configured(method, tokens_per_pass=16, **extras), context)
    for one, other in zip(steps_of_cut, steps_of_whole, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5)
    # Adam takes steps of full length along gradients that are nothing but rounding: few weights, and not all alike.
    assert (weights(cut.candidate) - weights(whole.candidate)).abs().mean() < 1e-5


def test_what_could_not_be_judged_counts_nowhere(policy: Policy, context: Context) -> None:
    def reward(text: str) -> float | None:
        return None if len(text) % 2 else float("7" in text)

    made, _ = learn(policy, configured("grpo"), context, Sampled(context.runtime, reward))
    assert made.candidate.weights is not None
    assert made.candidate.weights.finite
    kept: list[str] = []
    learn(policy, configured("grpo"), replace(context, keep=kept.extend), Sampled(context.runtime, lambda text: None))
    assert kept == []


def test_ties_teach_nothing(policy: Policy, context: Context) -> None:
    made, steps = learn(policy, configured("dr_grpo"), context, Sampled(context.runtime, lambda text: 1.0))
    assert made.candidate.id == policy.id
    assert [step["grad_norm"] for step in steps] == [0.0, 0.0]


def test_truncated_samples_are_left_out_where_that_is_asked_for(policy: Policy, context: Context) -> None:
    kept: list[str] = []
    watched = replace(context, keep=kept.extend)
    learn(policy, configured("dr_grpo", mask_truncated=True), watched)
    rollout = Sampled(context.runtime)
    whole = [rollout(policy, PROBLEMS[:2], 6)]
    short = {sample.id for scored in whole for sample in scored.samples if sample.finish_reason == "stop"}
    assert {name for name in kept if name.startswith("0/")} == short


@pytest.mark.parametrize("method", ["grpo", "rloo", "ppo"])
def test_a_rollout_used_again_is_clipped(method: str, policy: Policy, context: Context) -> None:
    config = configured(method, passes=4, optimizer=OptimizerConfig(lr=5e-2))
    _, steps = learn(policy, config, context)
    assert steps[0]["clip_ratio/region_mean"] > 0
    assert steps[0]["clip_ratio/region_mean"] == pytest.approx(
        steps[0]["clip_ratio/low_mean"] + steps[0]["clip_ratio/high_mean"]
    )


def test_old_probabilities_are_read_again_where_the_samplers_are_off(policy: Policy, context: Context) -> None:
    class Wrong(Sampled):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            scored = super().__call__(*args, **kwargs)
            off = tuple(replace(s, logps=tuple(logp - 1.0 for logp in s.logps or ())) for s in scored.samples)
            return replace(scored, samples=off)

    config = configured("grpo", passes=2)
    right, _ = learn(policy, config, context)
    wrong, _ = learn(policy, config, context, Wrong(context.runtime))
    assert (weights(wrong.candidate) - weights(right.candidate)).abs().mean() < 1e-5


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_to_the_base_holds_the_policy(estimator: Any, policy: Policy, context: Context) -> None:
    def distance(weight: float) -> float:
        kl = KLConfig(weight=weight, estimator=estimator) if weight else KLConfig()
        config = configured("dr_grpo", problems_per_step=1, kl=kl)
        made, steps = learn(policy, config, context)
        if weight:
            assert steps[0]["kl"] == pytest.approx(0.0, abs=1e-5)
        return float((weights(made.candidate) - weights(policy)).norm())

    assert update_of(configured("dr_grpo", kl=KLConfig(weight=0.1))).needs >= {"reference"}
    assert "reference" not in update_of(configured("dr_grpo")).needs
    assert distance(50.0) != distance(0.0)


def test_adapters_are_compared_with_the_weights_below(policy: Policy, context: Context, runtime: Runtime) -> None:
    adapted = with_lora(policy, LoraConfig(rank=2), runtime)
    config = configured("dr_grpo", kl=KLConfig(weight=0.1, reference="adapters_off"))
    made, steps = learn(adapted, config, context)
    assert [step["kl"] >= 0 for step in steps] == [True, True]
    assert steps[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert steps[1]["kl"] > 0
    assert made.candidate.id != adapted.id


@pytest.mark.parametrize("method", METHODS)
def test_a_round_stopped_in_the_middle_ends_the_same(method: str, policy: Policy, context: Context) -> None:
    config = configured(method, problems_per_step=1, passes=2)
    update = update_of(config, rounds=2)
    partials: dict[int, Partial] = {}
    watched = replace(context, checkpoint=lambda step, go: partials.setdefault(step, Partial(step, *go())))
    whole = update(policy, None, PROBLEMS, Sampled(context.runtime), watched)
    kept: list[str] = []
    rollout = Sampled(context.runtime)
    again = update(policy, None, PROBLEMS, rollout, replace(context, partial=partials[2], keep=kept.extend))
    assert again.candidate.id == whole.candidate.id
    assert again.metrics == whole.metrics
    assert rollout.steps == [0, 1, 2, 3]
    assert len(kept) == len(set(kept)) == 4 * 6
    for one, other in zip(_tensors(again.state), _tensors(whole.state), strict=True):
        assert torch.equal(one, other)


def _tensors(state: Any) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    return [tensor for value in state.values() for tensor in _tensors(value)] if isinstance(state, Mapping) else []


def test_the_value_head_is_remembered(policy: Policy, context: Context) -> None:
    made, steps = learn(policy, configured("ppo"), context)
    head = made.state["memory"]["value_head"]
    assert head["direction"].abs().sum() > 0
    assert steps[0]["value_error"] > 0


def test_clip_without_effect_is_refused() -> None:
    with pytest.raises(ValueError, match="does nothing with one optimizer step"):
        GRPOConfig.model_validate({"clip": {"low": 0.1}})
    with pytest.raises(ValueError, match="value head is the baseline"):
        PPOConfig(advantage=AdvantageConfig(baseline="group"))


def test_what_a_batch_needs(make_policy: Callable[..., Policy]) -> None:
    assert update_of(configured("grpo")).needs == {"weights", "token_ids"}
    assert update_of(configured("grpo", passes=2)).needs == {"weights", "token_ids", "logprobs"}
    assert update_of(configured("ppo")).needs == {"weights", "token_ids"}, "it reads them with the values"
    k1 = KLConfig(weight=0.1, estimator="k1")
    assert update_of(configured("ppo", kl=k1)).needs == {"weights", "token_ids", "logprobs", "reference"}


@pytest.mark.parametrize("method", ["grpo", "dapo"])
def test_kl_in_the_reward_is_not_blown_up_where_rewards_tie(
    method: str, policy: Policy, make_policy: Callable[..., Policy], context: Context
) -> None:
    def norm(weight: float) -> float:
        kl = KLConfig(weight=weight, estimator="k1")
        config = configured(method, problems_per_step=4, kl=kl)
        rollout = Sampled(context.runtime, lambda text: 1.0)
        _, [step] = learn(policy, config, context, rollout, reference=make_policy(seed=5))
        assert step["kl"] > 0
        return step["grad_norm"]

    assert norm(1e-2) == pytest.approx(10 * norm(1e-3), rel=1e-3)
    assert (norm(1e-2) == 0) == (method == "dapo"), "tied problems are left out by dapo"


@pytest.mark.parametrize("method", ["reinforce", "rloo", "grpo", "dr_grpo", "dapo"])
def test_the_entropy_bonus_is_of_a_tokens_mean(method: str, policy: Policy, context: Context) -> None:
    scored = Sampled(context.runtime)(policy, PROBLEMS, 6)
    assert policy.weights is not None
    with torch.no_grad():
        scores = score_tokens(policy.weights.module, [row_of(scored, n) for n in range(24)], entropies=True)
    assert scores.entropies is not None
    advantage = configured(method).advantage.model_copy(update={"drop_tied": False})
    config = configured(method, problems_per_step=4, entropy_bonus=0.5, advantage=advantage)
    _, [step] = learn(policy, config, context, Sampled(context.runtime, lambda text: 1.0))
    assert step["loss"] == pytest.approx(-0.5 * float(scores.entropies.sum() / scores.mask.sum()), rel=1e-4)


def test_the_kl_beside_a_ratio_of_sequences_is_of_a_tokens_mean(
    policy: Policy, make_policy: Callable[..., Policy], context: Context
) -> None:
    config = configured("rloo", problems_per_step=4, kl=KLConfig(weight=0.5))
    rollout = Sampled(context.runtime, lambda text: 1.0)
    _, [step] = learn(policy, config, context, rollout, reference=make_policy(seed=5))
    assert step["loss"] == pytest.approx(0.5 * step["kl"], rel=1e-5)


def test_shares_are_whole_groups_and_never_empty(runtime: Runtime) -> None:
    # Pinned: another version of NumPy must not learn from other minibatches.
    assert minibatches(range(6), 2, runtime, 1, 2, 0) == [[1, 2, 4], [0, 3, 5]]
    assert sorted(minibatches("ab", 8, runtime, 1)) == [["a"], ["b"]]
    assert minibatches("ab", 1, runtime, 1) == [["a", "b"]]
    assert minibatches([], 3, runtime, 1) == []


def test_no_step_is_taken_on_nothing(policy: Policy, context: Context) -> None:
    config = configured("dr_grpo", problems_per_step=3, minibatches=3)
    made, steps = learn(policy, config, context)
    assert made.state["learner"]["steps_done"] == 3 + 1, "the last hand has one problem"
    made, steps = learn(policy, config, context, Sampled(context.runtime, lambda text: None))
    assert made.state["learner"]["steps_done"] == 0
    assert made.candidate.id == policy.id
    assert [dict(step) for step in steps] == [{}, {}]
    assert made.metrics == {"steps": 2}


def test_passes_without_a_gradient_are_booked_once_each(policy: Policy, context: Context) -> None:
    scored = Sampled(context.runtime)(policy, PROBLEMS, 6)
    rows = [row_of(scored, place) for place in range(24)]
    tokens, tried = tokens_read(rows), tokens_read([rows[n] for n in work_units(rows, 8192)[0]])
    assert policy.weights is not None
    parameters = policy.weights.parameter_count

    def flops(method: str, **changes: Any) -> float:
        spent: list[Budget] = []
        config = configured(method, problems_per_step=4, entropy_bonus=1e-6, **changes)
        learn(policy, config, replace(context, spend=spent.append))
        [budget] = spent
        assert budget.tokens_trained == tokens * config.passes
        return budget.flops / (2 * parameters)

    assert flops("grpo") == 3 * tokens
    assert flops("grpo", kl=KLConfig(weight=0.1)) == 4 * tokens
    assert flops("grpo", kl=KLConfig(weight=0.1), passes=2) == 8 * tokens + tried
    assert flops("grpo", kl=KLConfig(weight=0.1, estimator="k1"), passes=2) == 7 * tokens + tried
    head = 3 * 33 / parameters
    assert flops("ppo", passes=2) == pytest.approx((7 + 2 * head) * tokens)


def test_clipped_tokens_are_a_share_of_all(policy: Policy, context: Context) -> None:
    def clipped(bonus: float) -> float:
        config = configured("grpo", passes=2, entropy_bonus=bonus, optimizer=OptimizerConfig(lr=5e-2))
        _, [step, _] = learn(policy, config, context, Sampled(context.runtime, lambda text: float(text[:1] == "7")))
        return step["clip_ratio/region_mean"]

    # With a bonus every sample is read, without one those of no advantage are not.
    assert clipped(0.0) == pytest.approx(clipped(1e-12), rel=1e-6)
    assert clipped(0.0) > 0


def test_values_are_exact_where_products_are_not(policy: Policy) -> None:
    assert policy.weights is not None
    head = WithValueHead(policy.weights.module)
    generator = torch.Generator().manual_seed(0)
    head.direction.data.normal_(generator=generator)
    states = torch.randn(2, 3, 32, generator=generator)
    exact = head.values(states)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head.values(states), exact)
