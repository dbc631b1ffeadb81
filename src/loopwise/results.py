"""What a run leaves behind besides its journal: figures of its stages, the model folder, exports."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loopwise.config import ImproveRecipe, TuneRecipe
from loopwise.loop import Position
from loopwise.models.folders import save_policy
from loopwise.models.policy import Policy
from loopwise.report import write_report
from loopwise.session import Stages
from loopwise.workspace import Workspace, write_json


@dataclass(frozen=True)
class Result:
    """What ``improve``, ``tune`` and ``demo`` return; ``summary`` is the content of ``summary.json``."""

    out: Path
    policy: Policy
    summary: Mapping[str, Any]

    @property
    def model(self) -> Path:
        """The resulting model as a Hugging Face folder."""
        return self.out / "model"


def conclude(
    workspace: Workspace, run_id: str, recipe: ImproveRecipe | TuneRecipe, stages: Stages, end: Position, began: float
) -> Result:
    """Write model folder, ``metrics.jsonl``, ``samples.parquet``, ``summary.json`` and ``report.html`` of a run.

    ``end`` is where its loop ended, ``began`` the ``time.monotonic()`` of its start.
    """
    out, journal = workspace.out, workspace.journal
    summary = {
        "task": recipe.data.task or Path(str(recipe.data.train)).name,
        "seed": recipe.seed,
        "run_id": run_id,
        "wall_seconds": round(time.monotonic() - began, 2),
        "stages": stages,
        "rounds": [row.summary for row in journal.rounds(run_id) if row.round > 0],
        "budget": asdict(end.budget),
    }

    def write() -> None:
        write_policy(end.incumbent, out / "model")
        journal.export_metrics(run_id, out / "metrics.jsonl")
        journal.export_samples(run_id, out / "samples.parquet")
        write_json(out / "summary.json", summary)
        write_report(out, summary)

    workspace.store(write)
    return Result(out, end.incumbent, summary)


def write_policy(policy: Policy, folder: Path) -> None:
    """Write a policy as a Hugging Face folder, whole or not at all, in the place of one that is there."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    save_policy(policy, temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)
