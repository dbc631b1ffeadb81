"""The benchmark of judges, with few of them on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.harness import Measurement

from benchmarks import judges, shape
from loopwise.evaluate.rules import RULES
from loopwise.evaluate.sources import sources


def test_each_case_is_of_a_judge_that_exists() -> None:
    assert judges.CASES.keys() <= {*RULES, *sources()}
    names = judges._names()
    assert {"bleu", "fluency", "self_bleu"} <= set(names)
    assert not [name for name in names if name.startswith(judges.REMOTE)]


def test_judges_and_generating_have_a_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape.save_model(shape.QUICK, tmp_path / judges.MODEL, end_of_text=False)
    (tmp_path / "text.txt").write_text("To be, or not to be, that is the question.\n" * 400)
    monkeypatch.setattr(judges, "_names", lambda: ["bleu", "self_bleu", "fluency", "similarity"])
    monkeypatch.setitem(judges.CASES, "similarity", judges.Case({"model": "nowhere"}))  # type: ignore[misc]
    monkeypatch.setattr(judges, "_save_judge", lambda *_: None)
    size = {"prompts": 2, "prompt": 20, "completion": 8}
    options = {"threads": 1, "repeat": 0, "models": str(tmp_path), "text": str(tmp_path / "text.txt"), "size": size}
    found = judges.judged(options)
    assert found.keys() == {judges.GENERATING, "bleu", "self_bleu", "fluency"}, "what a judge lacks leaves it out"
    assert all(rate and rate > 0 for rate in found.values())


def test_what_is_slower_than_generating_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "_names", lambda: ["quick", "slow", "absent"])
    measured = Measurement("judges", ({judges.GENERATING: 10.0, "quick": 200.0, "slow": 5.0},))
    slower, missing = judges._remarks(measured, [judges.GENERATING, "quick", "slow"])
    assert slower == "Slower than generating: slow."
    assert missing.endswith("absent.")
    assert judges._cells(measured, "slow") == ("5.0", "0.5")
