"""A label-free run: corrupting every reference changes no byte of it, and whatever would see one is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loopwise.config.reading import parse_recipe
from loopwise.config.recipes import ImproveRecipe
from loopwise.errors import ConfigError
from loopwise.generate.local import LocalGenerator
from loopwise.models.policy import Policy
from loopwise.results import Result
from loopwise.runs.journal import Journal
from loopwise.runs.rows import Place
from loopwise.runtime import Runtime
from loopwise.stages.improve import improve
from loopwise.types import Context, Problem, Request, Rollout, Sample, Sampling, Updated

OWN = """
def code(completions, answer, **_):
    return [float(ord(a)) for a in answer]

def contains(completions, answer=None, **_):
    return [None if answer is None else float(a in c) for c, a in zip(completions, answer or completions)]

def copied(completions, completion=None, **_):
    return [None if completion is None else float(a in c) for c, a in zip(completions, completion or completions)]
"""
LETTER = {"use": "regex", "options": {"pattern": "[a-e]"}}
Make = Callable[..., ImproveRecipe]

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture
def make_recipe(folder: Path, tmp_path: Path) -> Make:
    """A recipe over twenty rows, whose answers are ``answers`` in turn."""

    def make(answers: str = "0123456789", **changes: Any) -> ImproveRecipe:
        gold = [answers[n % len(answers)] for n in range(20)]
        rows = [
            {"prompt": f"{n}+1=", "answer": answer, "completion": answer, "level": "easy"}
            for n, answer in enumerate(gold)
        ]
        train = tmp_path / f"rows-{answers}.jsonl"
        train.write_text("\n".join(map(json.dumps, rows)))
        content = {
            "model": str(folder),
            "data": {"train": str(train), "dev": 5, "test": 3, "reference_columns": ["answer"]},
            "rewards": [LETTER],
            "update": {"method": "rft", "steps": 4, "batch_size": 8, "optimizer": {"lr": 1e-2}},
            "rounds": 2,
            "problems": 6,
            "samples": 3,
            "sampling": {"max_tokens": 8},
            "label_free": True,
            "runtime": {"device": "cpu", "threads": 1},
        }
        return parse_recipe(ImproveRecipe, content | changes)

    return make


def told(result: Result) -> dict[str, Any]:
    """Everything that may depend on references if a promise is broken."""
    with Journal.open(result.out / "journal.db", read_only=True) as journal:
        return {
            "weights": (result.model / "model.safetensors").read_bytes(),
            "samples": [(row.sample, row.total, row.kept) for row in journal.all_samples("improve")],
            "decisions": journal.decisions("improve"),
            "steps": journal.steps("improve"),
        }


def gold(result: Result) -> list[float]:
    """What the reported reward said about the base on dev."""
    with Journal.open(result.out / "journal.db", read_only=True) as journal:
        place = Place("improve", 0, 0, "dev")
        samples = list(journal.samples_at(place).values())
        return journal.feedback_at(place, samples, "report").totals.tolist()


def test_corrupting_every_reference_changes_no_byte(make_recipe: Make, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    # A function of unknown habits joins the sum: it must be handed no references, and is masked without them.
    changes = {
        "rewards": [LETTER, f"{tmp_path / 'own.py'}:contains", f"{tmp_path / 'own.py'}:copied"],
        "report_rewards": [f"{tmp_path / 'own.py'}:code"],
    }
    honest = improve(make_recipe(**changes), tmp_path / "honest")
    corrupted = improve(make_recipe("xyzxyz.=+a", **changes), tmp_path / "corrupted")
    assert told(honest) == told(corrupted)
    assert [entry["kept"] > 0 for entry in honest.summary["rounds"]] == [True, True], "it did learn from samples"
    assert gold(honest) != gold(corrupted), "reported, never decisive"


@pytest.mark.parametrize("reward", ["contains", "copied"])
def test_the_same_corruption_shows_where_nothing_was_promised(make_recipe: Make, tmp_path: Path, reward: str) -> None:
    (tmp_path / "own.py").write_text(OWN)
    changes = {"rewards": [f"{tmp_path / 'own.py'}:{reward}"], "label_free": False}
    honest = improve(make_recipe(**changes), tmp_path / "honest")
    corrupted = improve(make_recipe("xyzxyz.=+a", **changes), tmp_path / "corrupted")
    assert told(honest)["weights"] != told(corrupted)["weights"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": ["exact_match"]}, 'reward "exact_match" uses references, but label_free promises'),
        ({"rewards": [LETTER, "number"]}, 'reward "number" uses references'),
        ({"rewards": [{"use": "a.b", "uses_reference": True}]}, 'reward "a.b" uses references'),
        ({"controls": ["gold"]}, "gold trains on references"),
        ({"update": {"method": "rft", "keep": "gold"}}, 'update.keep": it trains on references'),
        ({"update": {"method": "spin"}}, 'update.method": it trains on references'),
        ({"gate": {"metric": "likelihood"}}, "likelihood reads references"),
    ],
)
def test_whatever_would_see_a_reference_is_refused(
    make_recipe: Make, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        improve(make_recipe(**changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Spy(LocalGenerator):
    """A generator that notes which columns it was shown."""

    seen: list[tuple[str, frozenset[str]]]

    async def generate(self, policy: Policy, requests: Sequence[Request], sampling: Sampling) -> list[Sample]:
        self.seen.extend((request.sample_id.split("/")[0], frozenset(request.problem.columns)) for request in requests)
        return await super().generate(policy, requests, sampling)


@pytest.mark.parametrize("label_free", [True, False])
def test_update_generator_and_rewards_are_shown_no_references(
    make_recipe: Make, runtime: Runtime, tmp_path: Path, label_free: bool
) -> None:
    spy = Spy(runtime)
    object.__setattr__(spy, "seen", [])
    columns: dict[str, set[str]] = {"update": set(), "reward": set()}

    def look(policy: Any, state: Any, problems: Sequence[Problem], rollout: Rollout, context: Context) -> Updated:
        columns["update"] |= {name for problem in problems for name in problem.columns}
        rollout(policy, problems, 2)
        return Updated(policy, None, {})

    look.needs = frozenset({"text"})

    def reward(completions: Sequence[str], **rest: Any) -> list[float]:
        columns["reward"] |= rest.keys() & {"answer", "completion", "level"}
        return [0.0] * len(completions)

    recipe = make_recipe(label_free=label_free)
    improve(recipe, tmp_path / "out", update=look, generator=spy, rewards=[reward])
    expected = {"level"} if label_free else {"level", "answer", "completion"}
    assert columns == {"update": expected, "reward": expected}
    assert {shown for phase, shown in spy.seen if phase in ("train", "trial")} == {frozenset(expected)}


def test_samples_that_could_not_be_judged_are_not_learned_from(make_recipe: Make, tmp_path: Path) -> None:
    def half_blind(completions: Sequence[str], **_: Any) -> list[float | None]:
        return [None if len(completion) % 2 else 1.0 for completion in completions]

    result = improve(make_recipe(), tmp_path / "out", rewards=[half_blind])
    with Journal.open(result.out / "journal.db", read_only=True) as journal:
        rows = [row for row in journal.all_samples("improve") if row.place.phase == "train"]
    masked = [row for row in rows if row.total is None]
    assert masked
    assert not any(row.kept for row in masked)
    assert [row for row in rows if row.kept and row.total == 1.0]
    assert {len(row.sample.text) % 2 for row in masked} == {1}
    assert np.isfinite([entry["reward"] for entry in result.summary["rounds"]]).all(), "a mask is no zero"
    assert [entry["reward"] for entry in result.summary["rounds"]] == [1.0, 1.0]
