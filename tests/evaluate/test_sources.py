"""Judges and critics beside reward functions: what reaches them, what they may be asked for, what their failures do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loopwise.config.blocks import RewardConfig
from loopwise.errors import ConfigError, RewardError
from loopwise.evaluate import loading
from loopwise.evaluate.loading import load_feedback
from loopwise.evaluate.parts import Judged
from loopwise.evaluate.rewards import RewardSum
from loopwise.evaluate.sources import Source, Surroundings
from loopwise.types import LOST, Preference, Problem, Sample

PROBLEMS = [Problem("p0", "1+1=", {"answer": "2", "level": "easy"}), Problem("p1", "2+2=", {"answer": "4"})]
SAMPLES = [
    Sample("a", "p0", 0, 0, "x", "2", "stop"),
    Sample("b", "p0", 0, 1, "x", "3", "stop"),
    Sample("c", "p1", 1, 0, "x", "5", "stop"),
    Sample("d", "p1", 1, 1, "x", "4", "stop"),
]


@dataclass
class Spy:
    """Scores a text by its number; remembers what it was shown."""

    fails: bool = False
    seen: list[Any] = field(default_factory=list)
    policy: Any = None
    closed: int = 0

    async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Judged:
        self.seen.append([(problem.columns, sample.id) for problem, sample in zip(problems, samples, strict=True)])
        if self.fails:
            raise RuntimeError("no answer")
        judged = Judged.nothing(len(samples))
        judged.rewards = [float(sample.text) for sample in samples]
        judged.critiques = [f"{sample.text} is odd" if int(sample.text) % 2 else None for sample in samples]
        judged.preferences = [Preference(0, len(samples) - 1)]
        return judged

    def asking(self, policy: Any) -> Spy:
        return replace(self, policy=policy)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def enter(*found: Source) -> None:
        monkeypatch.setattr(loading, "sources", lambda: {source.name: source for source in found})

    return enter


def load(*rewards: Any, critics: Sequence[Any] = (), label_free: bool = False, **around: Any) -> RewardSum:
    def parsed(entries: Sequence[Any]) -> list[RewardConfig]:
        return [RewardConfig.model_validate({"use": e} if isinstance(e, str) else e) for e in entries]

    return load_feedback(
        parsed(rewards),
        critics=parsed(critics),
        reference_columns=["answer"],
        label_free=label_free,
        surroundings=Surroundings(**around),
    )


def judge(feedback: RewardSum, samples: Sequence[Sample] = SAMPLES) -> Any:
    return asyncio.run(feedback.judge(PROBLEMS, samples))


BOTH = frozenset({"rewards", "critiques"})


def test_a_judge_is_a_part_of_the_sum_and_sees_no_reference_it_does_not_use(register: Callable[..., None]) -> None:
    spy = Spy()
    register(Source("spy", lambda surroundings: spy))
    with load({"use": "spy", "weight": 0.5}, "exact_match") as feedback:
        said = judge(feedback)
    assert said.parts == ("spy", "exact_match")
    assert said.totals.tolist() == [2.0, 1.5, 2.5, 3.0]
    assert said.preferences == (Preference(0, 3),)
    assert said.critiques is None
    assert spy.seen[0][0][0] == {"level": "easy"}
    assert spy.closed == 1


def test_one_that_uses_references_sees_them_and_is_refused_where_none_may_be_seen(
    register: Callable[..., None],
) -> None:
    spy = Spy()
    register(Source("spy", lambda surroundings: spy, uses_reference=True))
    judge(load("spy"))
    assert spy.seen[0][0][0]["answer"] == "2"
    with pytest.raises(ConfigError, match='reward "spy" uses references, but label_free'):
        load("spy", label_free=True)


def test_critics_speak_and_score_nothing(register: Callable[..., None], tmp_path: Path) -> None:
    register(Source("spy", lambda surroundings: Spy(), says=BOTH))
    (tmp_path / "critic.py").write_text(
        "def critique(completions, **columns):\n    return [None if c == '2' else f'not {c}' for c in completions]\n"
    )
    with load("exact_match", critics=["spy", f"{tmp_path}/critic.py:critique"]) as feedback:
        said = judge(feedback)
    assert said.parts == ("exact_match",)
    assert said.critiques == (None, "3 is odd\nnot 3", "5 is odd\nnot 5", "not 4")
    assert said.preferences == ()


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("[1.0] * len(completions)", "it returned 1.0 .float. as a critique"),
        ("['a']", "it returned 1 critiques for 4 completions"),
        ("'a'", "not a list"),
    ],
)
def test_a_critic_that_breaks_its_contract_says_nothing_and_masks_nothing(
    returned: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "critic.py").write_text(f"def critique(completions, **columns):\n    return {returned}\n")
    with load("exact_match", critics=[f"{tmp_path}/critic.py:critique"]) as feedback:
        with pytest.raises(RewardError, match=f'critic "critique": .*{message}'):
            asyncio.run(feedback.check(PROBLEMS, SAMPLES))
        said = judge(feedback)
    assert said.totals.tolist() == [1.0, 0.0, 0.0, 1.0]
    if "float" in message:
        assert said.critiques == (None,) * 4
        assert all("critique" in entry["critic_error"] for entry in said.extra)
        assert not any("error" in entry for entry in said.extra)


def test_a_source_is_asked_for_what_it_says_alone(register: Callable[..., None]) -> None:
    register(
        Source("scores", lambda surroundings: Spy()),
        Source("words", lambda surroundings: Spy(), says=frozenset({"critiques"})),
    )
    with pytest.raises(ConfigError, match=r'"scores" gives scores, no critiques. Move it to "rewards"'):
        load("exact_match", critics=["scores"])
    with pytest.raises(ConfigError, match=r'"words" gives words, no rewards. Move it to "critics"'):
        load("words")
    with pytest.raises(ConfigError, match='critic "exact_match" gives scores, no critiques'):
        load("exact_match", critics=["exact_match"])
    with pytest.raises(ConfigError, match=r'reward "score": no such rule. Did you mean "scores"'):
        load("score")
    with pytest.raises(ConfigError, match=r'critic "score": no such critic. Known: words'):
        load(critics=["score"])


def test_options_are_checked(register: Callable[..., None]) -> None:
    def build(surroundings: Surroundings, *, level: int, loud: bool = False) -> Spy:
        return Spy()

    register(Source("spy", build))
    with pytest.raises(ConfigError, match='source "spy": option "level" is missing'):
        load("spy")
    with pytest.raises(ConfigError, match=r'source "spy": unknown option "laud". Did you mean "loud"'):
        load({"use": "spy", "options": {"level": 1, "laud": True}})
    assert load({"use": "spy", "options": {"level": 1}}).parts[0].name == "spy"


def test_one_that_compares_wants_two_samples(register: Callable[..., None]) -> None:
    register(Source("spy", lambda surroundings: Spy(), compares=True))
    with pytest.raises(ConfigError, match=r'reward "spy" sets .*, and 1 is drawn\. Draw several: samples: 4'):
        load("spy", samples=1)
    assert load("spy", samples=2).compares


def test_one_that_compares_is_of_no_use_to_a_command_that_draws_one(register: Callable[..., None]) -> None:
    register(Source("spy", lambda surroundings: Spy(), compares=True))
    with pytest.raises(ConfigError, match="here one is drawn of each, whatever the recipe") as raised:
        load("spy", samples=None)
    assert "samples: 4" not in str(raised.value), "tune has no such key"


def test_one_that_raises_spoils_its_samples_and_not_the_run(register: Callable[..., None]) -> None:
    register(Source("spy", lambda surroundings: Spy(fails=True)))
    with load("exact_match", "spy") as feedback:
        said = judge(feedback)
    assert not said.mask.any()
    assert {entry["error"] for entry in said.extra} == {"spy: it raised RuntimeError: no answer"}


def test_the_policy_that_drew_reaches_those_that_ask_it(register: Callable[..., None]) -> None:
    register(Source("spy", lambda surroundings: Spy()))
    feedback = load("spy", "exact_match").asking("the policy")
    assert feedback.parts[0].source.policy == "the policy"  # type: ignore[attr-defined]


def test_what_could_not_be_drawn_is_not_judged(register: Callable[..., None]) -> None:
    spy = Spy()
    register(Source("spy", lambda surroundings: spy, says=BOTH))
    samples = [replace(SAMPLES[0], finish_reason=LOST, text=""), *SAMPLES[1:]]
    with load("spy", critics=["spy"]) as feedback:
        said = judge(feedback, samples)
    assert [entry[1] for entry in spy.seen[0]] == ["b", "c", "d"]
    assert said.mask[:, 0].tolist() == [False, True, True, True]
    assert said.extra[0] == {"error": "it could not be drawn"}
    assert said.critiques == (None, "3 is odd", "5 is odd", None)
    assert said.preferences == (Preference(1, 3),)


def test_a_call_that_fails_is_repeated_group_by_group(register: Callable[..., None]) -> None:
    class Picky(Spy):
        async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Judged:
            if any(sample.text == "5" for sample in samples):
                raise RuntimeError("not five")
            return await super().judge(problems, samples)

    register(Source("spy", lambda surroundings: Picky(), says=BOTH))
    with load("spy") as feedback:
        said = judge(feedback)
    assert said.mask[:, 0].tolist() == [True, True, False, False]
    assert said.preferences == (Preference(0, 1),)
    assert said.extra[2]["error"] == said.extra[3]["error"] == "spy: it raised RuntimeError: not five"


def test_a_judge_that_abstains_masks_the_sample_and_is_no_failure(register: Callable[..., None]) -> None:
    class Shy(Spy):
        async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Judged:
            judged = Judged.nothing(len(samples))
            judged.abstained = {0, 1}
            judged.rewards[2:] = [1.0] * len(samples[2:])
            return judged

    register(Source("spy", lambda surroundings: Shy()))
    with load("spy", "exact_match") as feedback:
        asyncio.run(feedback.check(PROBLEMS, SAMPLES))
        said = judge(feedback)
    assert np.isnan(said.totals[:2]).all()
    assert said.totals[2:].tolist() == [1.0, 2.0]
    assert said.metrics["failed/spy"] == 0
    assert said.extra[0] == {"abstained": "spy"}


def test_names_of_parts_never_meet(register: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text("def a(completions, **c): return [1.0] * len(completions)\na_2 = a\n")
    with load(f"{tmp_path}/r.py:a_2", f"{tmp_path}/r.py:a", f"{tmp_path}/r.py:a") as feedback:
        names = [part.name for part in feedback.parts]
    assert len(set(names)) == 3, names


@pytest.mark.parametrize("name", ["spy", "exact_match"])
def test_a_time_limit_is_of_what_may_hang(register: Callable[..., None], name: str) -> None:
    register(Source("spy", lambda surroundings: Spy()))
    with pytest.raises(ConfigError, match=f'reward "{name}": "time_limit" does nothing here'):
        load({"use": name, "time_limit": 5})
    assert load({"use": name, "time_limit": 30}), "the default, as a run's record has it"


def test_a_weight_is_of_rewards(register: Callable[..., None]) -> None:
    register(Source("spy", lambda surroundings: Spy(), says=BOTH))
    assert load({"use": "spy", "weight": 5}).parts[0].weight == 5
    with pytest.raises(ConfigError, match='critic "spy": "weight" does nothing here'):
        load(critics=[{"use": "spy", "weight": 5}])


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ("spy", " uses references, but label_free promises .* Set label_free: false, or take a critic that uses none"),
        ({"use": "spy", "uses_reference": False}, ": uses_reference is true for this source. Remove the key"),
        ("nowhere.py:f", ": there is no file nowhere.py"),
        ({"use": "a.module", "options": {"x": 1}}, ": options are for built-in rules"),
    ],
)
def test_faults_of_critics_are_called_so_and_have_mends_for_critics(
    register: Callable[..., None], config: Any, fault: str
) -> None:
    register(Source("spy", lambda surroundings: Spy(), uses_reference=True, says=BOTH))
    name = config if isinstance(config, str) else config["use"]
    with pytest.raises(ConfigError, match=f'^critic "{name}"{fault}') as raised:
        load(critics=[config], label_free=config == "spy")
    assert "report_rewards" not in str(raised.value)
