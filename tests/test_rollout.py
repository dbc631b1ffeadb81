"""Rollouts: journaled before use, re-read instead of drawn again, put together in the order they were asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loopwise.errors import ConfigError
from loopwise.models.policy import Policy
from loopwise.models.prompts import render
from loopwise.rollout import Roller
from loopwise.runs.journal import Journal
from loopwise.runs.rows import Place
from loopwise.types import Budget, Feedback, Preference, Problem, PromptState, Request, Sample, Sampling, Scored

# Lengths differ, so that units are not in the order of the problems.
PROBLEMS = [Problem(f"p{place}", "?" * length) for place, length in enumerate((9, 2, 5, 2, 7))]
POLICY = Policy(prompt_state=PromptState(system="Be brief."))


class UnpluggedError(Exception):
    """The process died here."""


@dataclass
class Remote:
    """A generator that answers each request after a moment with what its key says, and counts what it was asked."""

    asked: list[list[Request]] = field(default_factory=list)
    fails_after: int | None = None
    offers = frozenset({"text"})

    @property
    def answered(self) -> list[str]:
        return [request.sample_id for batch in self.asked for request in batch]

    async def generate(self, policy: Any, requests: Sequence[Request], sampling: Sampling) -> list[Sample]:
        if self.fails_after is not None and len(self.asked) == self.fails_after:
            raise UnpluggedError
        self.asked.append(list(requests))

        async def answer(request: Request) -> Sample:
            await asyncio.sleep(request.key % 3 / 1000)
            place = {"group": request.group, "index": request.index, "policy_id": policy.id}
            return Sample(request.sample_id, request.problem.id, text=f"{request.key}", finish_reason="stop", **place)

        return list(await asyncio.gather(*map(answer, requests)))


@dataclass
class Judge:
    """Scores a sample by its key; the second of each group cannot be judged. Prefers the first to the last."""

    seen: list[list[tuple[str, str]]] = field(default_factory=list)
    fails_after: int | None = None
    name = "judge"
    uses_reference = False

    async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Feedback:
        if self.fails_after is not None and len(self.seen) == self.fails_after:
            raise UnpluggedError
        self.seen.append([(problem.id, sample.id) for problem, sample in zip(problems, samples, strict=True)])
        rewards = np.array([[np.nan if s.index == 1 else float(int(s.text) % 100), s.index] for s in samples])
        groups: dict[int, list[int]] = {}
        for place, sample in enumerate(samples):
            groups.setdefault(sample.group, []).append(place)
        return Feedback(
            parts=("key", "index"),
            weights=(1.0, 0.0),
            rewards=rewards,
            mask=~np.isnan(rewards),
            preferences=tuple(Preference(members[0], members[-1], 0.5) for members in groups.values()),
            critiques=tuple(f"on {sample.id}" for sample in samples),
            metrics={"failed/key": 1.0, "mean": float(len(samples))},
        )


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal.db", create=True) as journal:
        journal.create_run("run", "improve", {}, "hash", {}, {}, 1)
        yield journal


@pytest.fixture
def make_roller(journal: Journal) -> Callable[..., Roller]:
    def make(**changes: Any) -> Roller:
        parts = {
            "run_id": "run",
            "seed": 7,
            "generator": Remote(),
            "feedback": Judge(),
            "journal": journal,
            "unit": 4,
            "book": lambda number, key, budget: None,
            "store": lambda action: action(),
            "on_progress": lambda phase, done, total: None,
        }
        return Roller(**parts | changes)

    return make


Make = Callable[..., Roller]
HOT = Sampling(max_tokens=4)


def texts(scored: Scored) -> dict[str, str]:
    return {f"{sample.problem_id}/{sample.index}": sample.text for sample in scored.samples}


def equal(one: Scored, other: Scored) -> bool:
    same = (one.problems, one.samples) == (other.problems, other.samples)
    ours, theirs = one.feedback, other.feedback
    arrays = [(ours.rewards, theirs.rewards), (ours.mask, theirs.mask)]
    rest = replace(ours, rewards=np.zeros(0), mask=np.zeros(0)), replace(theirs, rewards=np.zeros(0), mask=np.zeros(0))
    plain = repr(rest[0]) == repr(rest[1])
    return same and plain and all(np.array_equal(a, b, equal_nan=True) for a, b in arrays)


def test_samples_come_group_after_group(make_roller: Make) -> None:
    scored = make_roller().at(1, "train", HOT)(POLICY, PROBLEMS, 3)
    assert scored.problems == tuple(PROBLEMS)
    assert [(s.problem_id, s.group, s.index) for s in scored.samples] == [
        (f"p{group}", group, index) for group in range(5) for index in range(3)
    ]
    assert len(set(texts(scored).values())) == 15, "every sample has its own key"
    for place, sample in enumerate(scored.samples):
        assert scored.feedback.critiques[place] == f"on {sample.id}"
        assert scored.feedback.rewards[place, 1] == sample.index
        expected = np.nan if sample.index == 1 else int(sample.text) % 100
        assert scored.feedback.totals[place] == pytest.approx(expected, nan_ok=True) or sample.index == 1
    pairs = [(pair.chosen, pair.rejected) for pair in scored.feedback.preferences]
    assert sorted(pairs) == [(3 * group, 3 * group + 2) for group in range(5)]
    assert scored.feedback.metrics == {"failed/key": 5.0, "mean": 3.0}


def test_units_are_whole_groups_of_like_length(make_roller: Make) -> None:
    generator, judge = Remote(), Judge()
    progress: list[tuple[str, int, int]] = []
    roller = make_roller(generator=generator, feedback=judge, on_progress=lambda *news: progress.append(news))
    roller.at(1, "train", HOT)(POLICY, PROBLEMS, 2)
    units = [[request.problem.id for request in batch] for batch in generator.asked]
    assert units == [["p1", "p1", "p3", "p3"], ["p2", "p2", "p4", "p4"], ["p0", "p0"]]
    assert [[problem for problem, _ in batch] for batch in judge.seen] == units
    assert progress == [("train", 4, 10), ("train", 8, 10), ("train", 10, 10)]
    generator.asked.clear()
    roller.at(2, "train", HOT)(POLICY, PROBLEMS, 6)
    assert [len(batch) for batch in generator.asked] == [6] * 5, "a group larger than a unit stays whole"


def test_other_unit_sizes_ask_with_the_same_keys(make_roller: Make, journal: Journal, tmp_path: Path) -> None:
    whole = make_roller(unit=1000).at(1, "train", HOT)(POLICY, PROBLEMS, 3)
    with Journal.open(tmp_path / "other.db", create=True) as other:
        other.create_run("run", "improve", {}, "hash", {}, {}, 1)
        split = make_roller(unit=1, journal=other).at(1, "train", HOT)(POLICY, PROBLEMS, 3)
    assert texts(split) == texts(whole)
    assert [sample.id for sample in split.samples] == [sample.id for sample in whole.samples]


def test_keys_follow_seed_round_step_problem_and_index(make_roller: Make) -> None:
    generator = Remote()
    roller = make_roller(generator=generator)
    roller.at(1, "train", HOT)(POLICY, PROBLEMS, 2)
    roller.at(1, "train", HOT)(POLICY, PROBLEMS, 2, step=1)
    roller.at(2, "train", HOT)(POLICY, PROBLEMS, 2)
    make_roller(generator=generator, seed=8).at(3, "train", HOT)(POLICY, PROBLEMS, 2)
    keys = [request.key for batch in generator.asked for request in batch]
    assert len(set(keys)) == len(keys) == 40


def test_held_out_samples_share_their_noise_across_rounds(make_roller: Make) -> None:
    roller = make_roller()
    first, second = (roller.at(number, "dev", HOT)(POLICY, PROBLEMS, 1) for number in (1, 2))
    assert texts(first) == texts(second), "paired comparisons share their noise"
    assert {sample.id for sample in first.samples}.isdisjoint(sample.id for sample in second.samples)
    assert texts(roller.at(1, "test", HOT)(POLICY, PROBLEMS, 1)) != texts(first)


def test_a_second_call_reads_what_the_first_one_paid_for(make_roller: Make) -> None:
    generator, judge = Remote(), Judge()
    roller = make_roller(generator=generator, feedback=judge)
    first = roller.at(1, "train", HOT)(POLICY, PROBLEMS, 2)
    asked, judged = len(generator.asked), len(judge.seen)
    assert equal(roller.at(1, "train", HOT)(POLICY, PROBLEMS, 2), first)
    assert (len(generator.asked), len(judge.seen)) == (asked, judged)


def test_one_step_cannot_be_asked_of_two_policies(make_roller: Make) -> None:
    # It would be handed the samples of the first: a mutant would always score like its parent.
    rollout = make_roller().at(1, "train", HOT)
    rollout(POLICY, PROBLEMS, 2)
    other = replace(POLICY, prompt_state=PromptState(system="Be long."))
    with pytest.raises(ConfigError, match=r"step 0 of round 1 was asked of two policies.*a step of its own"):
        rollout(other, PROBLEMS, 2)
    assert {sample.policy_id for sample in rollout(other, PROBLEMS, 2, step=1).samples} == {other.id}


def test_what_is_re_read_takes_its_place_in_the_new_call(make_roller: Make) -> None:
    roller = make_roller()
    roller.at(1, "train", HOT)(POLICY, PROBLEMS, 2)
    turned = roller.at(1, "train", HOT)(POLICY, PROBLEMS[::-1], 2)
    assert [(s.problem_id, s.group) for s in turned.samples[:3]] == [("p4", 0), ("p4", 0), ("p3", 1)]
    assert turned.feedback.critiques[2] == f"on {turned.samples[2].id}"


@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("culprit", ["generator", "feedback"])
def test_nothing_is_paid_for_twice_after_a_crash(make_roller: Make, after: int, culprit: str) -> None:
    whole = make_roller().at(1, "dev", HOT)(POLICY, PROBLEMS, 2)
    generator, judge = Remote(), Judge()
    part = generator if culprit == "generator" else judge
    part.fails_after = after
    with pytest.raises(UnpluggedError):
        make_roller(generator=generator, feedback=judge).at(1, "train", HOT)(POLICY, PROBLEMS, 2)
    part.fails_after = None
    scored = make_roller(generator=generator, feedback=judge).at(1, "train", HOT)(POLICY, PROBLEMS, 2)
    assert sorted(generator.answered) == sorted(sample.id for sample in scored.samples), "asked once for each"
    judged = [name for batch in judge.seen for _, name in batch]
    assert sorted(judged) == sorted(generator.answered), "judged once each"
    assert len(scored.samples) == len(whole.samples)


def test_samples_are_journaled_before_they_are_judged(make_roller: Make, journal: Journal) -> None:
    class Watching(Judge):
        async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Feedback:
            there = journal.samples_at(Place("run", 1, 0, "train"))
            assert [there[sample.id] for sample in samples] == list(samples)
            return await super().judge(problems, samples)

    scored = make_roller(feedback=Watching()).at(1, "train", HOT)(POLICY, PROBLEMS, 2)
    assert journal.feedback_at(Place("run", 1, 0, "train"), scored.samples) is not None
    assert set(journal.problems("run")) == {problem.id for problem in PROBLEMS}


def test_rewards_of_none_stay_masked_when_re_read(make_roller: Make) -> None:
    roller = make_roller()
    for _ in range(2):
        feedback = roller.at(1, "train", HOT)(POLICY, PROBLEMS, 2).feedback
        assert feedback.mask[:, 0].tolist() == [True, False] * 5
        assert np.isnan(feedback.rewards[1::2, 0]).all()
        assert feedback.mask[:, 1].all()


def test_what_a_source_puts_under_its_mask_changes_nothing_when_re_read(make_roller: Make) -> None:
    class Zeros(Judge):
        async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Feedback:
            said = await super().judge(problems, samples)
            return replace(said, rewards=np.nan_to_num(said.rewards))

    roller = make_roller(feedback=Zeros())
    first, again = (roller.at(1, "train", HOT)(POLICY, PROBLEMS, 2) for _ in range(2))
    assert equal(first, again)
    assert np.isnan(first.feedback.rewards[1::2, 0]).all()


def test_the_journal_tells_the_metrics_of_units_of_different_size(make_roller: Make, journal: Journal) -> None:
    scored = make_roller().at(1, "train", HOT)(POLICY, PROBLEMS, 2)
    read = journal.feedback_at(Place("run", 1, 0, "train"), scored.samples, "reward")
    assert read is not None
    assert (
        read.metrics
        == scored.feedback.metrics
        == {"failed/key": 3.0, "mean": pytest.approx((4 * 4 + 4 * 4 + 2 * 2) / 10)}
    )


def test_reports_are_asked_on_held_out_phases_alone(make_roller: Make, journal: Journal) -> None:
    report = Judge()
    roller = make_roller(report=report)
    roller.at(1, "train", HOT)(POLICY, PROBLEMS, 1)
    assert report.seen == []
    scored = roller.at(1, "dev", HOT)(POLICY, PROBLEMS, 1)
    assert sum(map(len, report.seen)) == 5
    there = journal.feedback_at(Place("run", 1, 0, "dev"), scored.samples, "report")
    assert there.parts == ("key", "index")


def test_each_unit_is_booked_under_the_same_key_when_re_read(
    make_roller: Make, make_policy: Callable[..., Policy]
) -> None:
    bookings: list[list[tuple[int, str, Budget]]] = []
    for _ in range(2):
        bookings.append([])
        roller = make_roller(book=lambda *entry: bookings[-1].append(entry))
        roller.at(3, "train", HOT)(make_policy(), PROBLEMS, 2)
    assert bookings[0] == bookings[1]
    assert len({key for _, key, _ in bookings[0]}) == len(bookings[0]) == 6
    assert {number for number, _, _ in bookings[0]} == {3}
    assert sum(budget.judge_calls for _, _, budget in bookings[0]) == 10


def test_generated_and_read_tokens_are_counted_once_a_group(
    make_roller: Make, make_policy: Callable[..., Policy]
) -> None:
    class Counting(Remote):
        async def generate(self, policy: Any, requests: Sequence[Request], sampling: Sampling) -> list[Sample]:
            samples = await super().generate(policy, requests, sampling)
            return [replace(s, prompt_ids=(1,) * 10, token_ids=(1, 2, 3), loss_mask=(1, 1, 1)) for s in samples]

    spent: list[Budget] = []
    policy = make_policy()
    roller = make_roller(generator=Counting(), unit=100, book=lambda number, key, budget: spent.append(budget))
    roller.at(1, "train", HOT)(policy, PROBLEMS, 4)
    generated, read = 5 * 4 * 3, 5 * 10
    flops = 2.0 * policy.weights.parameter_count * (generated + read)
    assert spent[0] == Budget(tokens_generated=generated, flops=flops)
    assert spent[1] == Budget(judge_calls=20)


def test_no_problems_give_an_empty_rollout(make_roller: Make) -> None:
    scored = make_roller().at(1, "train", HOT)(POLICY, [], 4)
    assert (scored.problems, scored.samples, scored.feedback.totals.shape) == ((), (), (0,))


def test_prompts_are_rendered_for_a_prompt_state_alone(make_roller: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[str] = []

    def counted(problem: Problem, state: PromptState) -> Any:
        rendered.append(problem.id)
        return render(problem, state)

    monkeypatch.setattr("loopwise.rollout.render", counted)
    make_roller().at(1, "train", HOT)(Policy(), PROBLEMS, 3)
    assert rendered == []
    make_roller().at(2, "train", HOT)(POLICY, PROBLEMS, 3)
    assert rendered == ["p0", "p1", "p2", "p3", "p4"], "once a problem, not once a sample"
