"""What the commands share: their words on errors, their consoles, and flags that mean the same everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loopwise.errors import ConfigError, LoopwiseError, OutputExistsError
from loopwise.ranks import launched

if TYPE_CHECKING:
    from rich.console import Console

    from loopwise.console import ConsoleObserver

Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, exactly.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print the summary as JSON on standard output, the rest on standard error.")
]
JsonAlone = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_FLAGS = (
    (r'(?:evaluate: )?unknown key "rewards\.\d+\.', '--reward: unknown key "'),
    (r'(?:evaluate: )?key "rewards\.\d+"', "--reward"),
    (r'(?:evaluate: )?key "rewards\.\d+\.', '--reward, key "'),
    (r'key "data\.task_options\.([^"]+)"', r"--task-option \1"),
    (r'key "data\.task_options"', "--task-option"),
    (r"\bdata\.task_options\.", "--task-option "),
    (r'key "data\.task"', "--task"),
    (r"\(data\.dev, data\.test, data\.labelled, problems\)", "(--problems)"),
    (r"[Nn]ame (?:one|another format) with data\.format", "rename its columns"),
    (r"set data\.format: prompt_completion", "rename the column"),
    (r'key "data\.(prompt|completion)_column"', r"--\1-column"),
    (r"\bdata\.(prompt|completion)_column\b", r"--\1-column"),
    (r'\bwith text_column\b|"text_column"', "with --text-column"),
    (r"\bsampling\.max_tokens\b", "--max-tokens"),
    (r"\bthe recipe has no endpoint\b", "--endpoints names no"),
    (r'Add it: ("endpoints: )', r"Give it a YAML file with \1"),
)
"""What recipes call by keys, in errors from inside, and commands without a recipe by flags."""


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
        where = "" if launched().first else f"rank {launched().rank}: "
        typer.secho(f"error: {where}{error}", fg=typer.colors.RED, err=True)
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


@contextmanager
def flags() -> Iterator[None]:
    """Let an error from inside, which speaks of a recipe's keys, speak of the flags that stand for them."""
    try:
        yield
    except LoopwiseError as error:
        error.args = (_spoken(str(error)),)
        raise


def _spoken(message: str) -> str:
    for pattern, flag in _FLAGS:
        message = re.sub(pattern, flag, message)
    return message


def console(on_errors: bool = False) -> Console:
    """Standard output, or standard error; nothing is shown by ranks but the first."""
    from rich.console import Console

    # Names of files and folders are shown as they are, whatever brackets and colons they hold.
    return Console(stderr=on_errors, highlight=False, markup=False, emoji=False, quiet=not launched().first)


def utf8(text: str, where: str) -> str:
    """``text`` itself. Raises ConfigError where bytes were handed in that are not UTF-8, which no model can read."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise not_utf8(where, f", found byte 0x{ord(text[error.start]) & 0xFF:02x}") from None
    return text


def not_utf8(where: str, found: str = "") -> ConfigError:
    """The error about text at ``where`` that is not UTF-8."""
    return ConfigError(f"{where}: not UTF-8 text{found}. Give it in UTF-8.")


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
