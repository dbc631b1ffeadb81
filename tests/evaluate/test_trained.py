"""Judges as rewards: which number they give, what is masked, and options that do not fit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loopwise.config.blocks import RewardConfig
from loopwise.config.judge_blocks import JudgeModelConfig
from loopwise.errors import ConfigError, RewardError
from loopwise.evaluate.loading import load_feedback
from loopwise.evaluate.sources import Surroundings, sources
from loopwise.models.encoders import calibrated, start_judge
from loopwise.models.folders import save_policy
from loopwise.models.judges import encode_readings, judge_of, judge_texts
from loopwise.models.policy import Policy
from loopwise.runtime import Runtime
from loopwise.types import Problem, Sample

SHAPE: dict[str, Any] = {"create": "bert", "depth": 1, "width": 16, "heads": 2, "context": 24, "tokenizer": "byte"}


@pytest.fixture
def saved(runtime: Runtime, tmp_path: Path) -> Callable[[str], Policy]:
    """Save a judge in ``tmp_path / head``, with a temperature of 2 and a centre of 0.5."""

    def save(head: str) -> Policy:
        labels = ("no", "yes", "0") if head == "labels" else ()
        model = JudgeModelConfig.model_validate(SHAPE)
        policy = calibrated(start_judge(model, head, "completion", labels, runtime, ()), 2.0, 0.5)
        save_policy(policy, tmp_path / head / "model")
        return policy

    return save


def rows(texts: list[str], **columns: list[Any]) -> tuple[list[Problem], list[Sample]]:
    problems = [Problem(f"p{n}", "q", {name: values[n] for name, values in columns.items()}) for n in range(len(texts))]
    return problems, [Sample(f"s{n}", f"p{n}", n, 0, "policy", text, "stop") for n, text in enumerate(texts)]


def build(folder: Path, runtime: Runtime, name: str = "trained_judge", **options: Any) -> Any:
    if isinstance(options.get("path"), str):
        options["path"] = str(folder / options["path"])
    return sources()[name].make(Surroundings(runtime=runtime), options)


def test_the_reward_is_the_calibrated_probability_of_a_label(
    saved: Callable[[str], Policy], tmp_path: Path, runtime: Runtime
) -> None:
    policy = saved("labels")
    texts = ["one", "another text", "x"]
    told = judge_texts(judge_of(policy), encode_readings(policy, [(text, None) for text in texts]), runtime) / 2.0
    expected = np.exp(told) / np.exp(told).sum(axis=1, keepdims=True)
    judged = asyncio.run(build(tmp_path, runtime, path="labels", label="yes").judge(*rows(texts)))
    assert judged.rewards == pytest.approx(expected[:, 1].tolist())
    assert [entry["label"] for entry in judged.extra] == [("no", "yes", "0")[n] for n in told.argmax(axis=1)]
    problems, samples = rows(texts, wanted=["no", 0, "yes"])
    judged = asyncio.run(build(tmp_path, runtime, path="labels/model", column="wanted").judge(problems, samples))
    assert judged.rewards == pytest.approx([expected[0, 0], expected[1, 2], expected[2, 1]])


def test_a_reward_model_gives_its_score_raw_or_between_0_and_1(
    saved: Callable[[str], Policy], tmp_path: Path, runtime: Runtime
) -> None:
    policy = saved("score")
    scores = judge_texts(judge_of(policy), encode_readings(policy, [("a", None), ("bcd", None)]), runtime)
    raw = asyncio.run(build(tmp_path, runtime, path="score", scale="raw").judge(*rows(["a", "bcd"])))
    assert raw.rewards == pytest.approx(scores.tolist())
    scaled = asyncio.run(build(tmp_path, runtime, path="score").judge(*rows(["a", "bcd"])))
    assert scaled.rewards == pytest.approx((1 / (1 + np.exp(-(scores - 0.5) / 2))).tolist())


def test_what_cannot_be_judged_is_masked(saved: Callable[[str], Policy], tmp_path: Path, runtime: Runtime) -> None:
    saved("labels")
    judge = build(tmp_path, runtime, path="labels", column="wanted")
    problems, samples = rows(["ok", "too long " * 9, "ok", "ok"], wanted=["yes", "yes", "maybe", None])
    judged = asyncio.run(judge.judge(problems, samples))
    assert [reward is None for reward in judged.rewards] == [False, True, True, True]
    assert set(judged.errors) == {1, 2, 3}
    assert "83 tokens are more than the 24" in judged.errors[1]
    assert 'no label "maybe"' in judged.errors[2]
    assert "trained_judge_gold" in judged.errors[3]
    judge.close()
    judge.close()


def test_a_reference_reaches_the_source_that_says_so_alone(
    saved: Callable[[str], Policy], tmp_path: Path, runtime: Runtime
) -> None:
    saved("labels")
    around = Surroundings(runtime=runtime)
    options = {"path": str(tmp_path / "labels"), "column": "truth"}
    problems, samples = rows(["a"], truth=["yes"])

    def feedback(use: str, label_free: bool = False) -> Any:
        config = RewardConfig(use=use, options=options)
        return load_feedback([config], reference_columns=["truth"], label_free=label_free, surroundings=around)

    assert asyncio.run(feedback("trained_judge_gold").check(problems, samples)).mask.all()
    with pytest.raises(RewardError, match='no column "truth"'):
        asyncio.run(feedback("trained_judge").check(problems, samples))
    with pytest.raises(ConfigError, match="uses references"):
        feedback("trained_judge_gold", label_free=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": "nowhere"}, "no such folder"),
        ({"path": 3}, '"path" must be text'),
        ({"path": "labels"}, "needs the label"),
        ({"path": "labels", "label": "yes", "column": "c"}, "needs the label"),
        ({"path": "labels", "label": "yess"}, 'Did you mean "yes"'),
        ({"path": "labels", "label": "yes", "scale": "raw"}, "for reward models"),
        ({"path": "score", "label": "yes"}, "no labels"),
        ({"path": "score", "scale": "loud"}, "one of sigmoid, raw"),
        ({"label": "yes"}, '"path" is missing'),
    ],
)
def test_options_that_do_not_fit_are_named(
    saved: Callable[[str], Policy], tmp_path: Path, runtime: Runtime, options: dict[str, Any], words: str
) -> None:
    saved("labels")
    saved("score")
    with pytest.raises(ConfigError, match=words):
        build(tmp_path, runtime, **options)


def test_a_language_model_and_a_pickle_are_no_judges(folder: Path, runtime: Runtime) -> None:
    with pytest.raises(ConfigError, match="a language model, no judge"):
        build(folder.parent, runtime, path=folder.name)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="is a pickle"):
        build(folder.parent, runtime, path=folder.name)
