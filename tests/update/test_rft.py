"""Rejection-sampling fine-tuning: what is kept, what is pooled, where it starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from tests.update.scored import PROBLEMS, Rollouts, scored

from loopwise.config.blocks import OptimizerConfig
from loopwise.config.methods import RFTConfig
from loopwise.errors import DataError
from loopwise.models.logps import TokenRow
from loopwise.models.policy import Policy
from loopwise.types import Context, Partial, Problem, Scored
from loopwise.update.rft import RFT, select
from loopwise.update.rows import Pool, labelled_rows

CONFIG = RFTConfig(steps=2, batch_size=4, optimizer=OptimizerConfig(lr=1e-2))


def ids(rollout: Scored, **config: Any) -> list[str]:
    places = select(rollout, CONFIG.model_copy(update=config))
    return [rollout.samples[place].id for place in places]


def test_samples_pass_at_the_threshold() -> None:
    rollout = scored(None, [[("a", 1.0), ("b", 0.99), ("c", 1.5)], [("d", 0.0)]])
    assert ids(rollout) == ["0/0", "0/2"]
    assert ids(rollout, threshold=0.99) == ["0/0", "0/1", "0/2"]
    assert ids(rollout, threshold=-1.0) == ["0/0", "0/1", "0/2", "1/0"]


@pytest.mark.parametrize("total", [0.1 + 0.2 + 0.7, 0.7 + 0.2 + 0.1])
def test_the_threshold_forgives_the_rounding_of_sums(total: float) -> None:
    # Both are 1 but for the order of adding; pass@k forgives it too.
    assert ids(scored(None, [[("a", total), ("b", total - 1e-6)]])) == ["0/0"]


def test_masked_samples_never_pass() -> None:
    rollout = scored(None, [[("a", None), ("b", 1.0)]])
    assert ids(rollout) == ["0/1"]
    assert ids(rollout, threshold=-5.0) == ["0/1"]


def test_duplicates_within_a_group_are_kept_once() -> None:
    assert ids(scored(None, [[("a", 1.0), ("a", 1.0), ("b", 1.0)], [("a", 1.0)]])) == ["0/0", "0/2", "1/0"]


def test_tokens_tell_apart_what_texts_do_not(policy: Policy) -> None:
    rollout = scored(policy, [[("2", 1.0), ("2", 1.0), ("2", 1.0)]])
    open_ended = replace(rollout.samples[1], token_ids=rollout.samples[1].token_ids[:-1])
    rollout = replace(rollout, samples=(rollout.samples[0], open_ended, rollout.samples[2]))
    assert ids(rollout) == ["0/0", "0/1"]


def test_a_problem_gives_at_most_so_many() -> None:
    group = [(str(place), 1.0) for place in range(6)]
    assert ids(scored(None, [group, group]), per_problem=2) == ["0/0", "0/1", "1/0", "1/1"]
    # A miss or a duplicate takes no place.
    mixed = [("x", 0.0), ("a", 1.0), ("a", 1.0), ("b", 1.0), ("c", 1.0)]
    assert ids(scored(None, [mixed]), per_problem=2) == ["0/1", "0/3"]


def test_all_are_kept_unfiltered_but_distinct_and_capped() -> None:
    rollout = scored(None, [[("a", 0.0), ("a", 1.0), ("b", None), ("c", 1.0)]])
    assert ids(rollout, keep="all", per_problem=2) == ["0/0", "0/2"]


@pytest.fixture
def labelled(policy: Policy) -> tuple[TokenRow, ...]:
    return labelled_rows(policy, [Problem("l", "9+9=")], ["18"], None)


def pool_of(state: Any) -> list[TokenRow]:
    return list(Pool.from_state(state["pool"]))


def rows(policy: Policy, *pairs: tuple[int, str]) -> list[TokenRow]:
    found = labelled_rows(policy, [PROBLEMS[place] for place, _ in pairs], [text for _, text in pairs], None)
    return [replace(row, loss_mask=(1,) * len(row.token_ids)) for row in found]


def test_what_passes_is_pooled_round_after_round(
    policy: Policy, context: Context, labelled: tuple[TokenRow, ...]
) -> None:
    kept: list[str] = []
    rollouts = Rollouts(
        scored(policy, [[("1", 1.0), ("7", 0.0)], [("2", 1.0), ("02", 1.0)], [("9", 0.0), ("x", None)]]),
        scored(policy, [[("1", 1.0), ("01", 1.0)]]),
    )
    update = RFT(CONFIG, labelled, samples=2, rounds=2)
    context = replace(context, keep=kept.extend)
    first = update(policy, None, PROBLEMS, rollouts, context)
    assert rollouts.calls == [(policy, 3, 2)]
    assert kept == ["0/0", "1/0", "1/1"]
    assert first.metrics["kept"] == first.metrics["new"] == first.metrics["pool"] == 3
    assert pool_of(first.state) == rows(policy, (0, "1"), (1, "2"), (1, "02"))
    second = update(first.candidate, first.state, PROBLEMS[:1], rollouts, replace(context, round=2))
    assert rollouts.calls[1] == (first.candidate, 1, 2)
    figures = [second.metrics[name] for name in ("kept", "new", "pool")]
    assert figures == [2, 1, 4], "a sample pooled before is kept, but not new"
    assert pool_of(second.state)[3:] == rows(policy, (0, "01"))
    assert second.state["learner"]["steps_done"] == 4


def test_the_cap_of_a_problem_holds_round_after_round(policy: Policy, context: Context) -> None:
    kept: list[str] = []
    rollouts = Rollouts(
        scored(policy, [[("1", 1.0)], [("2", 1.0), ("02", 1.0)]]),
        scored(policy, [[("01", 1.0), ("1", 1.0), ("001", 1.0)], [("2", 1.0), ("002", 1.0)]]),
    )
    update = RFT(CONFIG.model_copy(update={"per_problem": 2}), (), samples=3, rounds=2)
    context = replace(context, keep=kept.extend)
    first = update(policy, None, PROBLEMS, rollouts, context)
    kept.clear()
    second = update(first.candidate, first.state, PROBLEMS, rollouts, replace(context, round=2))
    assert pool_of(second.state) == rows(policy, (0, "1"), (1, "2"), (1, "02"), (0, "01"))
    assert kept == ["0/0", "0/1", "1/0"], "what the pool refuses is not learned from"
    assert [second.metrics[name] for name in ("kept", "new", "pool")] == [3, 1, 4]


def test_a_pool_of_the_round_forgets_those_before(policy: Policy, context: Context) -> None:
    rollouts = Rollouts(scored(policy, [[("1", 1.0)]]), scored(policy, [[("01", 1.0), ("1", 0.0)], [("2", 1.0)]]))
    update = RFT(CONFIG.model_copy(update={"pool": "round", "per_problem": 1}), (), samples=2, rounds=2)
    first = update(policy, None, PROBLEMS, rollouts, context)
    second = update(first.candidate, first.state, PROBLEMS, rollouts, replace(context, round=2))
    assert pool_of(second.state) == rows(policy, (0, "01"), (1, "2"))
    assert [second.metrics[name] for name in ("kept", "new", "pool")] == [2, 2, 2]
    assert second.state["learner"]["steps_done"] == 4, "weights and moments go on"


def test_gold_answers_have_no_cap(policy: Policy, context: Context) -> None:
    twice = [PROBLEMS[0], replace(PROBLEMS[0], columns={"answer": "one"})]
    config = CONFIG.model_copy(update={"keep": "gold", "per_problem": 1})
    update = RFT(config, (), samples=1, rounds=1, gold=lambda problem: problem.columns["answer"])
    updated = update(policy, None, twice, Rollouts(), context)
    assert pool_of(updated.state) == rows(policy, (0, "1"), (0, "one"))


def test_samples_without_ids_are_pooled_as_text(policy: Policy, context: Context) -> None:
    updated = RFT(CONFIG, (), samples=1, rounds=1)(
        policy, None, PROBLEMS, Rollouts(scored(None, [[("1", 1.0)]])), context
    )
    assert pool_of(updated.state) == rows(policy, (0, "1"))


def test_gold_learns_the_references_and_draws_nothing(policy: Policy, context: Context) -> None:
    config = CONFIG.model_copy(update={"keep": "gold"})
    update = RFT(config, (), samples=2, rounds=1, gold=lambda problem: problem.columns["answer"])
    rollouts = Rollouts()
    updated = update(policy, None, PROBLEMS, rollouts, context)
    assert rollouts.calls == []
    assert pool_of(updated.state) == rows(policy, (0, "1"), (1, "2"), (2, "3"))


def test_gold_answers_are_encoded_as_labelled_rows_are(policy: Policy, context: Context) -> None:
    problems = [*PROBLEMS[:2], Problem("long", "9+9=", {"answer": "8" * 20})]

    def pooled(problems: Sequence[Problem], **changes: Any) -> list[tuple[int, ...]]:
        config = CONFIG.model_copy(update={"keep": "gold", "max_length": 12, **changes})
        update = RFT(config, (), samples=1, rounds=1, gold=lambda problem: problem.columns["answer"])
        return [row.token_ids for row in pool_of(update(policy, None, problems, Rollouts(), context).state)]

    short = [row.token_ids for row in rows(policy, (0, "1"), (1, "2"))]
    assert pooled(problems, too_long="drop") == short
    assert pooled(problems[2:], too_long="drop") == [], "a round of such rows alone learns nothing, and is no error"
    assert len(pooled(problems, too_long="truncate")[2]) == 8
    assert pooled(problems[:2], end_of_text=False) == [ids[:-1] for ids in short]
    with pytest.raises(DataError, match="labelled row long: 25 tokens, over the limit of 12"):
        pooled(problems)


def test_none_goes_on_with_the_labelled_rows_alone(
    policy: Policy, context: Context, labelled: tuple[TokenRow, ...]
) -> None:
    config = CONFIG.model_copy(update={"keep": "none", "steps": 30, "optimizer": OptimizerConfig(lr=1e-2)})
    losses: list[float] = []
    rollouts = Rollouts()
    watched = replace(context, record=lambda step, metrics: losses.append(metrics["loss"]))
    updated = RFT(config, labelled, samples=2, rounds=1)(policy, None, PROBLEMS, rollouts, watched)
    assert rollouts.calls == []
    assert pool_of(updated.state) == []
    assert losses[-1] < 0.2 * losses[0]


def test_a_round_that_keeps_nothing_changes_nothing(policy: Policy, context: Context) -> None:
    rollouts = Rollouts(scored(None, [[("7", 0.0)]]))
    updated = RFT(CONFIG, (), samples=1, rounds=1)(policy, None, PROBLEMS, rollouts, context)
    assert updated.candidate.id == policy.id
    assert updated.metrics == {"kept": 0, "new": 0, "pool": 0}


def test_a_restart_begins_at_the_base_and_goes_on_without(
    policy: Policy, context: Context, labelled: tuple[TokenRow, ...]
) -> None:
    def second_round(restart: bool, base: Policy | None) -> Policy:
        config = CONFIG.model_copy(update={"restart": restart, "keep": "none"})
        update = RFT(config, labelled, samples=1, rounds=2, base=base)
        first = update(policy, None, PROBLEMS, Rollouts(), context)
        # The same batches in both rounds, so that only the start can differ.
        return update(first.candidate, first.state, PROBLEMS, Rollouts(), context).candidate

    once = RFT(CONFIG.model_copy(update={"keep": "none", "restart": True}), labelled, 1, 1)
    from_base = once(policy, None, PROBLEMS, Rollouts(), context).candidate
    assert second_round(True, policy).id == from_base.id
    assert second_round(False, policy).id != from_base.id


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_round_stopped_in_the_middle_ends_the_same(
    make_policy: Callable[..., Policy],
    context: Context,
    labelled: tuple[TokenRow, ...],
    stop: int,
    restart: bool,
    dropout: float,
) -> None:
    policy = make_policy(resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout)
    config = CONFIG.model_copy(update={"steps": 4, "restart": restart})
    update = RFT(config, labelled, samples=1, rounds=2, base=policy)
    first = update(policy, None, PROBLEMS, Rollouts(scored(policy, [[("1", 1.0)]])), context)
    second = replace(context, round=2)
    rollout = scored(policy, [[("01", 1.0)], [("2", 1.0)]])
    partials: dict[int, Partial] = {}
    watched = replace(second, checkpoint=lambda step, go: partials.setdefault(step, Partial(step, *go())))
    whole = update(first.candidate, first.state, PROBLEMS, Rollouts(rollout), watched)
    resumed = replace(second, partial=partials[stop])
    again = update(first.candidate, first.state, PROBLEMS, Rollouts(rollout), resumed)
    assert again.candidate.id == whole.candidate.id
    assert again.metrics == whole.metrics
    assert pool_of(again.state) == pool_of(whole.state)
