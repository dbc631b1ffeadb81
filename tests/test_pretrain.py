"""``loopwise pretrain`` on small real runs: what it writes, that it learns, that it resumes exactly."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loopwise.config import PretrainRecipe, parse_recipe
from loopwise.data.sources import Document
from loopwise.errors import ConfigError, ResumeError
from loopwise.evaluate.perplexity import text_perplexity
from loopwise.models.folders import load_policy
from loopwise.observer import Observer
from loopwise.runtime import Runtime
from loopwise.stages.pretrain import prepare, pretrain

POEM = "the moon is up\nthe river bends\nand home is far\n"


def write_corpus(folder: Path, count: int = 60) -> Path:
    path = folder / "poems.jsonl"
    lines = [json.dumps({"text": f"poem {number}\n{POEM * (1 + number % 3)}"}) for number in range(count)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def recipe(corpus: Path, shape: str = "gpt2", **changes: Any) -> PretrainRecipe:
    content: dict[str, Any] = {
        "model": {"create": shape, "depth": 2, "width": 32, "context": 32, "tokenizer": "char"},
        "data": {"train": str(corpus), "dev": 0.2, "test": 0.2},
        "update": {"steps": 8, "batch_size": 8, "optimizer": {"name": "muon", "lr": 1e-2, "warmup_steps": 2}},
        "rounds": 2,
        "prompts": ["the ", ""],
        "sampling": {"max_tokens": 6, "temperature": 1.0},
        "runtime": {"threads": 1, "checkpoint_steps": 3},
    }
    return parse_recipe(PretrainRecipe, content | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("pretrain")
    return folder, pretrain(recipe(write_corpus(folder)), folder / "out")


def test_it_learns_and_says_so(finished: tuple[Path, Any]) -> None:
    _, result = finished
    stages = result.summary["stages"]
    before, after, floor = (stages[name]["test"] for name in ("untrained", "pretrained", "ngram"))
    assert after["nats_per_token"] < 0.8 * before["nats_per_token"]
    assert math.isclose(math.exp(after["nats_per_token"]), after["perplexity"])
    assert before["tokens"] == after["tokens"] == floor["tokens"]
    assert before["bytes"] == after["bytes"] > 0
    assert 0 < floor["nats_per_token"] < before["nats_per_token"]
    assert result.summary["corpus"]["dev/documents"] > 0
    assert {"model", "report.html", "summary.json", "metrics.jsonl"} <= {path.name for path in result.out.iterdir()}


def test_the_folder_opens_in_transformers_and_gives_the_figures_of_the_run(finished: tuple[Path, Any]) -> None:
    from transformers import AutoModelForCausalLM

    folder, result = finished
    assert AutoModelForCausalLM.from_pretrained(result.model).config.n_layer == 2
    runtime = Runtime("cpu", "float32", 1, 0)
    policy = load_policy(result.model, runtime)
    texts = [json.loads(line)["text"] for line in (folder / "poems.jsonl").read_text().splitlines()]
    whole = text_perplexity(policy, texts, runtime)
    assert whole.documents == 60
    assert whole.bytes == sum(len(text) for text in texts)
    # One prediction for each character and one for the end of each text.
    assert whole.tokens == whole.bytes + 60
    assert math.isclose(whole.bits_per_byte, whole.nats / math.log(2) / whole.bytes)


def test_perplexity_by_hand(make_policy: Any) -> None:
    """A model that knows nothing gives each of V tokens a probability of 1 / V."""
    policy = make_policy()
    module = policy.trainable_module()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    flat = policy.with_module(module)
    found = text_perplexity(flat, ["12+3=", "4"], Runtime("cpu", "float32", 1, 0))
    assert math.isclose(found.perplexity, module.config.vocab_size, rel_tol=1e-5)


class CutShortError(Exception):
    """Raised by an observer to end a run in the middle."""


class StopAt(Observer):
    def __init__(self, step: int) -> None:
        self.step, self.seen = step, 0

    def progress(self, what: str, done: int, total: int) -> None:
        self.seen += what == "steps"
        if what == "steps" and self.seen == self.step:
            raise CutShortError


@pytest.mark.parametrize("shape", ["gpt2", "lstm"])
@pytest.mark.parametrize("step", [5, 13])
def test_a_resumed_run_ends_bit_for_bit_like_an_uninterrupted_one(tmp_path: Path, shape: str, step: int) -> None:
    chosen = recipe(write_corpus(tmp_path), shape)
    whole = pretrain(chosen, tmp_path / "whole")
    with pytest.raises(CutShortError):
        pretrain(chosen, tmp_path / "cut", observer=StopAt(step))
    resumed = pretrain(chosen, tmp_path / "cut", resume=True)
    assert resumed.policy.id == whole.policy.id
    assert resumed.summary["stages"] == whole.summary["stages"]


def test_micro_batches_make_no_difference(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path)
    update = {"steps": 4, "batch_size": 6, "optimizer": {"name": "adamw", "lr": 1e-3}}
    one = pretrain(recipe(corpus, update=update, rounds=1), tmp_path / "one")
    two = pretrain(recipe(corpus, update={**update, "micro_batch_size": 2}, rounds=1), tmp_path / "two")
    pairs = zip(one.policy.weights.module.parameters(), two.policy.weights.module.parameters(), strict=True)
    assert max(float((a - b).abs().max()) for a, b in pairs) < 2e-5


def test_other_text_is_not_resumed(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path)
    with pytest.raises(CutShortError):
        pretrain(recipe(corpus), tmp_path / "out", observer=StopAt(4))
    corpus.write_text(corpus.read_text() + '\n{"text": "one more, of other words"}\n')
    with pytest.raises(ResumeError, match="different now"):
        pretrain(recipe(corpus), tmp_path / "out", resume=True)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"gate": {"metric": "reward"}}, "gate.metric"),
        ({"update": {"window": 64}}, "update.window"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    from contextlib import ExitStack

    with ExitStack() as stack, pytest.raises(ConfigError, match=says):
        prepare(stack, recipe(write_corpus(tmp_path), **changes))


def test_the_floor_is_of_the_very_predictions_of_the_model(tmp_path: Path) -> None:
    from contextlib import ExitStack

    with ExitStack() as stack:
        prepared = prepare(stack, recipe(write_corpus(tmp_path)))
        floor = prepared.floor()
    for split, text in prepared.held_out.items():
        assert text.windows.tokens == sum(len(document) - 1 for document in text.documents)
        assert len(floor[split].scores) == len(text.lengths)
        assert text.lengths.sum() == text.windows.tokens
        assert np.isfinite(floor[split].scores).all()
    assert isinstance(prepared.corpus.sources[0].documents[0], Document)
