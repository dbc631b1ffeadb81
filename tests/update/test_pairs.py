"""Learning from pairs: which samples make them, what is learned of them, and where a round goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.update.scored import GROUPS, PROBLEMS, Rollouts, scored

from loopwise.config.blocks import OptimizerConfig
from loopwise.config.methods import (
    DPOConfig,
    IPOConfig,
    MarginConfig,
    PairingConfig,
    RRHFConfig,
    SFTConfig,
    SLiCConfig,
    SPINConfig,
)
from loopwise.errors import ConfigError, DataError
from loopwise.models.logps import token_logps
from loopwise.models.policy import Policy
from loopwise.models.tokens import decode
from loopwise.types import Budget, Context, Partial, Preference, Problem
from loopwise.update.comparisons import ComparingConfig, Comparison
from loopwise.update.pairs import LabelledPairs, Pairs, compare, compare_with_gold, encode_pairs

METHODS: dict[str, type[Any]] = {
    "margin": MarginConfig,
    "rrhf": RRHFConfig,
    "slic": SLiCConfig,
    "dpo": DPOConfig,
    "ipo": IPOConfig,
    "spin": SPINConfig,
}


def config(method: str, **changes: Any) -> ComparingConfig:
    common = {"steps": 2, "batch_size": 2, "tokens_per_pass": 24, "optimizer": OptimizerConfig(lr=1e-2)}
    found: ComparingConfig = METHODS[method](**common | changes)
    return found


def texts(policy: Policy, comparisons: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """Prompt and completions of each comparison."""
    return [
        tuple(decode(policy, [one.rows[0].prompt_ids, *(row.token_ids for row in one.rows)])) for one in comparisons
    ]


def paired(policy: Policy, group: Sequence[tuple[str, float | None]], **pairing: Any) -> list[tuple[str, ...]]:
    """What one problem's samples are paired to."""
    found = compare(policy, scored(policy, [group]), config("dpo", pairs=PairingConfig(**pairing)))
    return [pair[1:] for pair in texts(policy, found.comparisons)]


def test_the_best_is_chosen_over_the_worst(policy: Policy) -> None:
    found = compare(policy, scored(policy, GROUPS), config("dpo"))
    assert texts(policy, found.comparisons) == [("0+1=", "1", "77"), ("1+1=", "2", "23")]
    assert found.chosen == ("0/0", "1/0")


def test_every_pair_can_be_taken(policy: Policy) -> None:
    group = [("a", 0.5), ("b", 1.0), ("c", 0.0), ("d", 0.5)]
    assert paired(policy, group, take="all") == [("b", "a"), ("b", "d"), ("b", "c"), ("a", "c"), ("d", "c")]
    assert paired(policy, group, take="all", least_gap=0.5) == [("b", "c")]
    assert paired(policy, group, take="all", least_gap=1.0) == []
    assert paired(policy, group, least_gap=0.9) == [("b", "c")]


@pytest.mark.parametrize("take", ["extremes", "all"])
def test_ties_equal_texts_and_unjudged_samples_make_no_pair(policy: Policy, take: str) -> None:
    assert paired(policy, [("a", 0.1 + 0.2), ("b", 0.3)], take=take) == [], "rounding is no difference"
    assert paired(policy, [("a", 1.0), ("a", 0.0)], take=take) == [], "a completion is not better than itself"
    assert paired(policy, [("a", 1.0), ("b", None)], take=take) == []
    assert paired(policy, [("b", None), ("a", 1.0), ("c", 0.0)], take=take) == [("a", "c")]
    assert paired(policy, [("a", None), ("a", 1.0), ("c", 0.0)], take=take) == [("a", "c")]
    assert paired(policy, [("a", 1.0)], take=take) == []


def test_a_judge_of_pairs_is_believed(policy: Policy) -> None:
    rollout = scored(policy, GROUPS, Preference(2, 0, weight=0.5), Preference(5, 6), Preference(1, 2))
    found = compare(policy, rollout, config("dpo"))
    assert texts(policy, found.comparisons) == [("0+1=", "7", "1"), ("0+1=", "77", "7"), ("1+1=", "2", "23")]
    assert [one.weight for one in found.comparisons] == [0.5, 1.0, 1.0]
    assert found.chosen == ("0/2", "0/1", "1/0")


