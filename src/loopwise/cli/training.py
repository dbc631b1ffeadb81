"""The commands that train: demo, pretrain, tune, improve."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loopwise.cli.common import Json, Resume, show_json, watching
from loopwise.cli.completion import recipe_files
from loopwise.errors import ConfigError
from loopwise.ranks import joined_ranks, launched

if TYPE_CHECKING:
    from rich.console import Console

Recipe = Annotated[Path, typer.Argument(help="YAML recipe.", metavar="RECIPE.yaml", autocompletion=recipe_files)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changes, as update.optimizer.lr=1e-4.", metavar="KEY=VALUE")
]
Out = Annotated[Path | None, typer.Option("--out", help="New folder for the run. Default: runs/NAME-OF-THE-RECIPE.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Takes the place of the recipe's seed.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Resolve and try everything; train and write nothing.")]


def demo(
    out: Annotated[
        Path | None, typer.Option("--out", help="New folder for the results. Default: demo-out, demo-out-2, ...")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, help="Rounds of the loop. Default: 10.")] = None,
    all_controls: Annotated[
        bool, typer.Option("--all-controls", help="Also train on unfiltered samples and on gold answers.")
    ] = False,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Watch a tiny transformer learn sums from few labels and then teach itself the rest: about two minutes."""
    out = out or (Path("demo-out") if resume else _free_folder("demo-out"))
    with watching(as_json, f"loopwise runs resume {out}") as (console, observer), joined_ranks():
        from loopwise.stages.demo import demo as run

        if not resume:
            console.print("A transformer of 0.4 million parameters sees 250 labelled sums, then only its own answers.")
        result = run(out, seed=seed, rounds=rounds, all_controls=all_controls, resume=resume, observer=observer)
    close(console, result, as_json)


def pretrain(
    recipe: Recipe,
    overrides: Overrides = None,
    out: Out = None,
    seed: Seed = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train a model made from nothing (or go on with one) on plain text."""
    _stage("pretrain", recipe, overrides, out, seed, resume, dry_run, as_json)


def tune(
    recipe: Recipe,
    overrides: Overrides = None,
    out: Out = None,
    seed: Seed = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Fine-tune on rows of prompt and completion."""
    _stage("tune", recipe, overrides, out, seed, resume, dry_run, as_json)


def improve(
    recipe: Recipe,
    overrides: Overrides = None,
    out: Out = None,
    seed: Seed = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    r"""Run the loop: a model, prompts and feedback in; a better model and an honest report out.

    A recipe in five lines:

        model: ./my-model
        data: {train: prompts.jsonl, reference_columns: \[answer]}
        rewards: \[number]            # a rule, my_module.my_reward, or my_file.py:my_reward
        rounds: 4
        update: {method: rft, steps: 50}
    """
    _stage("improve", recipe, overrides, out, seed, resume, dry_run, as_json)


def close(console: Console, result: Any, as_json: bool) -> None:
    """The closing table of a run, and where its files are."""
    from loopwise.console import stage_table

    summary = result.summary
    console.print()
    console.print(stage_table(summary))
    console.print()
    console.print(f"  {summary['wall_seconds']:.0f} seconds. Report: {result.out / 'report.html'}", soft_wrap=True)
    if (result.model / "config.json").exists():
        console.print(f"  Model (opens with AutoModelForCausalLM.from_pretrained): {result.model}", soft_wrap=True)
    else:
        learned = result.model / "prompt_state.json"
        console.print(f"  Lessons and prompt (the model itself stays elsewhere): {learned}", soft_wrap=True)
    if as_json and launched().first:
        show_json(summary)


def _stage(
    command: str,
    recipe: Path,
    overrides: list[str] | None,
    out: Path | None,
    seed: int | None,
    resume: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    named, out = out, out or Path("runs") / recipe.stem
    if dry_run and not launched().first:
        return  # one process can try it for all
    together = nullcontext() if dry_run else joined_ranks()
    with watching(as_json, f"loopwise runs resume {out}") as (console, observer), together:
        from loopwise.config.reading import load_recipe
        from loopwise.config.recipes import COMMANDS

        if dry_run and resume:
            raise ConfigError("--dry-run tries a run that is to begin, --resume goes on with one. Leave one out.")

        kind: Any = COMMANDS[command]
        changes = [*(overrides or []), *([f"seed={seed}"] if seed is not None else [])]
        loaded = load_recipe(kind, recipe, changes)
        if dry_run:
            from loopwise.console import plan_table
            from loopwise.stages.plan import examine
            from loopwise.workspace import check_out

            if named:
                check_out(named, resume=False)
            plan = examine(loaded)
            if as_json:
                show_json({**plan.sections, "figures": plan.figures})
            else:
                console.print(plan_table(plan.sections))
            return
        from loopwise.stages.commands import run_command

        result = run_command(command, loaded, out, resume=resume, observer=observer)
    close(console, result, as_json)


def _free_folder(name: str) -> Path:
    """The first of NAME, NAME-2, NAME-3 and so on that does not exist."""
    folder, number = Path(name), 1
    while folder.exists():
        number += 1
        folder = Path(f"{name}-{number}")
    return folder
