"""``loopwise judge``: train a classifier or reward model, for other runs to use as a reward."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loopwise.cli.common import Json, Resume, show_json, watching
from loopwise.cli.training import DryRun, Out, Overrides, Recipe, Seed
from loopwise.errors import ConfigError
from loopwise.ranks import joined_ranks, launched

if TYPE_CHECKING:
    from rich.console import Console


def judge(
    recipe: Recipe,
    overrides: Overrides = None,
    out: Out = None,
    seed: Seed = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    r"""Train a judge: a classifier on labelled texts, or a reward model on better and worse answers.

    A recipe in three lines, and the reward that uses what it makes:

        model: ./my-encoder          # or {create: bert}, made here
        data: {train: tickets.csv, text_column: text, label_column: category}
        rounds: 3

        rewards: \[{use: trained_judge, options: {path: runs/my-judge, label: polite}}]
    """
    out = out or Path("runs") / recipe.stem
    with watching(as_json, f"loopwise runs resume {out}") as (console, observer), joined_ranks():
        from loopwise.config.reading import load_recipe
        from loopwise.config.recipes import JudgeRecipe
        from loopwise.stages.judging import examine_judge, train_judge

        if dry_run and resume:
            raise ConfigError("--dry-run tries a run that is to begin, --resume goes on with one. Leave one out.")
        changes = [*(overrides or []), *([f"seed={seed}"] if seed is not None else [])]
        loaded = load_recipe(JudgeRecipe, recipe, changes)
        if dry_run:
            show_json(examine_judge(loaded))
            return
        result = train_judge(loaded, out, resume=resume, observer=observer)
    close_judge(console, result.summary, result.out, as_json)


def close_judge(console: Console, summary: Mapping[str, Any], out: Path, as_json: bool) -> None:
    """What the judge gets right, how sure it may be, and how to use it; the summary on standard output, if asked."""
    from loopwise.console import stage_table

    if as_json and launched().first:
        show_json(summary)

    console.print()
    console.print(stage_table(summary))
    console.print()
    found = summary["judge"]
    split = next((name for name in ("test", "dev") if name in found), None)
    if split:
        calibration = found[split]["calibration"]
        before, after = calibration["before"]["ece"], calibration["after"]["ece"]
        console.print(
            f"  Calibration error on {split}: {before:.3f}, at temperature {found['temperature']:.2f} {after:.3f}."
        )
    console.print(f"  {summary['wall_seconds']:.0f} seconds. Report: {out / 'report.html'}", soft_wrap=True)
    label = f", label: {json.dumps(found['labels'][0], ensure_ascii=False)}" if found["labels"] else ""
    console.print(f"  Reward: {{use: trained_judge, options: {{path: {out}{label}}}}}", soft_wrap=True)
