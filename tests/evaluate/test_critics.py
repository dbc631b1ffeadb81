"""Critics that come with loopwise: what they say, what they cannot judge, what they refuse."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from loopwise.config.blocks import RewardConfig
from loopwise.errors import ConfigError, ModelError
from loopwise.evaluate.contract import checked_critiques
from loopwise.evaluate.loading import load_feedback
from loopwise.evaluate.parts import Judged
from loopwise.evaluate.rewards import RewardSum
from loopwise.evaluate.sources import Surroundings, sources
from loopwise.generate.local import LocalGenerator
from loopwise.models.policy import Policy
from loopwise.models.prompts import render
from loopwise.runtime import Runtime
from loopwise.types import LOST, Problem, Request, Sample, Sampling


@dataclass
class Writer:
    """A generator that writes what its answers say after the prompt it is shown, and remembers the requests."""

    answers: dict[str, str]
    offers: frozenset[str] = frozenset({"text"})
    asked: list[Request] = field(default_factory=list)
    policies: list[Any] = field(default_factory=list)
    sampling: list[Sampling] = field(default_factory=list)

    async def generate(self, policy: Any, requests: Sequence[Request], sampling: Sampling) -> list[Sample]:
        self.asked += requests
        self.policies.append(policy)
        self.sampling.append(sampling)
        texts = [self.answers.get(str(render(r.problem, policy.prompt_state)), "well") for r in requests]
        return [
            Sample(r.sample_id, r.problem.id, r.group, r.index, policy.id, text, LOST if text == "lost" else "stop")
            for r, text in zip(requests, texts, strict=True)
        ]


def judge(critic: Any, prompt: Any, *texts: str, **columns: Any) -> Judged:
    problem = Problem("p", prompt, columns)
    samples = [Sample(f"s{place}", "p", 0, place, "policy", text, "stop") for place, text in enumerate(texts)]
    return asyncio.run(critic.judge([problem] * len(texts), samples))


def make(name: str, surroundings: Surroundings | None = None, **options: Any) -> Any:
    return sources()[name].make(surroundings or Surroundings(), options)


def test_a_mismatch_is_placed_at_the_first_character_that_differs() -> None:
    judged = judge(make("mismatch"), "1+1=", "7221", "7321\n", "72", "72219", "", answer=" 7221")
    assert judged.critiques == [None, *(f"It is wrong from character {n} on." for n in (2, 3, 5, 1))]
    assert judged.rewards == [None] * 5
    assert judged.errors == {}


def test_a_mismatch_says_what_it_is_told_to() -> None:
    critic = make("mismatch", column="truth", says="{place} {found}>{expected} {other}")
    assert judge(critic, "?", "7321", "72", truth=7221).critiques == ["2 3>2 {other}", "3 >2 {other}"]


def test_a_mismatch_with_nothing_to_compare_with_is_no_acceptance() -> None:
    judged = judge(make("mismatch"), "?", "1", "2")
    assert judged.critiques == [None, None]
    assert list(judged.errors) == [0, 1]
    assert 'column "answer"' in judged.errors[0]


def test_a_mismatch_sees_the_truth_and_a_label_free_run_refuses_it() -> None:
    config = [RewardConfig(use="mismatch")]
    with load_feedback([], reference_columns=["answer"], label_free=False, critics=config) as feedback:
        said = asyncio.run(feedback.judge([Problem("p", "?", {"answer": "2"})], [Sample("s", "p", 0, 0, "", "3", "")]))
        assert said.critiques == ("It is wrong from character 1 on.",)
    with pytest.raises(ConfigError, match=r"mismatch.*label_free"):
        load_feedback([], reference_columns=["answer"], label_free=True, critics=config)


def test_the_policy_criticises_what_it_drew() -> None:
    writer = Writer(
        {"1+1=3 wrong? ": " it is 2\n", "1+1=2 wrong? ": "correct.", "1+1= wrong? ": "", "1+1=4 wrong? ": "lost"}
    )
    options = {"template": "{prompt}{draft} wrong? ", "max_tokens": 7}
    critic = make("self_critic", Surroundings(writer=writer, seed=3), **options)
    policy = Policy()
    judged = judge(critic.asking(policy), "1+1=", "3", "2", "", "4")
    assert judged.critiques == ["it is 2", None, None, None]
    assert list(judged.errors) == [3]
    assert writer.policies == [policy]
    assert writer.sampling == [Sampling(max_tokens=7, temperature=0.0)]
    assert len({request.group for request in writer.asked}) == 4, "nothing is shared between what differs"
    keys = [request.key for request in writer.asked]
    judge(make("self_critic", Surroundings(writer=writer, seed=4), **options).asking(policy), "1+1=", "3")
    assert len({*keys, writer.asked[-1].key}) == 5, "a key of its own for each sample and seed"


@pytest.mark.parametrize(
    ("said", "critique"),
    [("0", None), ("0.", None), ("00", "00"), ("02", "02"), ("Yes 0", "Yes 0"), ("\n0 \n", None)],
)
def test_a_critique_that_begins_with_the_word_accepts(said: str, critique: str | None) -> None:
    critic = make("self_critic", Surroundings(writer=Writer({"?1=": said})), template="{prompt}{draft}=", accept="0")
    assert judge(critic.asking(Policy()), "?", "1").critiques == [critique]


def test_in_a_conversation_the_user_asks_what_is_wrong() -> None:
    asked = ({"role": "user", "content": "1+1"},)
    writer = Writer({})
    critic = make("self_critic", Surroundings(writer=writer), chat_template="What of {draft}?")
    assert judge(critic.asking(Policy()), asked, "3").critiques == ["well"]
    assert writer.asked[0].problem.shown == (
        *asked,
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": "What of 3?"},
    )


def test_a_draft_that_leaves_no_room_cannot_be_criticised(policy: Policy, runtime: Runtime) -> None:
    limit = policy.weights.context_length
    surroundings = Surroundings(writer=LocalGenerator(runtime))
    critic = make("self_critic", surroundings, template="{prompt}{draft}=", max_tokens=4).asking(policy)
    judged = judge(critic, "1+1=", "2" * (limit - 9), "2" * (limit - 8))
    assert list(judged.errors) == [1]
    assert "context" in judged.errors[1]


def test_another_model_criticises_for_any_policy(folder: Path, runtime: Runtime, make_policy: Any) -> None:
    local = LocalGenerator(runtime)
    surroundings = Surroundings(writer=local, local=local, runtime=runtime)
    options = {"template": "{prompt}{draft}=", "max_tokens": 4}
    critic = make("model_critic", surroundings, model=str(folder), **options)
    theirs = judge(critic.asking(make_policy(seed=5)), "1+1=", "2", "3").critiques
    own = make("self_critic", surroundings, **options)
    assert theirs == judge(own.asking(make_policy()), "1+1=", "2", "3").critiques
    assert theirs != judge(own.asking(make_policy(seed=5)), "1+1=", "2", "3").critiques


def test_a_critic_is_asked_with_the_policy_through_the_sum() -> None:
    writer = Writer({"1+1=3=": "no"})
    critics = [RewardConfig(use="self_critic", options={"template": "{prompt}{draft}="})]
    around = Surroundings(writer=writer)
    feedback = load_feedback([], reference_columns=(), label_free=True, critics=critics, surroundings=around)
    policy = replace(Policy(), name="now")
    sample = Sample("s", "p", 0, 0, "now", "3", "stop")
    assert isinstance(feedback, RewardSum)
    said = asyncio.run(feedback.asking(policy).judge([Problem("p", "1+1=")], [sample]))
    assert said.critiques == ("no",)
    assert writer.policies == [policy]


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("mismatch", {"says": 3}, 'source "mismatch": option "says" must be text, found 3'),
        ("mismatch", {"show": "place"}, 'source "mismatch": unknown option "show"'),
        ("self_critic", {"template": "{prompt}"}, 'option "template" has no {draft}'),
        ("self_critic", {"accept": ""}, 'option "accept" must be text'),
        ("self_critic", {"max_tokens": True}, 'option "max_tokens" must be a whole number of at least 1, found True'),
        ("model_critic", {}, 'source "model_critic": option "model" is missing'),
        ("model_critic", {"model": "there"}, "it runs a model here, and nothing does"),
    ],
)
def test_what_is_refused(name: str, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        make(name, Surroundings(writer=Writer({})), **options)
    assert complaint in str(error.value)


def test_a_critic_that_writes_needs_something_that_writes(runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='source "self_critic": nothing here writes text'):
        make("self_critic")
    surroundings = Surroundings(local=LocalGenerator(runtime), runtime=runtime)
    with pytest.raises(ModelError):
        make("model_critic", surroundings, model=str(tmp_path / "nowhere"))


def test_halves_of_surrogate_pairs_in_a_critique_are_replaced() -> None:
    assert checked_critiques(["half \ud83d", "", None], 3) == ["half ?", None, None]
