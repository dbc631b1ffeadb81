"""``loopwise runs``: list, show, resume, export, diff."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loopwise.cli.common import Json, JsonAlone, console, errors, group, show_json, watching
from loopwise.cli.completion import run_folders
from loopwise.cli.judging import close_judge
from loopwise.cli.training import close
from loopwise.ranks import joined_ranks

app = group("List, show, resume, export and compare runs.")
RunFolder = Annotated[Path, typer.Argument(help="A run's folder.", autocompletion=run_folders)]
RunName = Annotated[
    str | None, typer.Option("--run", help="Which run of the folder. Default: the one it was made for.")
]


@app.command("list")
def runs_list(
    folder: Annotated[Path, typer.Argument(help="Where to look for runs.")] = Path(), as_json: JsonAlone = False
) -> None:
    """All runs below a folder."""
    with errors():
        from loopwise.history.past import list_runs, run_table

        found = list_runs(folder)
        if as_json:
            show_json(found)
        elif found:
            console().print(run_table(found))
        else:
            typer.echo(f"{folder}: no runs here. Start one with `loopwise demo`.")


@app.command("show")
def runs_show(out: RunFolder, as_json: JsonAlone = False) -> None:
    """The rounds and gate decisions of a run."""
    with errors():
        from loopwise.history.past import show_run, show_tables

        found = show_run(out)
        if as_json:
            show_json(found)
        else:
            for part in show_tables(found):
                console().print(part)


@app.command("resume")
def runs_resume(out: RunFolder, as_json: Json = False) -> None:
    """Go on with a run, with the recipe it was started with."""
    with watching(as_json, f"loopwise runs resume {out}") as (shown, observer), joined_ranks():
        from loopwise.history.past import resume_run

        result = resume_run(out, observer)
    if result.summary["run_id"] == "judge":
        close_judge(shown, result.summary, result.out, as_json)
    else:
        close(shown, result, as_json)


@app.command("export")
def runs_export(
    out: RunFolder,
    to: Annotated[Path, typer.Option("--to", help="New file (of a model: folder).")],
    what: Annotated[str, typer.Option("--what", help="samples, metrics or model.")] = "samples",
    format: Annotated[
        str | None, typer.Option("--format", help="jsonl, csv or parquet. Default: told by the name in --to.")
    ] = None,
    run: RunName = None,
) -> None:
    """Write a run's samples, metrics or model for other tools."""
    with errors():
        from loopwise.history.export import export_run

        typer.echo(export_run(out, to, what, format, run), err=True)


@app.command("diff")
def runs_diff(first: RunFolder, second: RunFolder, run: RunName = None, as_json: JsonAlone = False) -> None:
    """What two runs did differently, and whether it mattered."""
    with errors():
        from loopwise.history.diff import diff_runs, diff_tables

        found = diff_runs(first, second, run)
        if as_json:
            show_json(found)
        else:
            for part in diff_tables(found):
                console().print(part)
