"""Whole runs on a GPU, and what ranks do over NCCL."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.ranks.scenarios import tiny
from tests.resume.harness import STAGES
from tests.stopping import CutShortError, StopAt

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("kind", ["tune", "improve", "ppo"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_goes_on_with_the_same_bits(kind: str, dtype: str, device: str, tmp_path: Path) -> None:
    made = tiny(kind, tmp_path, shard=False, model={})
    runtime = made.runtime.model_copy(update={"device": device, "dtype": dtype})
    recipe = made.model_copy(update={"runtime": runtime})
    stage: Any = STAGES["tune" if kind == "tune" else "improve"]
    whole = stage(recipe, tmp_path / "whole")
    with pytest.raises(CutShortError):
        stage(recipe, tmp_path / "cut", observer=StopAt(3))
    assert stage(recipe, tmp_path / "cut", resume=True).policy.id == whole.policy.id


def test_gradients_over_nccl_are_those_of_one_process(device: str) -> None:
    """Added up by ranks, and in shards, on the one GPU there is."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    ran = subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "tests.gpu.one_rank", device],
        env={**os.environ, "PYTHONPATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "the same" in ran.stdout
