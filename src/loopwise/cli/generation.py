"""``loopwise generate``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loopwise.cli.chat import chat_on
from loopwise.cli.common import check_new_file, console, errors, flags, not_utf8, utf8
from loopwise.cli.completion import models
from loopwise.errors import ConfigError

if TYPE_CHECKING:
    from loopwise.stages.generation import Speaker
    from loopwise.types import Problem, Sample, Sampling

Model = Annotated[
    str, typer.Argument(help="Folder of a model or of a run, or a hub name.", metavar="MODEL", autocompletion=models)
]
MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens", min=1, help="Most tokens of an answer. Default: 256, or what fits.")
]
TopP = Annotated[float, typer.Option("--top-p", help="Draw from the likeliest tokens that hold this share.")]
TopK = Annotated[int, typer.Option("--top-k", help="Draw from so many likeliest tokens; 0: from all.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="Text that ends an answer; may be given repeatedly.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="The same seed draws the same text.")]
PromptColumn = Annotated[str | None, typer.Option("--prompt-column", help="Column of the prompts in --data.")]


@dataclass(frozen=True)
class _Wish:
    """What was asked for, apart from the sampling."""

    prompt: str | None
    data: Path | None
    prompt_column: str | None
    chat: bool
    count: int
    out: Path | None
    as_json: bool


def generate(
    model: Model,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="Text to go on from. Default: what standard input holds.")
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Row file of prompts; wants --out.")] = None,
    prompt_column: PromptColumn = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="A conversation; with --prompt, one answer to it as a message.")
    ] = False,
    system: Annotated[str | None, typer.Option("--system", help="System prompt.")] = None,
    count: Annotated[int, typer.Option("-n", "--samples", min=1, help="Completions of each prompt.")] = 1,
    out: Annotated[Path | None, typer.Option("--out", help="New JSONL file: a line for each completion.")] = None,
    max_tokens: MaxTokens = None,
    temperature: Annotated[float, typer.Option("--temperature", help="0 takes the likeliest token.")] = 1.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    stop: Stop = None,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each completion.")] = False,
) -> None:
    """Complete a prompt, a file of prompts, or talk with a model."""
    with errors():
        wish = _Wish(prompt, data, prompt_column, chat, count, out, as_json)
        _check(wish)
        sampling = sampling_from(temperature, top_p, top_k, stop)
        problems = _problems(wish)
        from loopwise.stages.generation import Speaker, open_model

        policy, runtime = open_model(model, seed, None if system is None else utf8(system, "--system"))
        speaker = Speaker(policy, runtime, sampling, max_tokens)
        if problems is None:
            chat_on(speaker, sys.stdin, sys.stdout, sys.stderr)
        elif wish.out or wish.as_json:
            _write_lines(speaker, problems, wish)
        else:
            _show(speaker, problems[0], wish)


def sampling_from(temperature: float, top_p: float, top_k: int, stop: list[str] | None) -> Sampling:
    """Flags as the generators' type. Raises ConfigError naming the flag."""
    from pydantic import ValidationError

    from loopwise.config.blocks import SamplingConfig
    from loopwise.config.errors import explain
    from loopwise.types import Sampling

    stops = tuple(utf8(text, "--stop") for text in stop or ())
    values: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "stop": stops}
    try:
        return Sampling(**SamplingConfig(**values).model_dump())
    except ValidationError as error:
        raise ConfigError(explain(SamplingConfig, "sampling flags", error, values)) from None


def _check(wish: _Wish) -> None:
    if wish.data and (wish.prompt is not None or wish.chat):
        other = "--chat" if wish.chat else "--prompt"
        raise ConfigError(f"--data and {other} are two kinds of prompts. Leave one out.")
    if wish.prompt_column and not wish.data:
        raise ConfigError(
            "--prompt-column is a column of --data, which is not given. Name the row file, or leave it out."
        )
    if wish.data and not (wish.out or wish.as_json):
        raise ConfigError("--data wants a place for the completions. Add --out samples.jsonl, or --json to print them.")
    if wish.chat and wish.prompt is None and (wish.out or wish.as_json or wish.count > 1):
        raise ConfigError("--out, --json and -n are not for a conversation. Leave them out, or add --prompt.")
    if wish.out:
        check_new_file(wish.out, "--out")


def _problems(wish: _Wish) -> list[Problem] | None:
    """The prompts that were asked for; None for a conversation."""
    from loopwise.types import Problem

    if wish.data:
        from loopwise.data.rows import problems_from_rows

        with flags():
            return problems_from_rows(wish.data, prompt_column=wish.prompt_column)
    if wish.prompt is None and wish.chat:
        return None
    if wish.prompt is None and sys.stdin.isatty():
        raise ConfigError("no prompt: add --prompt TEXT, --data FILE or --chat, or pipe the prompt in.")
    text = _standard_input() if wish.prompt is None else utf8(wish.prompt, "--prompt")
    return [Problem("prompt", ({"role": "user", "content": text},) if wish.chat else text)]


def _standard_input() -> str:
    try:
        return utf8(sys.stdin.read().removesuffix("\n"), "standard input")
    except UnicodeDecodeError:
        raise not_utf8("standard input") from None


def _show(speaker: Speaker, problem: Problem, wish: _Wish) -> None:
    """Print completions for a person: a single one while it grows."""
    from loopwise.console import writer

    if speaker.has_template and not wish.chat:
        typer.echo("note: this model has a chat template; --chat sends the prompt as a message.", err=True)
    write = writer(sys.stdout)
    if wish.count == 1:
        speaker.stream(problem, write)
        write("\n")
        return
    [samples] = speaker.draw([problem], wish.count)
    for number, sample in enumerate(samples, start=1):
        write(f"--- {number} of {wish.count} ({sample.finish_reason})\n{sample.text}\n")


def _write_lines(speaker: Speaker, problems: list[Problem], wish: _Wish) -> None:
    """A line of JSON for each completion. What is finished stays, whatever happens to the rest."""
    from loopwise.console import ConsoleObserver

    speaker.fitted(problems)
    if wish.out is None:
        for samples in speaker.draw(problems, wish.count):
            sys.stdout.writelines(_line(problems[sample.group], sample) for sample in samples)
        return
    total, written = len(problems) * wish.count, 0
    try:
        with wish.out.open("x", encoding="utf-8") as file, ConsoleObserver(console(True)) as observer:
            for samples in speaker.draw(problems, wish.count):
                file.writelines(_line(problems[sample.group], sample) for sample in samples)
                file.flush()
                written += len(samples)
                observer.progress("completions", written, total)
    finally:
        typer.echo(f"{wish.out}: {written:,} of {total:,} completions.", err=True)


def _line(problem: Problem, sample: Sample) -> str:
    from loopwise.console import plain_json

    content = {
        "prompt": problem.prompt,
        "completion": sample.text,
        "finish_reason": sample.finish_reason,
        "tokens": len(sample.token_ids),
    }
    return plain_json(content) + "\n"
