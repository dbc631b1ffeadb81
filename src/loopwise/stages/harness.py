"""EleutherAI's lm-evaluation-harness asks a model folder of ours, through its own ``hf`` loader, the rows of a file.

A second opinion: rendering, tokens, generation and marks are its own. Nothing is read from a hub.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from loopwise.config.blocks import RuntimeConfig
from loopwise.data.rows import read_source
from loopwise.errors import ConfigError, ModelError, ProblemFileError, PromptTooLongError
from loopwise.models.folders import PROMPT_STATE_FILE, load_policy
from loopwise.models.policy import Policy
from loopwise.models.tokens import encode_rows
from loopwise.runtime import make_runtime
from loopwise.stages.generation import room
from loopwise.types import Problem, PromptState

Kind = Literal["generate_until", "multiple_choice", "loglikelihood"]
TASK = "rows"
STDERR = 2
"""The process's standard error, whatever ``sys.stderr`` is."""
BATCH = 16
RESAMPLED = 1000
"""Bootstrap samples behind the standard error of a figure that is no mean."""
_MARKS: Mapping[str, Mapping[str, str]] = {
    "generate_until": {"exact_match": "mean"},
    "multiple_choice": {"acc": "mean", "acc_norm": "mean"},
    "loglikelihood": {"acc": "mean", "perplexity": "perplexity"},
}
"""The harness's marks of each kind, and how it sums them up."""
_ANSWERS = ("completion", "answer")


@dataclass(frozen=True)
class Question:
    """A row as the harness is given it: ``target`` is the right answer, of several ``choices`` its place."""

    prompt: str
    target: str | int
    choices: tuple[str, ...] = ()


def run_harness(
    model: str,
    rows: Path,
    *,
    limit: int | None = None,
    kind: Kind | None = None,
    max_tokens: int | None = None,
    stop: Sequence[str] = (),
    device: str = "auto",
) -> dict[str, Any]:
    """Have lm-evaluation-harness ask the model in a folder the first ``limit`` rows of a file.

    Rows are text prompts with ``completion`` or ``answer``, and with ``choices`` a list of texts of which the answer is
    one (the text, its place from 0, or its letter). An answer follows its prompt with nothing between. ``kind`` is the
    harness's output type, by default ``multiple_choice`` where rows have choices, else ``generate_until``:

    - ``generate_until``: ``exact_match``, greedily, up to ``max_tokens`` (None: what fits, 256 at most) or a ``stop``
    - ``multiple_choice``: ``acc`` of the likeliest choice, ``acc_norm`` of the likeliest a character
    - ``loglikelihood``: ``acc``, whether the answer is the likeliest text; ``perplexity`` of a whole answer

    Gives each figure with its standard error ``*_stderr`` (where the harness has one), and ``kind``, ``rows`` and
    ``lm_eval``, the version. ``left_out`` says that a prompt state was not applied: plain loading knows none.
    Raises ConfigError where the harness is not installed, ProblemFileError naming a row, ModelError naming a folder.
    """
    if kind is not None and kind not in get_args(Kind):
        raise ConfigError(f'kind "{kind}": the harness has {", ".join(get_args(Kind))}.')
    if limit is not None and limit < 1:
        raise ConfigError(f"a limit of {limit} rows leaves nothing to ask. Give 1 or more, or none.")
    evaluate, manager = _library()
    folder = Path(model)
    if not folder.is_dir():
        raise ModelError(f"{model}: no such model folder. Name a folder with config.json, weights and tokenizer.")
    problems = read_source(rows, "auto", None, None, supervised=False).problems[:limit]
    kind = kind or ("multiple_choice" if "choices" in problems[0].columns else "generate_until")
    questions = [_question(problem, kind) for problem in problems]
    # Loading it ourselves names what is wrong with the folder, says what fits, and makes our own architectures known.
    runtime = make_runtime(RuntimeConfig(device=device), 0)
    policy = load_policy(folder, runtime)
    if kind == "generate_until":
        max_tokens = room(policy, problems, max_tokens)
    else:
        # The harness would cut a row to the context in silence.
        pairs = [(p, text) for p, q in zip(problems, questions, strict=True) for text in q.choices or (str(q.target),)]
        check_fits(policy, [problem for problem, _ in pairs], [text for _, text in pairs])
    task = _task(kind, max_tokens, stop)
    with tempfile.TemporaryDirectory() as place, _quiet():
        _write(Path(place), task, questions)
        found = evaluate(
            model="hf",
            model_args={"pretrained": str(folder), "dtype": "float32", "device": runtime.device},
            tasks=[TASK],
            batch_size=BATCH,
            bootstrap_iters=RESAMPLED,
            log_samples=False,
            task_manager=manager(include_path=place, include_defaults=False),
        )
    whole = policy.prompt_state == PromptState()
    state = {} if whole else {"left_out": f"{PROMPT_STATE_FILE}, which plain loading ignores"}
    version = metadata.version("lm_eval")
    return {"kind": kind, "rows": len(questions), **_figures(found["results"][TASK]), "lm_eval": version, **state}


