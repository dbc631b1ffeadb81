"""Losses against TRL's on the same tensors: its numbers lie in tests/golden, written by scripts/golden_losses.py."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from loopwise.update.losses import (
    clipped_policy_loss,
    dpo_loss,
    generalised_jsd,
    ipo_loss,
    kl_estimate,
    row_weights,
    slic_loss,
)

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "losses.json").read_text(encoding="utf-8"))
AVERAGES = {"grpo": "sequence", "dr_grpo": "constant", "dapo": "token"}


def tensor(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(torch.as_tensor(ours, dtype=torch.float64), tensor(theirs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pass_", ["on policy", "off policy", "with KL"])
@pytest.mark.parametrize("method", AVERAGES)
def test_group_methods_by_token(method: str, pass_: str) -> None:
    case, expected = GOLDEN["policy"], GOLDEN["policy"]["outputs"][f"{method} {pass_}"]
    mask, logps = tensor(case["mask"]), tensor(case["logps"]).requires_grad_()
    old_logps = None if pass_ == "on policy" else tensor(case["old_logps"])
    result = clipped_policy_loss(logps, old_logps, tensor(case["advantages"]), case["low"], case["high"])
    losses = result.loss
    if pass_ == "with KL":
        divergences = kl_estimate(logps, tensor(case["reference_logps"]), "k3")
        losses = losses + case["beta"] * divergences
        close((divergences * mask).sum() / mask.sum(), expected["kl"])
    weights = tensor(row_weights(case["lengths"], AVERAGES[method], case["constant"]))
    loss = (losses * mask * weights[:, None]).sum()
    loss.backward()
    close(loss, expected["loss"])
    close(logps.grad, expected["gradient"])
    close((result.clipped_low * mask).sum() / mask.sum(), expected["clip_ratio/low_mean"])
    close((result.clipped_high * mask).sum() / mask.sum(), expected["clip_ratio/high_mean"])


def test_rloo_by_sequence() -> None:
    case, expected = GOLDEN["policy"], GOLDEN["policy"]["outputs"]["rloo"]
    mask, logps = tensor(case["mask"]), tensor(case["logps"]).requires_grad_()
    sums, old_sums = ((part * mask).sum(1, keepdim=True) for part in (logps, tensor(case["old_logps"])))
    result = clipped_policy_loss(sums, old_sums, tensor(case["advantages"]), case["low"], case["high"])
    loss = (result.loss[:, 0] * tensor(row_weights([1] * len(sums), "sequence", 1))).sum()
    loss.backward()
    close(loss, expected["loss"])
    close(logps.grad, expected["gradient"])
    close(result.clipped_low.double().mean(), expected["clip_ratio/low_mean"])
    close(result.clipped_high.double().mean(), expected["clip_ratio/high_mean"])


def pairs(length_mean: bool) -> list[torch.Tensor]:
    """Log-probabilities of chosen, rejected, and both under the reference: sums, or means of a token."""
    case = GOLDEN["pairs"]
    lengths = tensor(case["mask"]).sum(-1) if length_mean else 1.0
    return [part for key in ("logps", "reference_logps") for part in (tensor(case[key]).sum(-1) / lengths).unbind(1)]


def test_dpo() -> None:
    close(dpo_loss(*pairs(length_mean=False), GOLDEN["pairs"]["dpo_beta"]), GOLDEN["pairs"]["outputs"]["dpo"])


def test_ipo_on_means() -> None:
    close(ipo_loss(*pairs(length_mean=True), GOLDEN["pairs"]["ipo_beta"]), GOLDEN["pairs"]["outputs"]["ipo"])


def test_slic() -> None:
    chosen, rejected, *_ = pairs(length_mean=False)
    close(slic_loss(chosen, rejected, delta=1.0), GOLDEN["pairs"]["outputs"]["slic"])


def test_hinge_of_dpo_is_slic_against_the_reference() -> None:
    chosen, rejected, reference_chosen, reference_rejected = pairs(length_mean=False)
    beta = GOLDEN["pairs"]["hinge_beta"]
    hinge = beta * slic_loss(chosen - reference_chosen, rejected - reference_rejected, delta=1 / beta)
    close(hinge, GOLDEN["pairs"]["outputs"]["hinge"])


@pytest.mark.parametrize("case", GOLDEN["jsd"]["outputs"], ids=lambda case: f"{case['beta']}, {case['temperature']}")
def test_jsd(case: dict[str, Any]) -> None:
    logits = tensor(GOLDEN["jsd"]["student_logits"]), tensor(GOLDEN["jsd"]["teacher_logits"])
    close(generalised_jsd(*logits, case["beta"], case["temperature"]), case["losses"])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed: it is in the bench extra")
def test_trl_still_computes_these_numbers(tmp_path: Path) -> None:
    script = str(ROOT / "scripts" / "golden_losses.py")
    subprocess.run([sys.executable, script, str(tmp_path / "losses.json")], check=True, capture_output=True)
    same(json.loads((tmp_path / "losses.json").read_text(encoding="utf-8")), GOLDEN)


def same(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            same(found[key], value)
    elif isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    else:
        assert found == (pytest.approx(expected, abs=1e-6) if isinstance(expected, float) else expected)