def test_rrhf_ranks_whole_problems(policy: Policy) -> None:
    group = [("a", 0.5), ("b", 1.0), ("c", None), ("d", 0.5), ("b", 0.0)]
    found = compare(policy, scored(policy, [group, [("a", 1.0), ("b", 1.0)]]), config("rrhf"))
    assert texts(policy, found.comparisons) == [("0+1=", "b", "a", "d")]
    assert found.comparisons[0].rewards == (1.0, 0.5, 0.5)
    assert found.chosen == ("0/1",)


def test_spin_prefers_the_labelled_completion_to_every_other(policy: Policy) -> None:
    groups = [[("1", 0.0), ("7", 1.0), ("8", None), ("7", 0.0)], [("2", 1.0)]]
    found = compare_with_gold(policy, scored(policy, groups), config("spin"), lambda problem: problem.columns["answer"])
    assert texts(policy, found.comparisons) == [("0+1=", "1", "7"), ("0+1=", "1", "8")]
    assert found.chosen == ()


def test_spin_leaves_out_problems_whose_labelled_completion_does_not_fit(policy: Policy) -> None:
    short = config("spin", max_length=6, too_long="drop")
    gold = {"p0": "1" * 9, "p1": "2"}
    found = compare_with_gold(
        policy, scored(policy, [[("1", None)], [("3", None)]]), short, lambda problem: gold[problem.id]
    )
    assert texts(policy, found.comparisons) == [("1+1=", "2", "3")]


def make(method: str, rounds: int = 1, **changes: Any) -> Pairs:
    return Pairs(config(method, **changes), 3, rounds, lambda problem: problem.columns["answer"])


def likelihoods(policy: Policy, pairs: Sequence[Comparison]) -> np.ndarray:
    """Mean log-probability of a token, ``[K, 2]``: of each comparison's best and worst completion."""
    with torch.no_grad():
        found = [token_logps(policy.weights.module, [one.rows[0], one.rows[-1]]) for one in pairs]
    return np.array([((logps * mask).sum(1) / mask.sum(1)).tolist() for logps, mask in found])