def _library() -> tuple[Any, Any]:
    """The harness's ``simple_evaluate`` and ``TaskManager``."""
    try:
        from lm_eval.evaluator import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"lm-evaluation-harness is not installed ({error}). Install it: pip install 'loopwise[harness]'."
        ) from None
    return simple_evaluate, TaskManager


def _task(kind: Kind, max_tokens: int | None, stop: Sequence[str]) -> dict[str, Any]:
    """The task in the harness's own words. Fields are named bare: a template would cut a prompt's last line break."""
    task: dict[str, Any] = {
        "task": TASK,
        "dataset_path": "parquet",
        "test_split": "test",
        "output_type": kind,
        "doc_to_text": "prompt",
        "doc_to_target": "target",
        "target_delimiter": "",
        "metric_list": [
            {"metric": name, "aggregation": aggregation, "higher_is_better": name != "perplexity"}
            for name, aggregation in _MARKS[kind].items()
        ],
    }
    if kind == "multiple_choice":
        task["doc_to_choice"] = "choices"
    if kind == "generate_until":
        # It adds the tokenizer's end-of-text to the stops.
        task["generation_kwargs"] = {"max_gen_toks": max_tokens, "do_sample": False, "until": list(stop)}
    return task


def _write(folder: Path, task: dict[str, Any], questions: Sequence[Question]) -> None:
    """The rows with their types (from JSON, a date would come back as a time), and the task that names them."""
    import pyarrow as pa
    import pyarrow.parquet

    columns: dict[str, Any] = {
        "prompt": pa.array([question.prompt for question in questions], pa.string()),
        "target": pa.array([question.target for question in questions]),
    }
    if task["output_type"] == "multiple_choice":
        columns["choices"] = pa.array([list(question.choices) for question in questions], pa.list_(pa.string()))
    file = folder / "rows.parquet"
    pyarrow.parquet.write_table(pa.table(columns), file)
    task |= {"dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(folder / "cache")}}
    (folder / f"{TASK}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")


def _question(problem: Problem, kind: Kind) -> Question:
    place = problem.place
    if not isinstance(problem.prompt, str):
        raise ProblemFileError(
            f'{place}, column "prompt": a conversation; the harness is asked text. Write it as text.'
        )
    answer = next((problem.columns[name] for name in _ANSWERS if problem.columns.get(name) is not None), None)
    if answer is None:
        raise ProblemFileError(f'{place}, column "answer": missing. Add the right answer, there or as "completion".')
    if kind != "multiple_choice":
        return Question(problem.prompt, str(answer))
    choices = problem.columns.get("choices")
    if not isinstance(choices, list) or len(choices) < 2:
        raise ProblemFileError(f'{place}, column "choices": expected a list of two texts or more, found {choices!r}.')
    texts = tuple(map(str, choices))
    return Question(problem.prompt, _choice(answer, texts, place), texts)


def _choice(answer: Any, choices: Sequence[str], place: str) -> int:
    """The place of the right choice, given as its text, its place, or its letter."""
    if str(answer) in choices:
        named = choices.index(str(answer))
        if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices) and answer != named:
            raise ProblemFileError(
                f'{place}, column "answer": {answer} may be the choice "{answer}" or the place of "{choices[answer]}". '
                "Write the choice as text, in quotes."
            )
        return named
    letter = ord(answer) - ord("A") if isinstance(answer, str) and len(answer) == 1 and answer.isalpha() else answer
    if isinstance(letter, int) and not isinstance(letter, bool) and 0 <= letter < len(choices):
        return letter
    raise ProblemFileError(f'{place}, column "answer": {answer!r} is none of the choices. Write one of their texts.')


def check_fits(policy: Policy, problems: Sequence[Problem], completions: Sequence[str]) -> None:
    """Raise PromptTooLongError naming the place of the first problem that is over the context with its completion."""
    limit = policy.weights.context_length if policy.weights else None
    rows = encode_rows(policy, problems, completions, end_of_text=False)
    for problem, row in zip(problems, rows, strict=True):
        if limit is not None and row.total_tokens > limit:
            raise PromptTooLongError(
                f"{problem.place}: prompt and answer have {row.total_tokens} tokens, over the model's context of "
                f"{limit}. Shorten them, or take a model with a longer context."
            )


def _figures(results: Mapping[str, Any]) -> dict[str, float]:
    """The harness's figures; ``exact_match,none`` is the one without a filter, and a missing error is a text."""
    return {
        name.removesuffix(",none"): float(value)
        for name, value in results.items()
        if name.endswith(",none") and not isinstance(value, str)
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress bars and advice of the harness off the terminal; its errors still come."""
    said = io.StringIO()
    with (
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(said),
        warnings.catch_warnings(),
        _quiet_children(),
    ):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _quiet_children() -> Iterator[None]:
    """Keep what programs write that the harness starts (it asks git for a commit) off the terminal.

    They have no stream of Python's, only the process's own standard error.
    """
    kept = os.dup(STDERR)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), STDERR)
        yield
    finally:
        os.dup2(kept, STDERR)
        os.close(kept)
