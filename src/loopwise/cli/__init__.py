"""The command line: the only reader of argv. Everything heavy is imported inside the commands."""

from __future__ import annotations

import typer

from loopwise.cli.evaluation import evaluate
from loopwise.cli.generation import generate
from loopwise.cli.judging import judge
from loopwise.cli.recipes import app as recipes_app
from loopwise.cli.runs import app as runs_app
from loopwise.cli.training import demo, improve, pretrain, tune
from loopwise.threads import calm_threads

# Before torch is loaded by any command.
calm_threads()

app = typer.Typer(
    help="Language models that improve on their own feedback.", no_args_is_help=True, pretty_exceptions_enable=False
)
for command in (demo, pretrain, tune, improve, judge, generate, evaluate):
    app.command()(command)
app.add_typer(runs_app, name="runs")
app.add_typer(recipes_app, name="recipes")


def main() -> None:
    """Entry point of the ``loopwise`` command."""
    app()
