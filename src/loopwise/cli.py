"""The command line: the only reader of argv. Everything heavy is imported inside the commands."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loopwise.errors import LoopwiseError
from loopwise.runs.files import to_json

if TYPE_CHECKING:
    from rich.console import Console

    from loopwise.console import ConsoleObserver

# Before torch is loaded by any command: see runtime.calm_threads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    help="Language models that improve on their own feedback.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
runs_app = typer.Typer(help="List, show and resume runs.", no_args_is_help=True)
app.add_typer(runs_app, name="runs")

Recipe = Annotated[Path, typer.Argument(help="YAML recipe.", metavar="RECIPE.yaml")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changes, as update.optimizer.lr=1e-4.", metavar="KEY=VALUE")
]
Out = Annotated[Path | None, typer.Option("--out", help="New folder for the run. Default: runs/NAME-OF-THE-RECIPE.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Takes the place of the recipe's seed.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, exactly.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Resolve and try everything; train and write nothing.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print the summary as JSON on standard output, the rest on standard error.")
]


@app.command()
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
    with _watching(as_json, f"loopwise runs resume {out}") as (console, observer):
        from loopwise.stages.demo import demo as run

        if not resume:
            console.print("A transformer of 0.4 million parameters sees 250 labelled sums, then only its own answers.")
        result = run(out, seed=seed, rounds=rounds, all_controls=all_controls, resume=resume, observer=observer)
    _close(console, result, as_json)


@app.command()
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


@app.command()
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


@runs_app.command("list")
def runs_list(
    folder: Annotated[Path, typer.Argument(help="Where to look for runs.")] = Path(),
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """All runs below a folder."""
    with _errors():
        from loopwise.history import list_runs, run_table

        found = list_runs(folder)
        if as_json:
            typer.echo(to_json(found, indent=2))
        elif found:
            _console(False).print(run_table(found))
        else:
            typer.echo(f"{folder}: no runs here. Start one with `loopwise demo`.")


@runs_app.command("show")
def runs_show(
    out: Annotated[Path, typer.Argument(help="A run's folder.")],
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """The rounds and gate decisions of a run."""
    with _errors():
        from loopwise.history import show_run, show_tables

        found = show_run(out)
        if as_json:
            typer.echo(to_json(found, indent=2))
        else:
            for part in show_tables(found):
                _console(False).print(part)


@runs_app.command("resume")
def runs_resume(out: Annotated[Path, typer.Argument(help="A run's folder.")], as_json: Json = False) -> None:
    """Go on with a run, with the recipe it was started with."""
    with _watching(as_json, f"loopwise runs resume {out}") as (console, observer):
        from loopwise.history import resume_run

        result = resume_run(out, observer)
    _close(console, result, as_json)


def _stage(
    kind: str,
    recipe: Path,
    overrides: list[str] | None,
    out: Path | None,
    seed: int | None,
    resume: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    out = out or Path("runs") / recipe.stem
    with _watching(as_json, f"loopwise runs resume {out}") as (console, observer):
        from loopwise.config import ImproveRecipe, TuneRecipe, load_recipe

        changes = [*(overrides or []), *([f"seed={seed}"] if seed is not None else [])]
        loaded: ImproveRecipe | TuneRecipe
        if kind == "improve":
            loaded = load_recipe(ImproveRecipe, recipe, changes)
        else:
            loaded = load_recipe(TuneRecipe, recipe, changes)
        if dry_run:
            from loopwise.console import plan_table
            from loopwise.stages.plan import plan

            resolved = plan(loaded)
            if as_json:
                typer.echo(to_json(resolved, indent=2))
            else:
                console.print(plan_table(resolved))
            return
        if isinstance(loaded, ImproveRecipe):
            from loopwise.stages.improve import improve as run_improve

            result = run_improve(loaded, out, resume=resume, observer=observer)
        else:
            from loopwise.stages.finetune import tune as run_tune

            result = run_tune(loaded, out, resume=resume, observer=observer)
    _close(console, result, as_json)


@contextmanager
def _watching(as_json: bool, resume: str) -> Iterator[tuple[Console, ConsoleObserver]]:
    with _errors(resume):
        from loopwise.console import ConsoleObserver

        console = _console(as_json)
        with ConsoleObserver(console) as observer:
            yield console, observer


@contextmanager
def _errors(resume: str | None = None) -> Iterator[None]:
    """Turn errors a person can mend into one message and their exit code."""
    try:
        yield
    except LoopwiseError as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        raise typer.Exit(error.exit_code) from None
    except OSError as error:
        if error.filename is None:
            raise
        reason = error.strerror or type(error).__name__
        typer.secho(f"error: {error.filename}: {reason}. Check the path and its permissions.", fg="red", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        hint = f" Nothing that was committed is lost; go on with: {resume}" if resume else ""
        typer.echo(f"interrupted.{hint}", err=True)
        raise typer.Exit(130) from None


def _free_folder(name: str) -> Path:
    """The first of NAME, NAME-2, NAME-3 and so on that does not exist."""
    folder, number = Path(name), 1
    while folder.exists():
        number += 1
        folder = Path(f"{name}-{number}")
    return folder


def _console(as_json: bool) -> Console:
    from rich.console import Console

    return Console(stderr=as_json, highlight=False)


def _close(console: Console, result: Any, as_json: bool) -> None:
    from loopwise.console import stage_table

    summary = result.summary
    console.print()
    console.print(stage_table(summary))
    console.print()
    console.print(f"  {summary['wall_seconds']:.0f} seconds. Report: {result.out / 'report.html'}", soft_wrap=True)
    console.print(f"  Model (opens with AutoModelForCausalLM.from_pretrained): {result.model}", soft_wrap=True)
    if as_json:
        typer.echo(to_json(summary, indent=2))


def main() -> None:
    """Entry point of the ``loopwise`` command."""
    app()


if __name__ == "__main__":
    main()
