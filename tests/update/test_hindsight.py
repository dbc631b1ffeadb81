"""Chain of Hindsight: which rows pairs become, what is learned of them, and what the candidate is asked for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.update.sampled import PROBLEMS as SAMPLED
from tests.update.sampled import Sampled
from tests.update.scored import GROUPS, PROBLEMS, Rollouts, scored

from loopwise.config.blocks import OptimizerConfig
from loopwise.config.methods import HindsightConfig
from loopwise.models.folders import load_policy, save_policy
from loopwise.models.logps import TokenRow, token_logps
from loopwise.models.policy import Policy
from loopwise.models.tokens import decode, encode_prompts
from loopwise.runtime import Runtime
from loopwise.types import Context, Partial, Preference, Problem
from loopwise.update.hindsight import Hindsight, asked, hindsight
from loopwise.update.rows import encode_labelled

CONFIG = HindsightConfig(
    steps=2, batch_size=4, dropped=0.0, good=" good ", bad=" bad ", optimizer=OptimizerConfig(lr=1e-2)
)
CHATML = (
    "{% for message in messages %}{{ message.role }} {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def config(**changes: Any) -> HindsightConfig:
    return CONFIG.model_copy(update=changes)


def texts(policy: Policy, rows: Sequence[TokenRow]) -> list[tuple[str, str]]:
    """Prompt and completion of each row."""
    return [tuple(decode(policy, [row.prompt_ids, row.token_ids])) for row in rows]


def test_a_pair_becomes_a_chain_and_what_will_be_asked(policy: Policy) -> None:
    found = hindsight(policy, scored(policy, GROUPS), CONFIG, seed=0)
    assert texts(policy, found.rows) == [
        ("0+1= bad 77 good ", "1"),
        ("1+1= bad 23 good ", "2"),
        ("0+1= good ", "1"),
        ("1+1= good ", "2"),
    ]
    assert found.better == ("0/0", "1/0")
    assert found.left_out == 0


def test_the_end_of_the_better_answer_is_learned_and_nothing_before_it(policy: Policy) -> None:
    rows = hindsight(policy, scored(policy, GROUPS), CONFIG, seed=0).rows
    [end] = policy.end_ids
    for row in rows:
        assert row.token_ids[-1] == end
        assert list(row.mask) == [1] * len(row.token_ids)
        assert end not in row.prompt_ids, "the worse answer does not end what is read"


def test_rows_begin_with_what_the_sampler_will_see(policy: Policy) -> None:
    candidate = asked(policy, CONFIG)
    rows = hindsight(policy, scored(policy, GROUPS), CONFIG, seed=0).rows
    assert [list(row.prompt_ids) for row in rows[2:]] == encode_prompts(candidate, PROBLEMS[:2])
    labelled, _ = encode_labelled(candidate, PROBLEMS, ["1", "2", "3"], CONFIG)
    assert [list(row.prompt_ids) for row in labelled] == encode_prompts(candidate, PROBLEMS)
    assert texts(policy, labelled)[0] == ("0+1= good ", "1")


def test_samples_that_were_asked_for_good_ones_lose_the_words_they_were_asked_with(policy: Policy) -> None:
    candidate = asked(policy, CONFIG)
    rows = hindsight(candidate, scored(candidate, GROUPS), CONFIG, seed=0).rows
    assert rows == hindsight(policy, scored(policy, GROUPS), CONFIG, seed=0).rows


def test_tokens_of_the_worse_answer_are_left_out(policy: Policy) -> None:
    worse = "0123456789" * 2
    rollout = scored(policy, [[("1", 1.0), (worse, 0.0)]])

    def read(seed: int, share: float) -> str:
        [(prompt, completion), _] = texts(policy, hindsight(policy, rollout, config(dropped=share), seed).rows)
        assert completion == "1"
        return prompt.removeprefix("0+1= bad ").removesuffix(" good ")

    assert read(0, 0.0) == worse
    assert read(0, 0.5) == read(0, 0.5) != read(1, 0.5)
    assert 4 < len(read(0, 0.5)) < 16
    assert set(read(0, 0.5)) <= set(worse)
    assert len(read(0, 0.15)) > len(read(0, 0.5)), "the same uniforms, so the same tokens and some more"


def test_a_judge_of_pairs_is_believed(policy: Policy) -> None:
    rollout = scored(policy, GROUPS[:1], Preference(2, 0))
    assert texts(policy, hindsight(policy, rollout, CONFIG, 0).rows)[0] == ("0+1= bad 1 good ", "7")


def test_rows_that_are_too_long_are_left_out_and_counted(policy: Policy) -> None:
    rollout = scored(policy, [[("1", 1.0), ("7" * 40, 0.0)]])
    found = hindsight(policy, rollout, CONFIG, seed=0)  # the context is 48
    assert texts(policy, found.rows) == [("0+1= good ", "1")]
    assert found.left_out == 1
    assert hindsight(policy, rollout, config(max_length=8), seed=0).rows == ()


def test_in_a_conversation_the_words_follow_the_last_message(policy: Policy, tokenizer: Any) -> None:
    own = replace(policy, tokenizer=_with_template(tokenizer))
    problem = Problem("p0", ({"role": "system", "content": "add"}, {"role": "user", "content": "0+1="}))
    rollout = replace(scored(policy, GROUPS[:1]), problems=(problem,))
    rows = hindsight(own, rollout, CONFIG, seed=0).rows
    spoken = "system add\nuser 0+1="
    told = [f"{spoken} bad 77 good \nassistant ", f"{spoken} good \nassistant "]
    assert [list(row.prompt_ids) for row in rows] == [tokenizer(text)["input_ids"] for text in told]
    assert list(rows[1].prompt_ids) == encode_prompts(asked(own, CONFIG), [problem])[0]


def _with_template(tokenizer: Any) -> Any:
    own = copy.deepcopy(tokenizer)
    own.chat_template = CHATML
    return own


def test_the_candidate_is_asked_for_a_good_answer(policy: Policy, context: Context, tmp_path: Path) -> None:
    kept: list[str] = []
    update = Hindsight(CONFIG, (), samples=3, rounds=1)
    watched = replace(context, keep=kept.extend)
    candidate, _, metrics = update(policy, None, PROBLEMS, Rollouts(scored(policy, GROUPS)), watched)
    assert kept == ["0/0", "1/0"]
    assert (metrics["pairs"], metrics["left_out"], metrics["steps"]) == (2.0, 0.0, 2.0)
    assert metrics["loss"] > 0
    assert candidate.prompt_state.suffix == " good "
    assert candidate.weights.id != policy.weights.id
    save_policy(candidate, tmp_path / "candidate")
    assert load_policy(str(tmp_path / "candidate"), context.runtime).prompt_state == candidate.prompt_state


def test_where_no_samples_differ_only_labelled_rows_are_learned(policy: Policy, context: Context) -> None:
    tie = scored(policy, [[("3", 1.0), ("4", 1.0)]])
    alone = Hindsight(CONFIG, (), samples=2, rounds=1)
    assert alone(policy, None, PROBLEMS[:1], Rollouts(tie), context).candidate is policy
    labelled, _ = encode_labelled(asked(policy, CONFIG), PROBLEMS, ["1", "2", "3"], CONFIG)
    taught = Hindsight(CONFIG, labelled, samples=2, rounds=1)
    candidate, _, metrics = taught(policy, None, PROBLEMS[:1], Rollouts(tie), context)
    assert metrics["pairs"] == 0
    assert candidate.prompt_state.suffix == " good "
    assert _likelihood(candidate, labelled) > _likelihood(policy, labelled)


def test_better_answers_grow_likelier_where_they_are_asked_for(policy: Policy, context: Context) -> None:
    rollout = scored(policy, GROUPS)
    rows = hindsight(policy, rollout, CONFIG, seed=0).rows
    update = Hindsight(config(steps=8), (), samples=3, rounds=1)
    candidate = update(policy, None, PROBLEMS, Rollouts(rollout), context).candidate
    for row in rows:
        assert _likelihood(candidate, [row]) > _likelihood(policy, [row]) + 0.1


def _likelihood(policy: Policy, rows: Sequence[TokenRow]) -> float:
    logps, mask = token_logps(policy.weights.module, rows)
    return float((logps * mask).sum().detach())


def test_a_few_rounds_teach_what_is_good(
    make_policy: Callable[..., Policy], runtime: Runtime, context: Context
) -> None:
    policy, state = make_policy(seed=1, n_positions=64), None
    # What is asked for reaches the answers only through the prompt, which a tiny model has to learn to read.
    settings = config(steps=12, batch_size=16, optimizer=OptimizerConfig(lr=3e-3), good="g", bad="b", dropped=0.15)
    update, rollout = Hindsight(settings, (), samples=8, rounds=4), Sampled(runtime)
    for number in range(1, 5):
        at = replace(context, round=number)
        policy, state, _ = update(policy, state, SAMPLED, partial(rollout, step=number), at)
    rollout(policy, SAMPLED, 8, step=9)
    assert rollout.rewards[-1] > 3 * rollout.rewards[0], rollout.rewards


@pytest.mark.parametrize("stop", [1, 3])
def test_an_interrupted_round_ends_the_same(policy: Policy, context: Context, stop: int) -> None:
    update = Hindsight(config(steps=4, dropped=0.15), (), samples=3, rounds=2)
    rollout = scored(policy, GROUPS)
    first = update(policy, None, PROBLEMS, Rollouts(rollout), context)
    second = replace(context, round=2)
    again = scored(first.candidate, GROUPS[::-1][1:])
    partials: dict[int, Partial] = {}
    watched = replace(second, checkpoint=lambda step, go: partials.setdefault(step, Partial(step, *go())))
    whole = update(first.candidate, first.state, PROBLEMS, Rollouts(again), watched)
    resumed = replace(second, partial=partials[stop])
    ended = update(first.candidate, first.state, PROBLEMS, Rollouts(again), resumed)
    assert ended.candidate.id == whole.candidate.id
    assert ended.metrics == whole.metrics
