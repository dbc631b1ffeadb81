"""Self-Refine: drafts are revised until nothing is said against them, through journaled rollouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loopwise.config.blocks import RefineConfig
from loopwise.models.policy import Policy
from loopwise.models.prompts import render
from loopwise.rollout import Roller, Rollout
from loopwise.runs.journal import Journal
from loopwise.runs.rows import Place
from loopwise.types import LOST, Feedback, Message, Problem, Request, Sample, Sampling
from loopwise.update.refinement import Answer, Refined, refine, revision_problem, revision_prompt

CONFIG = RefineConfig(revisions=3, template="{prompt}{draft}?{critique}=")
POLICY = Policy()
PROBLEMS = [Problem("a", "1+1=", {"answer": "2"}), Problem("b", "2+2=", {"answer": "4"})]


@dataclass
class Scripted:
    """A generator that says what it was told to after each prompt it is shown, one text for each index."""

    script: Mapping[Any, Sequence[str]]
    asked: list[Request] = field(default_factory=list)
    offers = frozenset({"text"})

    async def generate(self, policy: Any, requests: Sequence[Request], sampling: Sampling) -> list[Sample]:
        self.asked += requests
        return [self._answer(policy, request) for request in requests]

    def _answer(self, policy: Any, request: Request) -> Sample:
        text = self.script[render(request.problem, policy.prompt_state)][request.index]
        place = {"group": request.group, "index": request.index, "policy_id": policy.id}
        finish = LOST if text == "lost" else "stop"
        return Sample(request.sample_id, request.problem.id, text=text, finish_reason=finish, **place)


@dataclass
class Critic:
    """Right answers earn 1 and no critique, wrong ones 0 and "no"; it fails on "odd", and knows nothing of "?"."""

    seen: list[str] = field(default_factory=list)
    name = "critic"
    uses_reference = True

    async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Feedback:
        assert all(problem.prompt in ("1+1=", "2+2=") for problem in problems), "judges see the prompt"
        self.seen += [sample.id for sample in samples]
        answers = {problem.id: problem.columns["answer"] for problem in problems}
        right = [sample.text == answers[sample.problem_id] for sample in samples]
        rewards = np.array([[np.nan if s.text == "?" else float(r)] for s, r in zip(samples, right, strict=True)])
        return Feedback(
            ("exact",),
            (1.0,),
            rewards,
            ~np.isnan(rewards),
            critiques=tuple(None if one else "no" for one in right),
            extra=tuple({"critic_error": "it raised"} if s.text == "odd" else {} for s in samples),
        )


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal.db", create=True) as journal:
        journal.create_run("run", "improve", {}, "hash", {}, {}, 1)
        yield journal


Make = Callable[..., Rollout]


@pytest.fixture
def make_rollout(journal: Journal) -> Make:
    def make(generator: Any, critic: Critic | None = None) -> Rollout:
        return Roller(
            run_id="run",
            seed=7,
            generator=generator,
            feedback=critic or Critic(),
            journal=journal,
            unit=4,
            book=lambda number, key, budget: None,
            store=lambda action: action(),
            on_progress=lambda phase, done, total: None,
        ).at(1, "train", Sampling(max_tokens=4))

    return make


SCRIPT = {
    "1+1=": ["3", "2"],
    "1+1=3?no=": ["5"],
    "1+1=5?no=": ["2"],
    "2+2=": ["4", "5"],
    "2+2=5?no=": ["5"],
}


def texts(refined: Refined) -> list[list[str]]:
    return [[sample.text for sample in scored.samples] for scored in refined.steps]


def test_drafts_are_revised_until_nothing_is_said(make_rollout: Make) -> None:
    refined = refine(make_rollout(Scripted(SCRIPT)), POLICY, PROBLEMS, 2, CONFIG)
    assert texts(refined) == [["3", "2", "4", "5"], ["5", "5"], ["2", "5"], ["5"]], "the last one runs out of tries"
    final = refined.final
    assert final.problems == tuple(PROBLEMS)
    assert [(s.problem_id, s.group, s.index, s.text) for s in final.samples] == [
        ("a", 0, 0, "2"),
        ("a", 0, 1, "2"),
        ("b", 1, 0, "4"),
        ("b", 1, 1, "5"),
    ]
    assert final.feedback.totals.tolist() == [1, 1, 1, 0]
    assert final.feedback.critiques == (None, None, None, "no")
    assert refined.metrics == {
        "accepted": 0.75,
        "unjudged": 0.0,
        "too_long": 0.0,
        "revisions": 5 / 4,
        "reward/0": 0.5,
        "reward/1": 0.5,
        "reward/2": 0.75,
        "reward/3": 0.75,
    }


def test_every_step_is_journaled_and_linked_with_what_it_revises(make_rollout: Make, journal: Journal) -> None:
    refine(make_rollout(Scripted(SCRIPT)), POLICY, PROBLEMS, 2, CONFIG, step=5)
    parents = [
        {name: sample.parent for name, sample in journal.samples_at(Place("run", 1, step, "train")).items()}
        for step in range(5, 9)
    ]
    assert parents == [
        dict.fromkeys(f"train/1/5/{name}/{index}" for name in "ab" for index in range(2)),
        {"train/1/6/a~0/0": "train/1/5/a/0", "train/1/6/b~1/0": "train/1/5/b/1"},
        {"train/1/7/a~0~0/0": "train/1/6/a~0/0", "train/1/7/b~1~0/0": "train/1/6/b~1/0"},
        {"train/1/8/b~1~0~0/0": "train/1/7/b~1~0/0"},
    ]


def test_as_many_revisions_as_allowed(make_rollout: Make) -> None:
    refined = refine(make_rollout(Scripted(SCRIPT)), POLICY, PROBLEMS, 2, CONFIG.model_copy(update={"revisions": 1}))
    assert texts(refined) == [["3", "2", "4", "5"], ["5", "5"]]
    assert [name for name in refined.metrics if name.startswith("reward/")] == ["reward/0", "reward/1"]


def test_what_is_accepted_at_once_is_not_revised(make_rollout: Make) -> None:
    refined = refine(make_rollout(Scripted({"1+1=": ["2"], "2+2=": ["4"]})), POLICY, PROBLEMS, 1, CONFIG)
    assert len(refined.steps) == 1
    assert refined.final.samples == refined.steps[0].samples
    assert refined.metrics["accepted"] == refined.metrics["reward/3"] == 1.0
    assert refined.metrics["revisions"] == 0.0


def test_what_a_critic_failed_on_is_neither_accepted_nor_revised(make_rollout: Make) -> None:
    script = {"1+1=": ["odd"], "2+2=": ["5"], "2+2=5?no=": ["lost"]}
    refined = refine(make_rollout(Scripted(script)), POLICY, PROBLEMS, 1, CONFIG)
    assert texts(refined) == [["odd", "5"], ["lost"]]
    assert refined.metrics["accepted"] == 0.0
    assert refined.metrics["unjudged"] == 1.0


def test_rewards_that_could_not_be_given_stay_masked(make_rollout: Make) -> None:
    script = {"1+1=": ["3"], "1+1=3?no=": ["?"], "1+1=??no=": ["2"], "2+2=": ["4"]}
    refined = refine(make_rollout(Scripted(script)), POLICY, PROBLEMS, 1, CONFIG.model_copy(update={"revisions": 1}))
    assert refined.final.feedback.mask.tolist() == [[False], [True]]
    assert refined.metrics["reward/1"] == 1.0, "the mean is over what was judged"


def test_a_second_call_reads_what_the_first_one_paid_for(make_rollout: Make) -> None:
    generator, critic = Scripted(SCRIPT), Critic()
    first = refine(make_rollout(generator, critic), POLICY, PROBLEMS, 2, CONFIG)
    asked, seen = len(generator.asked), len(critic.seen)
    again = refine(make_rollout(generator, critic), POLICY, PROBLEMS, 2, CONFIG)
    assert (len(generator.asked), len(critic.seen)) == (asked, seen)
    assert [scored.samples for scored in again.steps] == [scored.samples for scored in first.steps]
    assert again.metrics == first.metrics


def test_drafts_that_are_there_are_not_drawn_again(make_rollout: Make) -> None:
    rollout = make_rollout(Scripted(SCRIPT))
    drafts = rollout(POLICY, PROBLEMS, 2)
    refined = refine(rollout, POLICY, PROBLEMS, 2, CONFIG, drafts=drafts)
    assert refined.steps[0] is drafts
    assert refined.metrics["accepted"] == 0.75


def test_a_revision_that_does_not_fit_leaves_the_draft_as_it_is(make_policy: Callable[..., Policy]) -> None:
    # "1+1=3?no=" has 9 tokens, "2+2=5?no=" as many; the context of 12 has room for 3 more.
    policy = make_policy(n_positions=12)
    generator = Scripted(SCRIPT)

    def rollout(policy: Any, problems: Sequence[Problem], k: int, *, step: int = 0, judged: bool = True) -> Any:
        requests = [
            Request(f"{step}/{problem.id}/{index}", problem, group, index, 0)
            for group, problem in enumerate(problems)
            for index in range(k)
        ]
        return _scored(problems, [generator._answer(policy, request) for request in requests])

    roomy, tight = (refine(rollout, policy, PROBLEMS, 2, CONFIG, max_tokens=room) for room in (3, 4))
    assert texts(roomy)[1:] == [["5", "5"], ["2", "5"], ["5"]]
    assert roomy.metrics["too_long"] == 0.0
    assert texts(tight) == [["3", "2", "4", "5"]]
    assert (tight.metrics["too_long"], tight.metrics["accepted"]) == (0.5, 0.5)


def _scored(problems: Sequence[Problem], samples: list[Sample]) -> Any:
    import asyncio

    from loopwise.types import Scored

    return Scored(tuple(problems), tuple(samples), asyncio.run(Critic().judge(problems, samples)))


def test_a_conversation_goes_on_with_the_draft_and_what_is_said_to_it() -> None:
    asked: tuple[Message, ...] = ({"role": "user", "content": "1+1"},)
    config = RefineConfig(chat_template="{critique}: not {draft}. Again.")
    assert revision_prompt(asked, "3", "no", config) == (
        *asked,
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": "no: not 3. Again."},
    )


def test_what_a_draft_spells_is_no_template() -> None:
    assert revision_prompt("{critique}", "{prompt}", "c", CONFIG) == "{critique}{prompt}?c="


def test_a_revision_is_of_its_problem_but_for_what_is_shown() -> None:
    sample = Sample("s", "a", 0, 1, "p", "3", "stop")
    scored = _scored(PROBLEMS[:1], [sample])
    problem = revision_problem(Answer(scored, 0), CONFIG)
    assert (problem.id, problem.parent, problem.shown) == ("a~1", "s", "1+1=3?no=")
    assert (problem.prompt, problem.columns) == (PROBLEMS[0].prompt, PROBLEMS[0].columns)
