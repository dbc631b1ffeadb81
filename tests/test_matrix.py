"""Every source of feedback with every way of learning: two steps on a tiny model, or the reason why not.

``docs/feedback.md`` shows the table; a test holds the two together.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.docs.documents import ROOT
from tests.matrix import AT_THE_GATE, NEEDS_WORDS, READS_WORDS, UPDATES, scores, words
from tests.remote.server import completion, fake_server

from loopwise.config.methods import ImproveUpdate
from loopwise.config.reading import parse_recipe
from loopwise.config.recipes import ImproveRecipe, TuneRecipe
from loopwise.errors import ConfigError
from loopwise.evaluate.programs import python_tests
from loopwise.evaluate.rules import RULES
from loopwise.evaluate.sources import Surroundings, sources
from loopwise.models.policy import Policy
from loopwise.rollout import Roller
from loopwise.runs.journal import Journal
from loopwise.stages.improve import Prepared, prepare
from loopwise.stages.updates import build_update
from loopwise.starting import sampling_of
from loopwise.types import Context

SCORES, WORDS = scores(Path(), Path(), Path()), words(Path())
COMPARING = ("compare", "remote_compare")
LEAST_SPREAD = 1e-3
UNTRIED = {"reasoning_gym": "its columns are a task's own: tests/tasks/test_gym.py"}
PROGRAM = "f=abs"
NOBODY_READS = "nothing reads what they say"
ROWS = [
    {
        "prompt": f"{n}+1=",
        "answer": str(n + 1),
        "completion": str(n + 1),
        "mirrored": f"1+{n}=",
        "kind": "yes" if n % 2 else "no",
        "letter": "ab"[n % 2],
        "function": "f",
        "tests": [{"input": [n], "output": n}],
    }
    for n in range(8)
]


def lessons() -> Iterator[dict[str, str]]:
    """What the model of these tests learns to write: answers, programs more than others, of which every source likes
    some better than others; that a draft is no good; to revise one; and which of two comes first in the alphabet."""
    for n, row in enumerate(ROWS):
        prompt, answers = row["prompt"], (row["answer"], f"{n} {n}", row["kind"], row["letter"], PROGRAM)
        for answer in answers:
            yield from [{"prompt": prompt, "completion": answer}] * (2 if answer == PROGRAM else 1)
            yield {"prompt": row["mirrored"], "completion": answer}
            yield {"prompt": f"{prompt}{answer}\n", "completion": "no"}
            yield {"prompt": f"{prompt}{answer}\nno\n", "completion": row["answer"]}
            yield {"prompt": f"{prompt}{answer}\nno\n", "completion": row["letter"]}
        for first, second in permutations(answers, 2):
            yield {"prompt": f"{prompt}{first}.{second}.", "completion": "a" if first < second else "b"}


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory, make_policy: Any) -> Path:
    """The folder of a tiny model that writes one of several things, so that each source has samples to tell apart."""
    from loopwise.models.folders import save_policy
    from loopwise.stages.finetune import tune

    folder = tmp_path_factory.mktemp("writer")
    save_policy(make_policy(), folder / "untaught")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lessons())))
    content = {
        "model": str(folder / "untaught"),
        "data": {"train": str(folder / "rows.jsonl"), "dev": 0, "test": 0},
        "update": {"steps": 200, "batch_size": 160, "optimizer": {"name": "adamw", "lr": 0.01}},
        "runtime": {"device": "cpu", "threads": 1},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loopwise.results.write_report", lambda *_: None)
        tune(parse_recipe(TuneRecipe, content), folder / "out")
    return folder / "out" / "model"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """The folder of a tiny BERT."""
    import torch
    from transformers import AutoModel, BertConfig

    folder = tmp_path_factory.mktemp("encoder")
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=48,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a judge that was taught a little."""
    from loopwise.config.recipes import JudgeRecipe
    from loopwise.stages.judging import train_judge

    folder = tmp_path_factory.mktemp("judge")
    rows = [{"text": text, "label": label} for n in range(26) for text, label in ((f"{n}", "yes"), (chr(97 + n), "no"))]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    content = {
        "model": {"create": "bert", "depth": 1, "width": 8, "heads": 1, "context": 16, "tokenizer": "char"},
        "data": {"train": str(folder / "rows.jsonl"), "dev": 0.2, "test": 0.2},
        "update": {"steps": 20, "batch_size": 16, "optimizer": {"lr": 0.01}},
        "rounds": 1,
        "runtime": {"device": "cpu", "threads": 1},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loopwise.results.write_report", lambda *_: None)
        train_judge(parse_recipe(JudgeRecipe, content), folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A remote judge with an opinion on everything."""
    with fake_server() as server:
        server.reply = lambda asked, number: completion(opinion(asked.body["messages"][-1]["content"]))
        yield server.url


def opinion(asked: str) -> str:
    """The longer an answer, the better; of two, the one that comes first in the alphabet wins."""
    shown = dict(re.findall(r"<(\w+) [0-9a-f]+>\n(.*?)\n</", asked, re.DOTALL))
    if "verdict:" in asked:
        return f"verdict: {min('AB', key=shown.__getitem__)}"
    return f"No.\nscore: {len(shown['answer'])}"


@pytest.fixture
def recipe_of(writer: Path, encoder: Path, trained: Path, server: str, tmp_path: Path) -> Any:
    """The recipe of a source and an update."""
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    known = scores(writer, trained, encoder) | words(writer)

    def make(source: str, update: str) -> ImproveRecipe:
        own = {"method": update, **UPDATES[update], **({"teacher": str(writer)} if update == "distill" else {})}
        if source in WORDS:
            judged = {"rewards": ["exact_match"], "critics": [{"use": source, "options": known[source]}]}
        else:
            critics = {"critics": [{"use": "mismatch", "options": WORDS["mismatch"]}]} if update in NEEDS_WORDS else {}
            judged = {"rewards": [{"use": source, "options": known[source]}], **critics}
        content = {
            "model": str(writer),
            "data": {
                "train": str(tmp_path / "rows.jsonl"),
                "dev": 0,
                "test": 0,
                "completion_column": "completion",
                "reference_columns": ["answer", "tests"],
            },
            # Of answers that are as likely, none is ever most of them.
            "sampling": {"max_tokens": 6, "temperature": 0.2 if source == "vote" else 1.0},
            "rounds": 1,
            "problems": 4,
            "samples": 8,
            "update": own,
            **({"refine": {"template": "{prompt}{draft}\n{critique}\n", "held_out": False}} if update == "ilf" else {}),
            "endpoints": {"away": {"url": server, "model": "fake"}},
            "runtime": {"device": "cpu", "threads": 1},
        }
        return parse_recipe(ImproveRecipe, content | judged)

    return make


def check_sandbox() -> None:
    """Skip, with the reason, where this machine has no sandbox."""
    try:
        with closing(python_tests(Surroundings())):
            pass
    except ConfigError as reason:
        pytest.skip(str(reason))


def refusal(source: str, update: str) -> str | None:
    """Why a pair makes no sense; None where it does."""
    return NOBODY_READS if source in WORDS and update not in READS_WORDS else None


@dataclass
class Heard:
    """A rollout that remembers how many samples its first part judged, how far apart it set those of a problem, how
    many pairs it preferred one of, and how many samples a critic spoke of."""

    rollout: Any
    judged: int = 0
    failed: float = 0.0
    criticised: int = 0
    spread: float = 0.0
    preferred: int = 0

    def __call__(self, policy: Any, problems: Any, k: int, **place: Any) -> Any:
        scored = self.rollout(policy, problems, k, **place)
        feedback = scored.feedback
        if feedback.parts:
            self.judged += int(feedback.mask[:, 0].sum())
            self.spread = max(self.spread, *(np.ptp(feedback.rewards[members, 0]) for _, members in scored.groups()))
            self.preferred += len(feedback.preferences)
            self.failed += feedback.metrics[f"failed/{feedback.parts[0]}"]
            self.criticised += sum(map(bool, feedback.critiques or ()))
        return scored


@dataclass(frozen=True)
class Round:
    """One round of an update: the figures of its steps, what it returned, and what its rollouts heard."""

    steps: list[Mapping[str, float]]
    updated: Any
    heard: Heard


def two_steps(prepared: Prepared, journal: Journal, run_id: str) -> Round:
    """One round of the update."""
    recipe = prepared.recipe
    journal.create_run(run_id, "improve", {}, "", {}, {}, 1)
    roller = Roller(
        run_id=run_id,
        seed=0,
        generator=prepared.generator,
        feedback=prepared.feedback,
        journal=journal,
        unit=8,
        book=lambda number, key, budget: None,
        store=lambda action: action(),
        on_progress=lambda phase, done, total: None,
    )
    steps: list[Mapping[str, float]] = []
    context = Context(
        run_id=run_id,
        seed=0,
        round=1,
        runtime=prepared.runtime,
        spend=lambda budget: None,
        record=lambda step, metrics: steps.append(metrics),
        keep=lambda ids: None,
        checkpoint=lambda step, progress: None,
        reference=prepared.base,
    )
    rollout = Heard(roller.at(1, "train", sampling_of(recipe)))
    problems = prepared.streams.draw(1, recipe.problems)
    return Round(steps, prepared.update(prepared.base, None, problems, rollout, context), rollout)


@pytest.mark.parametrize("source", [*SCORES, *WORDS])
def test_a_source_with_every_update(source: str, recipe_of: Any, tmp_path: Path) -> None:
    if source == "python_tests":
        check_sandbox()
    with Journal.open(tmp_path / "journal.db", create=True) as journal, ExitStack() as stack:
        prepared: dict[bool, Prepared] = {}
        for update in UPDATES:
            recipe = recipe_of(source, update)
            if (reason := refusal(source, update)) is not None:
                with pytest.raises(ConfigError, match=reason):
                    prepare(stack, recipe, trial=False)
                continue
            # The judges of a source are the same whatever learns from them, and some take a second to start.
            critics = bool(recipe.critics)
            if critics not in prepared:
                prepared[critics] = prepare(stack, recipe, trial=False)
            own = prepared[critics]
            built = build_update(recipe, own.streams, own.base, own.runtime)
            found = two_steps(replace(own, recipe=recipe, update=built.update), journal, update)
            updated, heard = found.updated, found.heard
            assert isinstance(updated.candidate, Policy), update
            assert all(math.isfinite(value) for value in updated.metrics.values()), update
            assert updated.candidate.weights is not None, update
            assert updated.candidate.weights.finite, update
            assert len(found.steps) == 2, update
            assert heard.judged > 0, update
            assert heard.spread > LEAST_SPREAD, update
            assert heard.preferred > 0 or source not in COMPARING, update
            assert heard.failed == 0, update
            assert heard.criticised > 0 or not critics, update


@pytest.mark.parametrize("update", UPDATES)
def test_what_is_learned_follows_from_the_scores(update: str, recipe_of: Any, tmp_path: Path) -> None:
    """Turned round, they teach something else; where they decide at the gate alone, nothing else."""
    learned = set()
    with Journal.open(tmp_path / "journal.db", create=True) as journal, ExitStack() as stack:
        for weight in (1.0, -1.0):
            recipe = recipe_of("exact_match", update)
            rewards = tuple(reward.model_copy(update={"weight": weight}) for reward in recipe.rewards)
            prepared = prepare(stack, recipe.model_copy(update={"rewards": rewards}), trial=False)
            learned.add(two_steps(prepared, journal, f"weight {weight:g}").updated.candidate.id)
    assert len(learned) == (1 if update in AT_THE_GATE else 2)


def test_nothing_is_left_out() -> None:
    known = {*RULES, *sources()}
    assert known - UNTRIED.keys() == {*SCORES, *WORDS}
    tags = {choice.__metadata__[0].tag for choice in ImproveUpdate.__origin__.__args__}  # type: ignore[attr-defined]
    assert tags == set(UPDATES)


def mark(source: str, update: str) -> str:
    """What the page shows of a pair."""
    return "–" if refusal(source, update) else "○" if update in AT_THE_GATE else "✓"


def table() -> str:
    """The matrix as docs/feedback.md shows it: updates with the same marks share a column."""
    known = (*SCORES, *WORDS)
    columns: dict[tuple[str, ...], list[str]] = {}
    for update in UPDATES:
        columns.setdefault(tuple(mark(source, update) for source in known), []).append(f"`{update}`")
    rows = (f"| `{source}` | {' | '.join(marks)} |" for source, *marks in zip(known, *columns, strict=True))
    return "\n".join(
        [f"| | {' | '.join(map(', '.join, columns.values()))} |", "| --- |" + " --- |" * len(columns), *rows]
    )


def test_the_page_shows_the_table() -> None:
    page = (ROOT / "docs" / "feedback.md").read_text(encoding="utf-8")
    assert table() in page, f"docs/feedback.md is to hold:\n{table()}"
