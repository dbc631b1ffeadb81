"""A judge's steps: the loss of a batch however it is cut, masks drawn as the paper draws them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from loopwise.config.judge_blocks import JudgeModelConfig, JudgingConfig, MaskedConfig
from loopwise.models.encoders import start_judge
from loopwise.models.judges import encode_readings
from loopwise.models.policy import Policy
from loopwise.runtime import Runtime
from loopwise.update.judging import JudgedRow, Judging
from loopwise.update.masked import MaskedReading, Vocabulary, mask_text

SHAPE: dict[str, Any] = {
    "create": "bert", "depth": 1, "width": 16, "heads": 2, "context": 32, "tokenizer": "byte", "dropout": 0.0
}  # fmt: skip
TEXTS = ("a", "bb", "the cat", "long words here", "x y z", "12345678", "ok", "so it is")


@pytest.fixture
def judge(runtime: Runtime) -> Callable[..., Policy]:
    """Make a judge with a head."""

    def make(head: str) -> Policy:
        labels = ("no", "yes", "maybe") if head == "labels" else ()
        return start_judge(JudgeModelConfig.model_validate(SHAPE), head, "completion", labels, runtime, ())

    return make


def rows_of(policy: Policy, kind: str) -> tuple[JudgedRow, ...]:
    texts = encode_readings(policy, [(text, None) for text in TEXTS])
    if kind == "preference":
        return tuple(JudgedRow((one, other), 0, 0.25) for one, other in zip(texts, texts[::-1], strict=True))
    return tuple(JudgedRow((text,), place % (3 if kind == "labels" else 2)) for place, text in enumerate(texts))


def gradient(policy: Policy, update: Any) -> tuple[float, dict[str, float], torch.Tensor]:
    """Loss, sums and gradient of the first step."""
    module = policy.trainable_module()
    batch = update.batch(0, 0)
    total, sums = 0.0, {}
    for part in batch.micro_batches:
        loss, told = batch.loss(module, part)
        loss.backward()
        total += float(loss.detach())
        for name, value in told.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    flat = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
    return total, sums, torch.cat(flat)


@pytest.mark.parametrize("kind", ["labels", "preference", "unpaired"])
def test_a_batch_costs_the_same_however_it_is_cut(judge: Callable[..., Policy], kind: str) -> None:
    policy = judge("labels" if kind == "labels" else "score")
    rows = rows_of(policy, kind)
    found = [
        gradient(policy, Judging(JudgingConfig(batch_size=8, tokens_per_pass=tokens), kind, rows, 1))
        for tokens in (1, 10_000)
    ]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)
    torch.testing.assert_close(found[0][2], found[1][2], rtol=1e-4, atol=1e-6)


def test_margins_of_recipe_and_row_add_up(judge: Callable[..., Policy]) -> None:
    policy = judge("score")
    rows = rows_of(policy, "preference")[:1]
    config = JudgingConfig(batch_size=1, loss="hinge", margin=5.0)
    loss, told, _ = gradient(policy, Judging(config, "preference", rows, 1))
    assert loss == pytest.approx(5.25 - told["rewards/margins"], rel=1e-5)


def test_masks_are_drawn_as_in_the_paper(judge: Callable[..., Policy]) -> None:
    vocabulary = Vocabulary.of(judge("tokens").tokenizer)
    opening, *marks = sorted(vocabulary.marks)
    text = [opening, *(int(vocabulary.ordinary[n % 200]) for n in range(4000)), marks[0]]
    found = mask_text(text, vocabulary, 0.15, "seed", 1)
    assert found == mask_text(text, vocabulary, 0.15, "seed", 1)
    assert found != mask_text(text, vocabulary, 0.15, "seed", 2)
    assert len(found.places) == 600
    assert not {0, len(text) - 1} & set(found.places)
    assert [text[place] for place in found.places] == list(found.targets)
    changed = [place for place in range(len(text)) if found.shown[place] != text[place]]
    assert set(changed) <= set(found.places)
    shown = np.array([found.shown[place] for place in found.places])
    masked = (shown == vocabulary.mask).mean()
    kept = (shown == np.array(found.targets)).mean()
    assert masked == pytest.approx(0.8, abs=0.06)
    assert kept == pytest.approx(0.1, abs=0.05)
    assert 1 - masked - kept == pytest.approx(0.1, abs=0.05)


def test_a_text_of_marks_alone_is_left_as_it_is(judge: Callable[..., Policy]) -> None:
    vocabulary = Vocabulary.of(judge("tokens").tokenizer)
    text = tuple(sorted(vocabulary.marks))
    found = mask_text(text, vocabulary, 0.15, 0)
    assert (found.shown, found.places) == (text, ())


def test_only_masked_tokens_are_learned(judge: Callable[..., Policy]) -> None:
    policy = judge("tokens")
    texts = tuple(encode_readings(policy, [(text, None) for text in TEXTS]))
    update = MaskedReading(MaskedConfig(batch_size=8), texts, Vocabulary.of(policy.tokenizer))
    batch = update.batch(0, 3)
    module: Any = policy.trainable_module()
    with torch.no_grad():
        found = sum(float(batch.loss(module, part)[0]) for part in batch.micro_batches)
        total, count = 0.0, 0
        for part in batch.micro_batches:
            for text in part:
                shown = torch.tensor([text.shown])
                every = torch.ones_like(shown, dtype=torch.bool)
                logps = module(shown, every.long(), every).log_softmax(-1)
                for place, target in zip(text.places, text.targets, strict=True):
                    total, count = total - float(logps[place, target]), count + 1
    assert found == pytest.approx(total / count, rel=1e-5)
    assert math.isfinite(found)
