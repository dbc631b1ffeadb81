"""What the commands share: their words on errors, their consoles, and flags that mean the same everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loopwise.errors import ConfigError, LoopwiseError, OutputExistsError

if TYPE_CHECKING:
    from rich.console import Console

    from loopwise.console import ConsoleObserver

Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, exactly.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print the summary as JSON on standard output, the rest on standard error.")
]
JsonAlone = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def group(summary: str) -> typer.Typer:
    """A command with commands below it."""
    return typer.Typer(help=summary, no_args_is_help=True, pretty_exceptions_enable=False)


@contextmanager
def watching(on_errors: bool, resume: str | None = None) -> Iterator[tuple[Console, ConsoleObserver]]:
    """A console with the progress of a run on it (standard error with ``on_errors``), and clear errors."""
    with errors(resume):
        from loopwise.console import ConsoleObserver

        shown = console(on_errors)
        with ConsoleObserver(shown) as observer:
            yield shown, observer


@contextmanager
def errors(resume: str | None = None) -> Iterator[None]:
    """Turn errors a person can mend into one message and their exit code. ``resume`` goes on after Ctrl-C."""
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


def console(on_errors: bool = False) -> Console:
    """Standard output, or standard error."""
    from rich.console import Console

    return Console(stderr=on_errors, highlight=False)


def check_new_file(path: Path, flag: str) -> None:
    """Raise, before any work is done, where ``path`` cannot become a new file."""
    if path.exists() or path.is_symlink():
        raise OutputExistsError(f"{path}: exists already and is never overwritten. Choose another {flag}.")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}. Make it first, or choose another {flag}.")


def show_json(value: Any) -> None:
    """Print a value as JSON."""
    from loopwise.runs.files import to_json

    typer.echo(to_json(value, indent=2))
