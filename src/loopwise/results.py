"""What a run leaves behind besides its journal: figures of its stages, the model folder, exports."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loopwise.config.recipes import PretrainRecipe, Recipe
from loopwise.loop import Position
from loopwise.models.folders import save_policy
from loopwise.models.lora import merged
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
    workspace: Workspace,
    run_id: str,
    recipe: Recipe,
    stages: Stages,
    end: Position,
    began: float,
    more: Mapping[str, Any] | None = None,
) -> Result:
    """Finish a run: write model folder, ``metrics.jsonl``, ``samples.parquet``, ``summary.json`` and ``report.html``.

    ``end`` is where its loop ended, ``began`` the ``time.monotonic()`` of its start; ``more`` goes into the
    summary. Adapters are merged into the weights where the recipe says so.
    """
    out = workspace.out
    rounds = workspace.ask(lambda journal: journal.rounds(run_id))
    summary = {
        "task": _title(recipe),
        "seed": recipe.seed,
        "run_id": run_id,
        "wall_seconds": round(time.monotonic() - began, 2),
        "stages": stages,
        "rounds": [row.summary for row in rounds if row.round > 0],
        "budget": asdict(end.budget),
        **(more or {}),
    }
    lora = recipe.model.lora
    policy = merged(end.incumbent) if lora and lora.merge else end.incumbent

    def write() -> None:
        write_policy(policy, out / "model")
        workspace.journal.export_metrics(run_id, out / "metrics.jsonl")
        workspace.journal.export_samples(run_id, out / "samples.parquet")
        write_json(out / "summary.json", summary)
        write_report(out, summary)

    workspace.store(write)
    workspace.store(lambda: workspace.journal.set_status(run_id, "finished"))
    return Result(out, policy, summary)


def write_policy(policy: Policy, folder: Path) -> None:
    """Write a policy as a Hugging Face folder, whole or not at all, in the place of one that is there."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    save_policy(policy, temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)


def _title(recipe: Recipe) -> str:
    """What a run is about, in a few words: its task, or the names of its files."""
    data = recipe.data
    if not isinstance(recipe, PretrainRecipe) and recipe.data.task:
        return recipe.data.task
    paths = [data.train] if isinstance(data.train, str) else [source.path for source in data.train or ()]
    return ", ".join(Path(path).name for path in paths)
