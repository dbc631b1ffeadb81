"""``loopwise evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loopwise.cli.common import check_new_file, console, flags, show_json, watching
from loopwise.cli.completion import models
from loopwise.cli.completion import tasks as task_names
from loopwise.cli.generation import MaxTokens, Model, PromptColumn, Stop, TopK, TopP, sampling_from
from loopwise.errors import ConfigError

OTHER_FILES = (".md", ".svg", ".html", ".csv", ".txt", ".jsonl", ".yaml")


def evaluate(
    model: Model,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", help="Built-in task, as addition or reasoning_gym:NAME.", autocompletion=task_names),
    ] = None,
    tasks: Annotated[str | None, typer.Option("--tasks", help="Several at once, as addition,sorting.")] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            help="Model to compare with, on the same problems: a folder, a run, a hub name.",
            metavar="MODEL",
            autocompletion=models,
        ),
    ] = None,
    task_option: Annotated[
        list[str] | None, typer.Option("--task-option", help="Parameter of the task.", metavar="KEY=VALUE")
    ] = None,
    data: Annotated[list[Path] | None, typer.Option("--data", help="Row file of problems.")] = None,
    reward: Annotated[
        list[str] | None, typer.Option("--reward", help="What judges answers: a rule or my_file.py:my_reward.")
    ] = None,
    endpoints: Annotated[
        Path | None,
        typer.Option("--endpoints", help="YAML with the block endpoints, as in a recipe: what --reward asks."),
    ] = None,
    prompt_column: PromptColumn = None,
    completion_column: Annotated[
        str | None, typer.Option("--completion-column", help="Column of the right answers in --data.")
    ] = None,
    text: Annotated[list[Path] | None, typer.Option("--text", help="Text to measure the perplexity of.")] = None,
    text_column: Annotated[
        list[str] | None,
        typer.Option("--text-column", help="Column of --text where it holds rows; several are joined. Default: text."),
    ] = None,
    problems: Annotated[int, typer.Option("--problems", min=1, help="Problems of each task, or rows, at most.")] = 1000,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Samples of each problem, for pass@k.")] = 1,
    max_tokens: MaxTokens = None,
    temperature: Annotated[float, typer.Option("--temperature", help="0, the default, takes the likeliest token.")] = 0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    stop: Stop = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="That of a run asks the problems which it held out.")] = 0,
    bias: Annotated[
        str | None,
        typer.Option(
            "--bias", help="Probes of bias: builtin, builtin-en, builtin-zh, or a row file.", metavar="NAME|FILE"
        ),
    ] = None,
    harness: Annotated[
        str | None,
        typer.Option("--harness", help="Row file that lm-evaluation-harness asks the model, too.", metavar="FILE"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="New folder for figures as JSON, Markdown and SVG; or a new .json file."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON on standard output.")] = False,
) -> None:
    """Examine a model: accuracy and pass@k on tasks and rows, perplexity on text, each with its 95% interval.

    --task, --data and --text may each be given several times. With --baseline another model is asked the same, and the
    difference is told with its interval. Prompts that the model has met in training are counted, where it is of a run.
    """
    with watching(True) as (_, observer):
        if out:
            _check_out(out)
        sampling = sampling_from(temperature, top_p, top_k, stop)
        from loopwise.config.reading import load_endpoints
        from loopwise.stages.evaluation import evaluate_model
        from loopwise.stages.questions import Examination

        examination = Examination(
            tasks=(*(task or ()), *_names(tasks)),
            task_options=dict(map(_option, task_option or ())),
            rows=tuple(map(str, data or ())),
            rewards=tuple(map(_value, reward or ())),
            prompt_column=prompt_column,
            completion_column=completion_column,
            texts=tuple(map(str, text or ())),
            text_columns=tuple(text_column or ()),
            problems=problems,
            samples=samples,
            sampling=sampling,
            max_tokens=max_tokens,
            seed=seed,
            baseline=baseline,
            bias=bias,
            harness=harness,
            endpoints=load_endpoints(endpoints) if endpoints else {},
        )
        with flags():
            figures = evaluate_model(model, examination, observer)
        if out:
            from loopwise.report.evaluation import write_evaluation

            write_evaluation(out, figures)
    if as_json:
        show_json(figures)
    else:
        from loopwise.console import evaluation_table

        console().print(evaluation_table(figures))


def _names(text: str | None) -> list[str]:
    """Tasks with commas between them. Raises ConfigError where one of them is empty."""
    names = [] if text is None else [name.strip() for name in text.split(",")]
    if not all(names):
        raise ConfigError(f'--tasks "{text}": expected names with commas between them, for example addition,sorting.')
    return names


def _check_out(out: Path) -> None:
    """Raise, before any work is done, where nothing can be written to ``out``."""
    check_new_file(out, "--out")
    if out.suffix.lower() in OTHER_FILES:
        raise ConfigError(f"{out}: name a folder, which gets JSON, Markdown and SVG, or a file that ends in .json.")


def _option(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f'--task-option "{text}": expected key=value, for example digits=2.')
    return key, _value(value)


def _value(text: str) -> object:
    """A flag's text as YAML reads it: a number, a text, a list, a mapping."""
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f'"{text}": not YAML. Mend it, or put quotes around the text.') from None
