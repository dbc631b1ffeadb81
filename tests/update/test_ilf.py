"""Learning from language feedback: which revisions are learned, as answers to what, and that they teach."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from tests.encoded import encode_completions

from loopwise.config.blocks import OptimizerConfig, RefineConfig
from loopwise.config.methods import ILFConfig
from loopwise.generate.local import LocalGenerator
from loopwise.models.policy import Policy
from loopwise.models.tokens import encode_prompts
from loopwise.runtime import Runtime
from loopwise.types import Context, Feedback, Partial, Problem, Request, Sample, Sampling, Scored
from loopwise.update.ilf import ILF
from loopwise.update.rows import Pool, labelled_rows

CONFIG = ILFConfig(steps=2, batch_size=4, revisions=3, optimizer=OptimizerConfig(lr=1e-2))
REFINE = RefineConfig(template="{prompt}{draft}={critique}=")
PROBLEMS = tuple(Problem(f"p{place}", f"{place}+1=") for place in range(3))
Said = tuple[str, float | None, str | None]
"""A text, its reward, and what is said against it."""


@dataclass
class Rollouts:
    """Hands out the drafts of each problem at step 0, and what revises each draft at step 1."""

    drafts: Sequence[Sequence[Said]]
    revisions: dict[str, Sequence[Said]] = field(default_factory=dict)
    with_ids: bool = True
    calls: list[tuple[int, int, int]] = field(default_factory=list)
    shown: list[Any] = field(default_factory=list)

    def __call__(
        self, policy: Policy, problems: Sequence[Problem], k: int, *, step: int = 0, judged: bool = True
    ) -> Scored:
        self.calls.append((len(problems), k, step))
        self.shown += [problem.shown for problem in problems]
        said = [self.revisions[str(p.shown)] if step else self.drafts[PROBLEMS.index(p)] for p in problems]
        samples = [
            self._sample(policy, problem, group, index, step, one[0])
            for group, (problem, members) in enumerate(zip(problems, said, strict=True))
            for index, one in enumerate(members)
        ]
        flat = [one for members in said for one in members]
        rewards = np.array([[np.nan if reward is None else reward] for _, reward, _ in flat]).reshape(-1, 1)
        critiques = tuple(critique for _, _, critique in flat)
        return Scored(
            tuple(problems), tuple(samples), Feedback(("r",), (1.0,), rewards, ~np.isnan(rewards), (), critiques)
        )

    def _sample(self, policy: Policy, problem: Problem, group: int, index: int, step: int, text: str) -> Sample:
        ids: dict[str, Any] = {}
        if self.with_ids:
            [prompt], [tokens] = encode_prompts(policy, [problem]), encode_completions(policy, [text])
            ids = {"prompt_ids": tuple(prompt), "token_ids": tuple(tokens), "loss_mask": (1,) * len(tokens)}
        name = f"{step}/{problem.id}/{index}"
        return Sample(name, problem.id, group, index, policy.id, text, "stop", parent=problem.parent, **ids)


def make(config: ILFConfig = CONFIG, **changes: Any) -> ILF:
    arguments: dict[str, Any] = {"labelled": (), "samples": 1, "rounds": 1, "max_tokens": 4, **changes}
    return ILF(config, REFINE, **arguments)


def pooled(policy: Policy, state: Any) -> list[tuple[str, str]]:
    """The rows of the pool as text."""
    decode = policy.tokenizer.decode
    return [
        (decode(row.prompt_ids), decode(row.token_ids, skip_special_tokens=True))
        for row in Pool.from_state(state["pool"])
    ]


DRAFTS: list[list[Said]] = [[("9", 0.0, "1")], [("2", 1.0, None)], [("7", 0.0, "4")]]
REVISIONS: dict[str, Sequence[Said]] = {
    "0+1=9=1=": [("8", 0.0, "1"), ("1", 1.0, "1"), ("01", 2.0, None)],
    "2+1=7=4=": [("6", 0.0, "1"), ("5", None, "1"), ("4", 0.5, "1")],
}


def test_the_best_revision_is_learned_as_the_answer_to_the_prompt(policy: Policy, context: Context) -> None:
    kept: list[str] = []
    rollouts = Rollouts(DRAFTS, REVISIONS)
    updated = make()(policy, None, PROBLEMS, rollouts, replace(context, keep=kept.extend))
    assert rollouts.calls == [(3, 1, 0), (2, 3, 1)]
    assert rollouts.shown[3:] == list(REVISIONS)
    assert pooled(policy, updated.state) == [("0+1=", "01")]
    assert kept == ["1/p0~0/2"]
    figures = {name: updated.metrics[name] for name in ("criticised", "revised", "kept", "new", "pool", "too_long")}
    assert figures == {"criticised": 2 / 3, "revised": 0.5, "kept": 1, "new": 1, "pool": 1, "too_long": 0}
    [row] = Pool.from_state(updated.state["pool"])
    assert row.token_ids[-1] == policy.tokenizer.eos_token_id, "as it was drawn, end-of-text included"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"threshold": 0.5}, [("0+1=", "01"), ("2+1=", "4")]),
        ({"threshold": 3.0}, []),
        ({"choose": "critic"}, [("0+1=", "01")]),
        ({"accepted_drafts": True}, [("1+1=", "2"), ("0+1=", "01")]),
        ({"accepted_drafts": True, "choose": "critic"}, [("1+1=", "2"), ("0+1=", "01")]),
    ],
)
def test_what_is_chosen(
    policy: Policy, context: Context, changes: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    updated = make(CONFIG.model_copy(update=changes))(policy, None, PROBLEMS, Rollouts(DRAFTS, REVISIONS), context)
    assert pooled(policy, updated.state) == expected


def test_of_equals_the_first_is_chosen(policy: Policy, context: Context) -> None:
    revisions: dict[str, Sequence[Said]] = {"0+1=9=1=": [("8", 1.0, "1"), ("7", 2.0, None), ("6", 2.0, None)]}
    for choose in ("reward", "critic"):
        config = CONFIG.model_copy(update={"choose": choose})
        updated = make(config)(policy, None, PROBLEMS[:1], Rollouts(DRAFTS[:1], revisions), context)
        assert pooled(policy, updated.state) == [("0+1=", "7")]


def test_text_without_ids_is_learned_after_the_prompt_too(policy: Policy, context: Context) -> None:
    rollouts = Rollouts(DRAFTS, REVISIONS, with_ids=False)
    updated = make()(policy, None, PROBLEMS, rollouts, context)
    assert list(Pool.from_state(updated.state["pool"])) == [
        replace(row, loss_mask=(1,) * len(row.token_ids)) for row in labelled_rows(policy, PROBLEMS[:1], ["01"], None)
    ]


def test_a_round_without_critiques_draws_no_revisions(policy: Policy, context: Context) -> None:
    rollouts = Rollouts([[("1", 1.0, None)]])
    updated = make()(policy, None, PROBLEMS[:1], rollouts, context)
    assert rollouts.calls == [(1, 1, 0)]
    assert updated.candidate.id == policy.id, "nothing to learn, and nothing is"
    assert updated.metrics == {"criticised": 0, "too_long": 0, "kept": 0, "new": 0, "pool": 0}


def test_what_does_not_fit_is_not_revised(policy: Policy, context: Context) -> None:
    room = policy.weights.context_length - len("0+1=9=1=")
    roomy, tight = Rollouts(DRAFTS, REVISIONS), Rollouts(DRAFTS, REVISIONS)
    make(max_tokens=room)(policy, None, PROBLEMS, roomy, context)
    updated = make(max_tokens=room + 1)(policy, None, PROBLEMS, tight, context)
    assert [len(rollouts.calls) for rollouts in (roomy, tight)] == [2, 1]
    assert updated.metrics["too_long"] == pytest.approx(2 / 3)


def test_the_pool_outlives_the_round(policy: Policy, context: Context) -> None:
    update = make(rounds=2)
    first = update(policy, None, PROBLEMS, Rollouts(DRAFTS, REVISIONS), context)
    later = Rollouts([[("3", 0.0, "1")]], {"0+1=3=1=": [("1", 1.0, None), ("01", 0.0, "1"), ("2", 0.0, "1")]})
    second = update(first.candidate, first.state, PROBLEMS[:1], later, replace(context, round=2))
    assert pooled(policy, second.state) == [("0+1=", "01"), ("0+1=", "1")]
    assert second.state["learner"]["steps_done"] == 4


def test_first_drafts_are_lifted_by_revisions_alone(
    policy: Policy, context: Context, runtime: Runtime, make_requests: Callable[..., list[Request]]
) -> None:
    revisions: dict[str, Sequence[Said]] = {
        "0+1=9=1=": [("1", 1.0, None)] * 3,
        "1+1=2=1=": [("7", 0.0, "1")] * 3,
        "2+1=7=4=": [("3", 1.0, None)] * 3,
    }
    drafts: list[list[Said]] = [DRAFTS[0], [("2", 0.0, "1")], DRAFTS[2]]
    config = CONFIG.model_copy(update={"steps": 40})
    updated = make(config)(policy, None, PROBLEMS, Rollouts(drafts, revisions), context)
    requests, greedy = make_requests([problem.prompt for problem in PROBLEMS]), Sampling(max_tokens=4, temperature=0)
    before, after = (
        [sample.text for sample in asyncio.run(LocalGenerator(runtime).generate(one, requests, greedy))]
        for one in (policy, updated.candidate)
    )
    assert (after[0], after[2]) == ("1", "3")
    assert (before[0], before[2]) != ("1", "3")


@pytest.mark.parametrize("stop", [1, 3])
def test_a_round_stopped_in_the_middle_ends_the_same(policy: Policy, context: Context, stop: int) -> None:
    update = make(CONFIG.model_copy(update={"steps": 4}))
    partials: dict[int, Partial] = {}
    watched = replace(context, checkpoint=lambda step, go: partials.setdefault(step, Partial(step, *go())))
    whole = update(policy, None, PROBLEMS, Rollouts(DRAFTS, REVISIONS), watched)
    again = update(policy, None, PROBLEMS, Rollouts(DRAFTS, REVISIONS), replace(context, partial=partials[stop]))
    assert again.candidate.id == whole.candidate.id
    assert again.metrics == whole.metrics
    assert pooled(policy, again.state) == pooled(policy, whole.state)
