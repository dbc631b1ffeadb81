"""Reflexion: when a lesson is written, which are kept, who is shown them, and what that does in a whole run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.stopping import CutShortError, StopAfter

from loopwise.config.methods import ReflexionConfig
from loopwise.config.reading import parse_recipe
from loopwise.config.recipes import ImproveRecipe
from loopwise.models.policy import Policy
from loopwise.models.prompts import render
from loopwise.models.tokens import encode_prompts
from loopwise.results import Result
from loopwise.runs.journal import Journal
from loopwise.stages.improve import improve
from loopwise.types import Context, Feedback, Problem, PromptState, Request, Sample, Sampling, Scored
from loopwise.update.reflexion import Reflexion, filed, tried

WRITE = "what to do differently"
SUMS = tuple(Problem(f"p{n}", f"{n}+1=", {"task": "sums"}) for n in range(3))
APART = tuple(Problem(f"p{n}", f"{n}+1=") for n in range(3))


@dataclass
class Scripted:
    """Answers, given the prompt as the policy is shown it; a sample passes where it says "carried".

    ``critic`` says what is wrong with a sample, "!" that it failed to say anything.
    """

    answer: Callable[[str], str]
    critic: Callable[[Problem], str | None] | None = None
    masked: tuple[str, ...] = ()
    asked: list[tuple[int, str, str, bool]] = field(default_factory=list)

    def __call__(
        self, policy: Policy, problems: Sequence[Problem], k: int, *, step: int = 0, judged: bool = True
    ) -> Scored:
        samples = []
        for group, problem in enumerate(problems):
            shown = as_text(render(problem, policy.prompt_state))
            self.asked.append((step, problem.id, shown, judged))
            for index in range(k):
                name = f"{step}/{problem.id}/{index}"
                text = self.answer(shown)
                samples.append(Sample(name, problem.id, group, index, policy.id, text, "stop", parent=problem.parent))
        if not judged:
            return Scored(tuple(problems), tuple(samples), Feedback.empty(len(samples)))
        rewards = [np.nan if s.problem_id in self.masked else float("carried" in s.text) for s in samples]
        words = [self.critic(problems[s.group]) if self.critic else None for s in samples]
        table = np.array(rewards).reshape(-1, 1)
        feedback = Feedback(
            ("carried",),
            (1.0,),
            table,
            ~np.isnan(table),
            critiques=tuple(None if said == "!" else said for said in words) if self.critic else None,
            extra=tuple({"critic_error": "down"} if said == "!" else {} for said in words),
        )
        return Scored(tuple(problems), tuple(samples), feedback)

    def attempts(self, step: int) -> list[str]:
        """Problems that were tried in a trial."""
        return [name for at, name, _, judged in self.asked if at == step and judged]


def as_text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(f"{m['role']}: {m['content']}" for m in prompt)


def careful(shown: str) -> str:
    """Carries where it is told to; asked what to do differently, it says so."""
    if WRITE in shown:
        return "Carry\nthe ones. "
    return "carried" if "Carry the ones." in shown else "forgot"


def reflexion(samples: int = 1, held_out: Sequence[Problem] = (), **keys: Any) -> Reflexion:
    return Reflexion(ReflexionConfig(**keys), samples, most_tokens=4, held_out=tuple(held_out))


def test_a_miss_becomes_a_lesson_that_the_next_trial_is_shown(context: Context) -> None:
    kept: list[str] = []
    recorded: list[tuple[int, dict[str, float]]] = []
    watched = replace(context, keep=kept.extend, record=lambda step, found: recorded.append((step, dict(found))))
    rollout = Scripted(careful)
    candidate, _, metrics = reflexion()(Policy(), None, APART, rollout, watched)
    assert candidate.prompt_state.lessons == tuple((f"p{n}", "Carry the ones.") for n in range(3))
    assert (rollout.attempts(0), rollout.attempts(1)) == (["p0", "p1", "p2"], ["p0", "p1", "p2"])
    assert metrics["solved/1"] == 0
    assert metrics["solved/2"] == metrics["solved/3"] == 1
    assert (metrics["lessons"], metrics["lessons/kept"]) == (3, 3)
    assert recorded == [(trial, {"solved": float(trial > 1), "lessons": 3.0}) for trial in (1, 2, 3)]
    assert rollout.attempts(2) == [], "nothing is left to try"
    assert kept == ["0/p0/0", "0/p1/0", "0/p2/0"]


def test_a_lesson_is_written_after_the_miss_and_judged_by_nobody(context: Context) -> None:
    rollout = Scripted(careful, critic=lambda problem: "No carry.")
    reflexion()(Policy(), None, APART[:1], rollout, context)
    written = [(step, name, shown) for step, name, shown, judged in rollout.asked if not judged]
    template = "0+1=forgot\nNo carry.\nIn one sentence, what to do differently: "
    assert written == [(0, "p0~lesson", template)]


def test_lessons_of_a_task_are_shown_to_all_its_problems_and_no_others(context: Context) -> None:
    held_out = (Problem("h0", "7+7=", {"task": "sums"}), Problem("h1", "7-7=", {"task": "others"}))
    candidate = reflexion()(Policy(), None, SUMS, Scripted(careful), context).candidate
    assert candidate.prompt_state.lessons == (("sums", "Carry the ones."),)
    assert render(held_out[0], candidate.prompt_state) == "- Carry the ones.\n\n7+7="
    assert render(held_out[1], candidate.prompt_state) == "7-7="


def test_no_more_misses_of_a_task_are_reflected_on_than_lessons_are_kept(context: Context) -> None:
    rollout = Scripted(lambda shown: "forgot")
    metrics = reflexion(lessons=2, trials=1)(Policy(), None, (*SUMS, APART[0]), rollout, context).metrics
    assert [name for _, name, _, judged in rollout.asked if not judged] == ["p0~lesson", "p1~lesson", "p0~lesson"]
    assert metrics["lessons"] == 3


def test_the_newest_lessons_are_kept() -> None:
    lessons = (("a", "1"), ("b", "1"), ("a", "2"))
    assert filed(lessons, (("a", "3"),), 2) == (("b", "1"), ("a", "2"), ("a", "3"))
    assert filed(lessons, (("a", "1"), ("a", "1")), 2) == (("b", "1"), ("a", "2"), ("a", "1"))
    assert filed((), (("a", "1"), ("a", "2"), ("a", "3")), 1) == (("a", "3"),)


def test_a_critic_s_words_are_the_lesson_as_they_are(context: Context) -> None:
    said = {"p0": " Carry the ones.\nThen add. ", "p1": None, "p2": "!"}
    rollout = Scripted(careful, critic=lambda problem: said[problem.id])
    update = reflexion(writes="critic", trials=2)
    candidate, _, metrics = update(Policy(), None, APART, rollout, context)
    assert candidate.prompt_state.lessons == (("p0", "Carry the ones.\nThen add."),)
    assert all(judged for _, _, _, judged in rollout.asked), "nobody had to write"
    assert rollout.attempts(1) == ["p0", "p1", "p2"]
    assert metrics["solved/2"] == pytest.approx(1 / 3)


def test_one_sample_that_passes_solves_a_problem() -> None:
    table = np.array([[0.0], [1.0], [0.0], [np.nan], [np.nan], [np.nan]])
    samples = [Sample(f"{n}", f"p{n // 2}", n // 2, n % 2, "policy", "text", "stop") for n in range(6)]
    feedback = Feedback(("r",), (1.0,), table, ~np.isnan(table), critiques=("a", "b", "c", "d", "e", "f"))
    left, misses = tried(Scored(APART, tuple(samples), feedback), threshold=1.0)
    assert [problem.id for problem in left] == ["p1", "p2"]
    assert [(miss.problem.id, miss.sample.id, miss.critique) for miss in misses] == [("p1", "2", "c")]


def test_what_could_not_be_judged_is_tried_again_without_a_lesson(context: Context) -> None:
    rollout = Scripted(careful, masked=("p0",))
    metrics = reflexion(trials=2)(Policy(), None, APART[:1], rollout, context).metrics
    assert rollout.attempts(1) == ["p0"]
    assert (metrics["lessons"], metrics["solved/2"]) == (0, 0)


def test_a_lesson_without_words_is_none(context: Context) -> None:
    rollout = Scripted(lambda shown: " \n" if WRITE in shown else "forgot")
    policy = Policy(prompt_state=PromptState(system="Add."))
    candidate, _, metrics = reflexion()(policy, None, APART, rollout, context)
    assert candidate is policy
    assert metrics["lessons"] == 0


def test_in_a_conversation_the_lesson_is_asked_of_the_draft(context: Context) -> None:
    chat = Problem("c", ({"role": "system", "content": "Add."}, {"role": "user", "content": "1+1="}))
    rollout = Scripted(careful, critic=lambda problem: "No carry.")
    reflexion()(Policy(), None, [chat], rollout, context)
    assert [shown for _, _, shown, judged in rollout.asked if not judged] == [
        "system: Add.\nuser: 1+1=\nassistant: forgot\nuser: No carry.\nIn one sentence, what to do differently:"
    ]
    assert "system: - Carry the ones.\n\nAdd." in rollout.asked[-1][2]


def test_lessons_give_way_where_a_prompt_would_not_fit(policy: Policy, context: Context) -> None:
    # The context is 48: one lesson of 12 characters leaves room after the held-out prompt of 20, two do not.
    written = iter(["0123456789 a", "0123456789 b", "0123456789 c"])
    rollout = Scripted(lambda shown: next(written) if shown.endswith("differently") else "forgot")
    update = reflexion(held_out=[Problem("h", "1" * 20, {"task": "sums"})], template="{draft}differently")
    candidate, _, metrics = update(policy, None, SUMS[:1], rollout, context)
    assert candidate.prompt_state.lessons == (("sums", "0123456789 c"),)
    assert (metrics["lessons"], metrics["lessons/dropped"], metrics["lessons/kept"]) == (3, 2, 1)
    [ids] = encode_prompts(candidate, update.held_out)
    assert len(ids) + 4 <= 48


def test_lessons_of_rounds_before_give_way_to_a_longer_prompt(policy: Policy, context: Context) -> None:
    knowing = replace(policy, prompt_state=PromptState(lessons=(("sums", "a" * 20), ("other", "b"))))
    rollout = Scripted(lambda shown: "carried")
    longer = Problem("p", "1" * 24, {"task": "sums"})
    candidate, _, metrics = reflexion()(knowing, None, [longer], rollout, context)
    assert rollout.asked == [(0, "p", "1" * 24, True)]
    assert candidate.prompt_state.lessons == (("other", "b"),)
    assert metrics["lessons/dropped"] == 1


def test_a_miss_without_room_to_reflect_on_it_is_counted(policy: Policy, context: Context) -> None:
    rollout = Scripted(lambda shown: "forgot" * 8)
    metrics = reflexion(trials=2)(policy, None, APART[:2], rollout, context).metrics
    assert (metrics["lessons/unwritten"], metrics["lessons"]) == (4, 0)


@dataclass
class Remote:
    """A model elsewhere, which gives text alone and carries where it is told to."""

    asked: list[str] = field(default_factory=list)
    offers = frozenset({"text"})

    async def generate(self, policy: Policy, requests: Sequence[Request], sampling: Sampling) -> list[Sample]:
        await asyncio.sleep(0)
        self.asked += [request.sample_id for request in requests]
        return [
            Sample(
                request.sample_id,
                request.problem.id,
                group=request.group,
                index=request.index,
                policy_id=policy.id,
                text=careful(as_text(render(request.problem, policy.prompt_state))),
                finish_reason="stop",
            )
            for request in requests
        ]


def carries(completions: Sequence[str], **_: Any) -> list[float]:
    return [float("carried" in completion) for completion in completions]


def run(tmp_path: Path, name: str, remote: Remote, columns: dict[str, Any], **more: Any) -> Result:
    rows = [json.dumps({"prompt": f"{first}+{second}=", **columns}) for first in range(7) for second in range(6)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    content = {
        "model": {"create": "demo"},
        "data": {"train": str(tmp_path / "train.jsonl"), "dev": 8, "test": 8},
        "rewards": ["regex"],
        "update": {"method": "reflexion"},
        "rounds": 2,
        "problems": 4,
        "samples": 1,
        "runtime": {"device": "cpu", "threads": 1},
    }
    recipe = parse_recipe(ImproveRecipe, content)
    return improve(recipe, tmp_path / name, rewards=[carries], generator=remote, policy=Policy(), **more)


def accuracies(result: Result) -> list[float]:
    return [result.summary["stages"][stage]["test"]["accuracy"] for stage in ("base", "improved")]


@pytest.mark.usefixtures("no_report")
def test_a_remote_model_learns_from_its_misses_without_weights(tmp_path: Path) -> None:
    result = run(tmp_path, "out", Remote(), {"task": "sums"})
    assert result.policy.prompt_state.lessons == (("sums", "Carry the ones."),)
    assert accuracies(result) == [0.0, 1.0]
    first, second = result.summary["rounds"]
    assert (first["update/solved/1"], first["update/solved/2"], second["update/solved/1"]) == (0, 1, 1)
    assert (first["samples"], second["samples"]) == (4 + 4, 4), "lessons are no attempts"
    written = json.loads((result.model / "prompt_state.json").read_text())
    assert written["lessons"] == [["sums", "Carry the ones."]]
    with Journal.open(tmp_path / "out" / "journal.db", read_only=True) as journal:
        rows = {row.sample.id: row for row in journal.all_samples("improve")}
    lessons = [row for name, row in rows.items() if "~lesson" in name]
    assert len(lessons) == 3, "of a task, as many as are kept"
    assert all(row.total is None and row.sample.parent in rows for row in lessons)


@pytest.mark.usefixtures("no_report")
def test_lessons_of_problems_apart_do_nothing_for_others(tmp_path: Path) -> None:
    result = run(tmp_path, "out", Remote(), {})
    assert accuracies(result) == [0.0, 0.0]
    assert [entry["update/solved/2"] for entry in result.summary["rounds"]] == [1, 1]


@pytest.mark.usefixtures("no_report")
def test_a_stopped_run_ends_the_same_and_pays_for_nothing_twice(tmp_path: Path) -> None:
    whole = run(tmp_path, "whole", Remote(), {"task": "sums"})
    remote = Remote()
    for number in (1, 2):
        with pytest.raises(CutShortError):
            run(tmp_path, "stopped", remote, {"task": "sums"}, observer=StopAfter(number), resume=number > 1)
    result = run(tmp_path, "stopped", remote, {"task": "sums"}, resume=True)
    assert result.policy.id == whole.policy.id
    asked = [name for name in remote.asked if not name.startswith("trial/")]
    assert len(asked) == len(set(asked))
