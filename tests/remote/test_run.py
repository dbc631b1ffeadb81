"""A whole run whose judge is remote: stopped half-way and resumed, no answer is paid for twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.evaluate.test_remote_judges import answer_of
from tests.remote.server import Answer, Asked, FakeServer, completion, error

import loopwise as lw
from loopwise.config import ImproveRecipe, parse_recipe
from loopwise.errors import RemoteError


def test_a_run_stopped_by_its_judge_is_resumed_without_paying_twice(
    server: FakeServer, model: Path, tmp_path: Path, no_report: None
) -> None:
    recipe = parse_recipe(
        ImproveRecipe,
        {
            "model": str(model),
            "data": {"task": "addition", "labelled": 4, "dev": 4, "test": 0},
            "endpoints": {"judge": {"url": server.url, "model": "tiny", "concurrency": 2}},
            "rewards": [{"use": "remote_judge", "options": {"endpoint": "judge"}}],
            "rounds": 1,
            "problems": 4,
            "samples": 2,
            "sampling": {"max_tokens": 4},
            "monitors": {"problems": 0},
            "update": {"method": "rft", "steps": 1, "batch_size": 2, "threshold": 0.1},
            "runtime": {"threads": 1, "generate_batch": 2},
        },
        "the test",
    )

    def score(asked: Asked) -> Answer:
        return completion(f"score: {len(set(answer_of(asked)))}")

    revoked = 10
    server.reply = lambda asked, number: score(asked) if number < revoked else error(401, "the key was revoked")
    with pytest.raises(RemoteError, match="the key was revoked"):
        lw.improve(recipe, tmp_path / "run")
    ledger = tmp_path / "run" / "remote.jsonl"
    assert len(ledger.read_text().splitlines()) == revoked - 1
    server.reply = lambda asked, number: score(asked)
    refused = len(server.asked) - (revoked - 1)
    lw.improve(recipe, tmp_path / "run", resume=True)
    places = [json.loads(line)["place"] for line in ledger.read_text().splitlines()]
    assert len(places) == len(set(places)) == len(server.asked) - refused
    server.reply = lambda asked, number: error(500, "asked again")
    asked = len(server.asked)
    lw.improve(recipe, tmp_path / "run", resume=True)
    assert len(server.asked) == asked