@pytest.mark.parametrize("method", METHODS)
def test_two_steps_of_each_method(policy: Policy, context: Context, method: str) -> None:
    steps: list[dict[str, float]] = []
    kept: list[str] = []
    watched = replace(
        context, reference=policy, record=lambda step, metrics: steps.append(dict(metrics)), keep=kept.extend
    )
    updated = make(method)(policy, None, PROBLEMS, Rollouts(scored(policy, GROUPS)), watched)
    assert updated.candidate.id != policy.id
    names = {"loss", "grad_norm", "learning_rate", "logps/chosen", "logps/rejected"}
    if issubclass(METHODS[method], DPOConfig):
        names |= {f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")}
        assert steps[0]["rewards/margins"] == pytest.approx(0, abs=1e-5), (
            "before the first step policy and reference are one"
        )
    assert [set(metrics) for metrics in steps] == [names, names]
    assert all(np.isfinite(list(metrics.values())).all() for metrics in steps)
    assert updated.metrics["pairs"] == (3 if method == "spin" else 2)
    assert updated.metrics["steps"] == 2
    assert set(updated.metrics) == {"pairs", "steps", "skipped", *names}
    for name in names:
        assert updated.metrics[name] == pytest.approx((steps[0][name] + steps[1][name]) / 2), name
    assert kept == ([] if method == "spin" else ["0/0", "1/0"])


@pytest.mark.parametrize("method", METHODS)
def test_each_method_raises_the_chosen_over_the_rejected(policy: Policy, context: Context, method: str) -> None:
    rollout = scored(policy, [[("77", 1.0), ("1", 0.0)], [("23", 1.0), ("2", 0.0)]])
    update = make(method, steps=25)
    if method == "spin":
        update = replace(update, gold=lambda problem: {"p0": "77", "p1": "23"}[problem.id])
    pairs = update._found(policy, rollout).comparisons
    candidate = update(policy, None, PROBLEMS, Rollouts(rollout), replace(context, reference=policy)).candidate
    before, after = likelihoods(policy, pairs), likelihoods(candidate, pairs)
    assert np.diff(after).max() < 0, "every chosen completion is the likelier one now"
    assert (np.diff(after) < np.diff(before)).all()


@pytest.mark.parametrize("method", ["margin", "slic", "rrhf"])
def test_imitation_holds_the_chosen_up(policy: Policy, context: Context, method: str) -> None:
    rollout = scored(policy, [[("77", 1.0), ("1", 0.0)], [("23", 1.0), ("2", 0.0)]])
    ends = []
    for weight in (0.0, 5.0):
        update = make(method, steps=15, sft_weight=weight)
        candidate = update(policy, None, PROBLEMS, Rollouts(rollout), context).candidate
        ends.append(likelihoods(candidate, update._found(policy, rollout).comparisons)[:, 0].mean())
    assert ends[1] > ends[0] + 0.1


@pytest.mark.parametrize("state", [None, "learned"])
def test_a_round_without_a_pair_changes_nothing(policy: Policy, context: Context, state: str | None) -> None:
    updated = make("dpo")(policy, state, PROBLEMS, Rollouts(scored(policy, [[("1", 1.0), ("2", 1.0)]])), context)
    assert updated.candidate is policy
    assert updated.state is state
    assert updated.metrics == {"pairs": 0}


def test_a_round_goes_through_its_pairs_in_epochs(
    policy: Policy, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    from loopwise.update import pairs

    inner = pairs.compared

    def watched(comparisons: Sequence[Comparison], *rest: Any) -> Any:
        seen.extend(texts(policy, [one])[0][2] for one in comparisons)
        return inner(comparisons, *rest)

    monkeypatch.setattr(pairs, "compared", watched)
    rollout = scored(policy, [[("a", 1.0), *((letter, 0.0) for letter in "bcdef")]])
    update = make("slic", rounds=2, steps=5, batch_size=2, pairs=PairingConfig(take="all"))
    first = update(policy, None, PROBLEMS, Rollouts(rollout), context)
    assert sorted(seen[:5]) == sorted(seen[5:]) == list("bcdef")
    order = list(seen)
    seen.clear()
    update(first.candidate, first.state, PROBLEMS, Rollouts(rollout), replace(context, round=2))
    assert sorted(seen[:5]) == list("bcdef"), "each round begins with a whole epoch"
    assert seen != order


def test_the_forward_passes_of_the_reference_are_booked(policy: Policy, context: Context) -> None:
    spent: dict[str, Budget] = {}
    rollout = scored(policy, [[("77", 1.0), ("1", 0.0)]])
    for method in ("slic", "dpo"):
        booked: list[Budget] = []
        watched = replace(context, reference=policy, spend=booked.append)
        make(method, steps=1)(policy, None, PROBLEMS, Rollouts(rollout), watched)
        spent[method] = sum(booked, Budget())
    parameters = policy.weights.parameter_count
    # A prompt of 4, completions of 3 and 2 with their ends; the same pair twice is read once.
    assert spent["slic"] == Budget(tokens_trained=9, flops=6.0 * parameters * 9)
    assert spent["dpo"] == Budget(tokens_trained=9, flops=8.0 * parameters * 9)


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize("method", ["rrhf", "dpo"])
def test_a_round_stopped_in_the_middle_ends_the_same(
    make_policy: Callable[..., Policy], context: Context, stop: int, method: str
) -> None:
    policy = make_policy(resid_pdrop=0.1)
    update = make(method, rounds=2, steps=4)
    context = replace(context, reference=policy)
    first = update(policy, None, PROBLEMS, Rollouts(scored(policy, GROUPS)), context)
    rollout = scored(policy, [*GROUPS[:2], [("4", 0.5), ("3", 0.1)]])
    partials: dict[int, Partial] = {}
    second = replace(context, round=2, checkpoint=lambda step, go: partials.setdefault(step, Partial(step, *go())))
    whole = update(first.candidate, first.state, PROBLEMS, Rollouts(rollout), second)
    resumed = replace(second, partial=partials[stop])
    again = update(first.candidate, first.state, PROBLEMS, Rollouts(rollout), resumed)
    assert again.candidate.id == whole.candidate.id
    assert again.metrics == whole.metrics


def test_needs_say_whether_another_model_is_compared_with() -> None:
    assert make("dpo").needs == make("spin").needs == {"weights", "text", "reference"}
    assert make("dpo", reference="adapters_off").needs == make("rrhf").needs == {"weights", "text"}
    assert LabelledPairs(config("ipo"), (), 1).needs == {"weights", "reference"}


def test_a_missing_reference_or_label_is_an_error(policy: Policy, context: Context) -> None:
    with pytest.raises(ConfigError, match=r'reference \("base"\)'):
        make("dpo")(policy, None, PROBLEMS, Rollouts(scored(policy, GROUPS)), context)
    with pytest.raises(ConfigError, match="spin prefers labelled completions"):
        replace(make("spin"), gold=None)(policy, None, PROBLEMS, Rollouts(scored(policy, GROUPS)), context)


LABELLED = [Problem("short", "1+1="), Problem("long", "1+2="), Problem("full", "1" * 9)]
CHOSEN, REJECTED = ["2", "3", "1"], ["5", "4" * 9, "2"]


def test_pairs_that_fit_are_encoded_and_counted(policy: Policy) -> None:
    pairs, encoding = encode_pairs(policy, LABELLED[:2], CHOSEN[:2], REJECTED[:2], SFTConfig())
    assert texts(policy, pairs) == [("1+1=", "2", "5"), ("1+2=", "3", "444444444")]
    # Prompts of 4, completions of 1, 1, 1 and 9, each with its end.
    assert (encoding.places, encoding.rows, encoding.tokens, encoding.trained_tokens) == ((0, 1), 2, 32, 16)
    assert (encoding.dropped, encoding.truncated, encoding.without_end_of_text) == (0, 0, 0)


@pytest.mark.parametrize(
    ("too_long", "kept", "dropped", "truncated"), [("drop", [0], 2, 0), ("truncate", [0, 1], 1, 1)]
)
def test_a_pair_goes_by_the_side_that_is_too_long(
    policy: Policy, too_long: str, kept: list[int], dropped: int, truncated: int
) -> None:
    pairs, encoding = encode_pairs(policy, LABELLED, CHOSEN, REJECTED, SFTConfig(max_length=9, too_long=too_long))
    assert encoding.places == tuple(kept)
    assert (encoding.rows, encoding.dropped, encoding.truncated) == (len(kept), dropped, truncated)
    assert encoding.without_end_of_text == truncated
    assert max(row.total_tokens for pair in pairs for row in pair.rows) <= 9


def test_pairs_that_are_too_long_are_named(policy: Policy) -> None:
    with pytest.raises(DataError, match="row long: 14 tokens, over the limit of 9"):
        encode_pairs(policy, LABELLED[:2], CHOSEN[:2], REJECTED[:2], SFTConfig(max_length=9))
    half = [Problem("a", "1+1="), Problem("b", "1+1=")]
    with pytest.raises(DataError, match="none of 2 is left, because each has a side that is too long or empty"):
        encode_pairs(policy, half, ["2", "3" * 9], ["2" * 9, "3"], SFTConfig(max_length=9, too_long="drop"))
    assert encode_pairs(policy, [], [], [], SFTConfig())[0] == ()


def test_labelled_pairs_are_learned_in_the_order_of_fine_tuning(policy: Policy, context: Context) -> None:
    pairs, _ = encode_pairs(policy, LABELLED[:2], CHOSEN[:2], REJECTED[:2], SFTConfig())
    update = LabelledPairs(config("dpo", steps=25, tokens_per_pass=4096), pairs, 1)
    with_reference = replace(context, reference=policy)
    candidate = update(policy, None, (), None, with_reference).candidate  # type: ignore[arg-type]
    assert (np.diff(likelihoods(candidate, pairs)) < np.diff(likelihoods(policy, pairs)) - 0.5).all()
    changed = replace(update, changed=lambda place, epoch: pairs[1])
    [unit] = changed.batch(0, 0, None).micro_batches
    assert unit.comparisons == (pairs[1], pairs[1])
    assert {one for unit in update.batch(0, 0, None).micro_batches for one in unit.comparisons} == set(pairs)


def test_the_longest_labelled_pairs_come_first(policy: Policy) -> None:
    pairs, _ = encode_pairs(policy, LABELLED[:2], CHOSEN[:2], REJECTED[:2], SFTConfig())
    one = LabelledPairs(config("slic", batch_size=1), pairs, 1).longest(None)
    assert [pair for unit in one.micro_batches for pair in unit.comparisons] == [pairs[1]]
    three = LabelledPairs(config("slic", batch_size=3), pairs, 1).longest(None)
    assert sum(len(unit.comparisons) for unit in three.micro_batches) == 3
