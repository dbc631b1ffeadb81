"""What a run leaves behind besides its journal: figures of its stages, the model folder, exports."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loopwise.models.folders import save_policy
from loopwise.models.policy import Policy
from loopwise.report import write_report
from loopwise.session import Stages
from loopwise.types import Budget
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


def summarise(
    workspace: Workspace, run_id: str, *, task: str, seed: int, stages: Stages, budget: Budget, wall_seconds: float
) -> dict[str, Any]:
    """The content of ``summary.json``."""
    rounds = [row.summary for row in workspace.journal.rounds(run_id) if row.round > 0]
    return {
        "task": task,
        "seed": seed,
        "run_id": run_id,
        "wall_seconds": round(wall_seconds, 2),
        "stages": stages,
        "rounds": rounds,
        "budget": asdict(budget),
    }


def write_policy(policy: Policy, folder: Path) -> None:
    """Write a policy as a Hugging Face folder, whole or not at all, in the place of one that is there."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    save_policy(policy, temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)


def export(workspace: Workspace, run_id: str, policy: Policy, summary: Mapping[str, Any]) -> None:
    """Write model folder, ``metrics.jsonl``, ``samples.parquet``, ``summary.json`` and ``report.html``."""
    out = workspace.out

    def write() -> None:
        write_policy(policy, out / "model")
        workspace.journal.export_metrics(run_id, out / "metrics.jsonl")
        workspace.journal.export_samples(run_id, out / "samples.parquet")
        write_json(out / "summary.json", summary)
        write_report(out, summary)

    workspace.store(write)
