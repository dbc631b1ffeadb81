"""Feedback from itself, without a model: votes, agreement, certainty, and what the options may be."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loopwise.config.blocks import RewardConfig
from loopwise.errors import ConfigError
from loopwise.evaluate.introspection import killable
from loopwise.evaluate.introspection.votes import majority
from loopwise.evaluate.itself import SOURCES
from loopwise.evaluate.loading import load_feedback
from loopwise.evaluate.parts import Judge, Judged
from loopwise.evaluate.sources import Surroundings, sources
from loopwise.tasks.addition import make
from loopwise.types import LOST, Problem, PromptState, Request, Sample, Sampling

FAR = SimpleNamespace(weights=None, prompt_state=PromptState())
"""A policy that answers elsewhere: nothing is known of its context."""
SLOW = {"extract": "regex", "pattern": r"(\w+\s?)+$"}
STUCK = "a" * 40 + "!"
"""A text on which that pattern takes longer than anybody will wait."""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(killable, "SECONDS", 1.0)


def grouped(*texts: Sequence[str], **fields: Any) -> tuple[list[Problem], list[Sample]]:
    """A problem and its samples for each group of texts."""
    problems = [Problem(f"p{group}", f"prompt {group}") for group in range(len(texts))]
    samples = [
        Sample(f"{group}/{index}", f"p{group}", group, index, "policy", text, "stop", **fields)
        for group, own in enumerate(texts)
        for index, text in enumerate(own)
    ]
    return [problems[sample.group] for sample in samples], samples


def ask(judge: Judge, rows: tuple[Sequence[Problem], Sequence[Sample]]) -> Judged:
    return asyncio.run(judge.judge(*rows))


def built(name: str, **options: Any) -> Judge:
    return sources()[name].make(Surroundings(writer=Mirror()), options)


class Mirror:
    """Answers a prompt with the text after its last space, unless that is LOST; keeps what it was asked."""

    offers = frozenset({"text"})

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.sampling: Sampling | None = None

    async def generate(self, policy: Any, requests: Sequence[Request], sampling: Sampling) -> list[Sample]:
        self.asked += requests
        self.sampling = sampling
        words = [str(request.problem.prompt).rpartition(" ")[2] for request in requests]
        return [
            Sample(r.sample_id, r.problem.id, r.group, r.index, "p", *(("", LOST) if word == LOST else (word, "stop")))
            for r, word in zip(requests, words, strict=True)
        ]


def test_all_of_it_is_label_free() -> None:
    assert [source.name for source in SOURCES] == ["vote", "agreement", "self_certainty", "judge", "compare"]
    assert not any(source.uses_reference for source in SOURCES)
    assert {source.name for source in SOURCES if source.compares} == {"vote", "compare"}
    around = Surroundings(samples=8)
    configs = [RewardConfig(use=name) for name in ("vote", "self_certainty")]
    feedback = load_feedback(configs, reference_columns=["answer"], label_free=True, surroundings=around)
    assert feedback.compares
    assert not feedback.uses_reference


@pytest.mark.parametrize(
    ("texts", "rewards", "share"),
    [
        (["a", "a", "b"], [1.0, 1.0, 0.0], 2 / 3),
        ([" a\n", "a", "b", "c"], [1.0, 1.0, 0.0, 0.0], 0.5),
        (["a", "b"], [None, None], 0.5),
        (["a", "a", "b", "b", "c"], [None] * 5, 0.4),
        (["", " ", "b"], [0.0, 0.0, 1.0], 1 / 3),
        (["", ""], [None, None], 0.0),
        (["a", "a"], [1.0, 1.0], 1.0),
    ],
)
def test_votes_by_hand(texts: list[str], rewards: list[float | None], share: float) -> None:
    judged = ask(built("vote"), grouped(texts))
    assert judged.rewards == rewards
    assert judged.metrics == {"vote_share": [pytest.approx(share)]}
    assert all(extra == {"vote_share": pytest.approx(share)} for extra in judged.extra)
    assert not judged.errors, "a tie is no fault"
    assert judged.abstained == {place for place, reward in enumerate(rewards) if reward is None}


def test_each_problem_votes_by_itself() -> None:
    judged = ask(built("vote"), grouped(["a", "a", "b"], ["b", "b", "a"], ["a"]))
    assert judged.rewards == [1.0, 1.0, 0.0, 1.0, 1.0, 0.0, None]
    assert judged.metrics == {"vote_share": [pytest.approx(2 / 3)] * 2}
    assert judged.extra[6] == {}
    assert judged.abstained == {6}


def test_a_weak_majority_says_nothing() -> None:
    rows = grouped(["a", "a", "b", "c"], ["a", "a", "a", "b"])
    judged = ask(built("vote", least_share=0.51), rows)
    assert judged.rewards == [None] * 4 + [1.0, 1.0, 1.0, 0.0]
    assert judged.abstained == {0, 1, 2, 3}
    assert ask(built("vote", least_share=0.5), rows).rewards == [1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ({"extract": "number"}, ["so 1,000", "= 1000.0", "12", "none"]),
        ({"extract": "choice"}, ["The answer is (B).", "B", "A. Paris", "?"]),
        ({"extract": "choice", "labels": ["yes", "no"]}, ["Yes.", "yes", "no", "perhaps"]),
        ({"extract": "regex", "pattern": r"x=(\d)"}, ["x=1 x=2", "x=2!", "x=1", "2"]),
        ({"extract": "regex", "pattern": r"\d\d"}, ["11 22", "22", "11", "2"]),
    ],
)
def test_answers_are_read_off_the_text(options: dict[str, Any], texts: list[str]) -> None:
    judge = built("vote", **options)
    assert ask(judge, grouped(texts)).rewards == [1.0, 1.0, 0.0, 0.0]
    judge.close()


def test_a_tie_leaves_no_other_part_to_judge_alone() -> None:
    problems, samples = grouped(["a", "b"], ["a", "a"])
    configs = [RewardConfig(use="vote"), RewardConfig(use="length", options={"target": 1, "unit": "characters"})]
    feedback = load_feedback(configs, reference_columns=[], label_free=True, surroundings=Surroundings(samples=2))
    judged = asyncio.run(feedback.judge([problems[0], problems[2]], samples))
    assert judged.mask.tolist() == [[False, False]] * 2 + [[True, True]] * 2
    assert judged.metrics["failed/vote"] == 0.0


@pytest.mark.usefixtures("impatient")
def test_a_pattern_that_never_ends_is_cut_off() -> None:
    judge = built("vote", **SLOW)
    judged = ask(judge, grouped(["b", STUCK, "b c"], ["b", "b"]))
    assert judged.rewards == [None, None, None, 1.0, 1.0]
    assert set(judged.errors) == {1}
    assert "did not return within 1 s" in judged.errors[1]
    judge.close()


@pytest.mark.usefixtures("impatient")
def test_a_function_that_never_ends_is_cut_off(tmp_path: Path) -> None:
    (tmp_path / "mirror.py").write_text(
        "def twice(prompt):\n"
        "    while prompt == 'prompt 0':\n        pass\n"
        "    return {'prompt 1': 'say x', 'prompt 2': 3, 'prompt 3': []}[prompt]\n"
    )
    options = {"variants": f"{tmp_path / 'mirror.py'}:twice"}
    judge: Any = sources()["agreement"].make(Surroundings(writer=Mirror()), options)
    judged = ask(judge.asking(FAR), grouped(["x"], ["x"], ["x"], ["x"], ["x"]))
    judge.close()
    assert judged.rewards == [None, 1.0, None, None, None]
    reasons = ["did not return within 1 s", "not iterable", "returned none", "KeyError: 'prompt 4' (line 4)"]
    for place, reason in zip([0, 2, 3, 4], reasons, strict=True):
        assert reason in judged.errors[place]


def test_the_majority_of_nothing() -> None:
    assert majority([]) == (None, 0.0)


def test_agreement_with_the_answer_to_the_mirrored_prompt() -> None:
    problems, samples = grouped(["x", "x ", "y"], ["y", ""])
    problems = [
        Problem(p.id, p.prompt, {"mirrored": "say x" if p.id == "p0" else ["say y", "say z"]}) for p in problems
    ]
    generator = Mirror()
    judge = sources()["agreement"].make(Surroundings(writer=generator, seed=3), {"max_tokens": 7})
    judged = ask(judge.asking(FAR), (problems, samples))  # type: ignore[attr-defined]
    assert judged.rewards == [1.0, 1.0, 0.0, 0.5, 0.0]
    assert [request.problem.prompt for request in generator.asked] == ["say x", "say y", "say z"], "once a problem"
    assert generator.sampling == Sampling(max_tokens=7, temperature=0.0)
    keys = [request.key for request in generator.asked]
    ask(judge.asking(FAR), (problems[3:], samples[3:]))  # type: ignore[attr-defined]
    assert [request.key for request in generator.asked[3:]] == keys[1:], "keys are of the problem, not of the batch"
    assert len(set(keys)) == 3


def test_agreement_under_a_function_of_the_prompt(tmp_path: Path) -> None:
    (tmp_path / "mirror.py").write_text(
        "def twice(prompt):\n    return [prompt + ' x', ({'role': 'user', 'content': 'y'},)]\n"
    )
    generator = Mirror()
    options = {"variants": f"{tmp_path / 'mirror.py'}:twice"}
    judge = sources()["agreement"].make(Surroundings(writer=generator), options)
    assert ask(judge.asking(FAR), grouped(["x"])).rewards == [0.5]  # type: ignore[attr-defined]
    judge.close()
    assert generator.asked[1].problem.prompt == ({"role": "user", "content": "y"},)


def test_a_problem_without_equivalent_prompts_is_masked() -> None:
    problems, samples = grouped(["x"], ["x"])
    problems[1] = Problem("p1", "prompt", {"mirrored": "say x"})
    judged = ask(built("agreement").asking(FAR), (problems, samples))  # type: ignore[attr-defined]
    assert judged.rewards == [None, 1.0]
    assert 'no column "mirrored"' in judged.errors[0]


def test_an_equivalent_prompt_without_an_answer_is_left_out() -> None:
    problems, samples = grouped(["x", "y"], ["x"])
    problems = [Problem(p.id, p.prompt, {"mirrored": [LOST, "x"] if p.id == "p0" else LOST}) for p in problems]
    judged = ask(built("agreement").asking(FAR), (problems, samples))  # type: ignore[attr-defined]
    assert judged.rewards == [1.0, 0.0, None]
    assert "could not be answered" in judged.errors[2]


def test_agreement_has_to_know_whom_to_ask() -> None:
    rows = [Problem("p0", "prompt", {"mirrored": "say x"})], grouped(["x"])[1]
    with pytest.raises(ConfigError, match="told of none"):
        ask(built("agreement"), rows)
    with pytest.raises(ConfigError, match="nothing here generates"):
        sources()["agreement"].make(Surroundings(), {})


def test_sums_come_with_their_mirror_which_is_no_reference() -> None:
    problem = make(759, 468)
    assert (problem.prompt, problem.columns["mirrored"]) == ("957+864=", "864+957=")


def test_certainty_is_read_off_the_samples() -> None:
    problems, samples = grouped(["x"], stats={"self_certainty": 1.25})
    assert ask(built("self_certainty"), (problems, samples)).rewards == [1.25]
    judged = ask(built("self_certainty"), grouped(["x"], stats={"entropy": 1.0}))
    assert judged.rewards == [None]
    assert "how certain" in judged.errors[0]


@pytest.mark.parametrize(
    ("source", "options", "fault"),
    [
        ("vote", {"extract": "numbers"}, 'Did you mean "number"'),
        ("vote", {"extract": "regex"}, "Give both or neither"),
        ("vote", {"pattern": "a"}, "Give both or neither"),
        ("vote", {"extract": "regex", "pattern": "("}, "no regular expression"),
        ("vote", {"least_share": 1.5}, "a number from 0 to 1, found 1.5"),
        ("vote", {"least_share": True}, "a number from 0 to 1, found True"),
        ("vote", {"labels": []}, "letters or a list of texts"),
        ("vote", {"share": 1}, 'unknown option "share"'),
        ("agreement", {"max_tokens": 0}, "a whole number of at least 1"),
        ("agreement", {"variants": "nowhere.py:f"}, "no Python file"),
        ("judge", {"rubric": "{prompt}"}, "has no {completion}"),
        ("judge", {"scores": ["1"]}, "two or more different words"),
        ("judge", {"scores": [1, 2]}, "in quotes"),
        ("judge", {"scores": ["1", "1"]}, "different"),
        ("judge", {"model": "nowhere"}, "is no model folder"),
        ("compare", {"template": "{prompt}{first}"}, "has no {second}"),
        ("compare", {"letters": ["a"]}, "two different words"),
        ("compare", {"pairs": -1}, "a whole number of at least 0"),
    ],
)
def test_options_are_checked(source: str, options: dict[str, Any], fault: str) -> None:
    from loopwise.config.blocks import RuntimeConfig
    from loopwise.runtime import make_runtime

    runtime = make_runtime(RuntimeConfig(device="cpu", threads=1), seed=0)
    with pytest.raises(ConfigError, match=fault.replace("{", r"\{")) as raised:
        sources()[source].make(Surroundings(writer=Mirror(), runtime=runtime), options)
    assert f'"{source}"' in str(raised.value)
