"""The problems of ``loopwise evaluate``, from built-in tasks and row files, with what judges their answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from loopwise.config.blocks import RewardConfig
from loopwise.config.reading import parse_recipe
from loopwise.config.recipes import Endpoints, TuneRecipe
from loopwise.data.rows import read_source
from loopwise.data.streams import problem_key
from loopwise.errors import ConfigError
from loopwise.evaluate.loading import load_feedback
from loopwise.evaluate.rewards import RewardSum
from loopwise.evaluate.sources import Surroundings
from loopwise.stages.trained_on import runs_behind
from loopwise.tasks.base import HELD_OUT_AT_MOST
from loopwise.tasks.registry import same_problems
from loopwise.tasks.rewards import with_task_rewards
from loopwise.tasks.streams import open_streams
from loopwise.types import Completion, Problem, Sampling

SPLIT = "test"
GREEDY = Sampling(temperature=0.0)
MOST_PROBLEMS = 1000


@dataclass(frozen=True)
class Examination:
    """What to measure, and how to sample. At most ``problems`` of each task or row file (its first rows) are asked.

    ``rewards`` are as in a recipe; a task has its own. ``max_tokens`` None: as many as fit, 256 at most;
    ``sampling.max_tokens`` is not looked at. ``text_columns`` are those of row files among ``texts``, joined.
    ``baseline`` is a model to compare with; ``bias`` a file of probes, or built-in ones; ``harness`` a row file for
    EleutherAI's lm-evaluation-harness. ``endpoints`` are remote models that rewards name.
    """

    tasks: tuple[str, ...] = ()
    task_options: Mapping[str, Any] = field(default_factory=dict)
    rows: tuple[str, ...] = ()
    rewards: tuple[Any, ...] = ()
    prompt_column: str | None = None
    completion_column: str | None = None
    texts: tuple[str, ...] = ()
    text_columns: tuple[str, ...] = ()
    problems: int = MOST_PROBLEMS
    samples: int = 1
    sampling: Sampling = GREEDY
    max_tokens: int | None = None
    seed: int = 0
    baseline: str | None = None
    bias: str | None = None
    harness: str | None = None
    endpoints: Endpoints = field(default_factory=dict)

    def check(self) -> None:
        """Raise ConfigError where what was asked for cannot be measured."""
        asked = self.tasks or self.rows
        if not (asked or self.texts or self.bias or self.harness):
            raise ConfigError(
                "nothing to measure: add --task NAME, --data FILE or --text FILE, or --bias, or --harness FILE."
            )
        named = [*self.tasks, *self.rows, *self.texts]
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise ConfigError(f"{twice[0]}: asked for twice. Name it once.")
        self._check_idle()
        if self.samples > 1 and not self.sampling.temperature:
            raise ConfigError(
                f"--samples {self.samples}: at temperature 0 the samples of a problem are all alike. "
                "Add --temperature 1, or leave --samples out."
            )
        if self.task_options and len(self.tasks) != 1:
            raise ConfigError("--task-option goes with one --task. Evaluate tasks with options one by one.")
        if self.rewards and not (asked or self.bias):
            raise ConfigError("--reward judges answers, and there are none to judge. Add --task, --data or --bias.")
        if self.endpoints and not self.rewards:
            raise ConfigError(
                "--endpoints: remote models that --reward asks, and it is not given. Add it, or leave --endpoints out."
            )
        for flag, value in (("--prompt-column", self.prompt_column), ("--completion-column", self.completion_column)):
            if value and not self.rows:
                raise ConfigError(f"{flag} is a column of --data, which is not given. Name the row file.")
        if self.text_columns and not self.texts:
            raise ConfigError("--text-column is a column of --text, which is not given. Name the row file.")

    def _check_idle(self) -> None:
        """Raise ConfigError where a flag would be ignored: no problem is asked, or no answer to it is drawn."""
        greedy = asdict(GREEDY)
        elsewhere = {"max_tokens", "stop"} if self.harness else {"max_tokens"} if self.bias else set()
        drawing = [name for name, value in asdict(self.sampling).items() if value != greedy[name]]
        drawing += ["max_tokens"] if self.max_tokens is not None else []
        drawing += ["samples"] if self.samples > 1 else []
        drawing = [name for name in drawing if name not in elsewhere]
        if drawing and not (self.tasks or (self.rows and self.rewards)):
            raise ConfigError(
                f"--{drawing[0].replace('_', '-')} says how answers are drawn, and none are: likelihood and perplexity "
                "take what is written. Leave it out, or add --task, or --data with --reward."
            )
        if self.problems != MOST_PROBLEMS and not (self.tasks or self.rows or self.harness):
            raise ConfigError(
                "--problems bounds those of --task and --data, and the rows of --harness; a text is read whole. "
                "Leave it out."
            )


@dataclass(frozen=True)
class Questions:
    """Problems, what judges the answers to them (None: nothing), and the right ones where they are known.

    Two problems with the same ``key`` are the same one.
    """

    name: str
    kind: Literal["task", "rows"]
    recipe: TuneRecipe
    problems: Sequence[Problem]
    completions: Sequence[Completion] | None
    feedback: RewardSum | None
    key: Callable[[Problem], str] = problem_key


@dataclass(frozen=True)
class Opening:
    """What questions are opened with: what sources of feedback may use, and a stack that reward workers end with."""

    stack: ExitStack
    around: Surroundings


def open_questions(examination: Examination, opening: Opening) -> Iterator[Questions]:
    """The questions of each task, then of each row file. Raises ConfigError, DataError."""
    for name in examination.tasks:
        yield _of_task(name, examination, opening)
    for path in examination.rows:
        yield _of_rows(path, examination, opening)


def _of_task(name: str, examination: Examination, opening: Opening) -> Questions:
    # As many for dev as for test, as in the shipped recipes: so a run's own test problems are asked again, exactly.
    count = examination.problems
    data = {"task": name, "task_options": dict(examination.task_options), "dev": count, "test": count}
    recipe = with_task_rewards(_recipe(examination, data))
    streams = open_streams(recipe.data, recipe.seed, supervised=False)
    problems = streams.held_out[SPLIT]
    golden = all(problem.columns.get(streams.completion_column) is not None for problem in problems)
    completions = [streams.completion(problem) for problem in problems] if golden else None
    return Questions(name, "task", recipe, problems, completions, _judges(recipe, opening), streams.key)


def _of_rows(path: str, examination: Examination, opening: Opening) -> Questions:
    supervised = examination.completion_column is not None
    source = read_source(path, "auto", examination.prompt_column, examination.completion_column, supervised=supervised)
    problems = source.problems[: examination.problems]
    recipe = _recipe(examination, {"train": path})
    columns = [_text(problem.columns.get(source.shape.stored)) for problem in problems]
    golden = [source.completions.get(problem.id, text) for problem, text in zip(problems, columns, strict=True)]
    completions = [completion for completion in golden if completion is not None]
    if len(completions) < len(problems):
        completions = []
    if not (recipe.rewards or completions):
        raise ConfigError(
            f"{path}: nothing says whether an answer is right. Add --reward with a rule or a function, or "
            "--completion-column with the column of right answers, to measure how likely the model finds them."
        )
    return Questions(path, "rows", recipe, problems, completions or None, _judges(recipe, opening))


def doubts(model: Path, examination: Examination) -> Iterator[str]:
    """A warning for each task whose problems ``model``, a run's folder or a model inside one, may have trained on.

    Its held-out problems are asked where seed and options are its own, and no more are asked than it held out.
    """
    for config in (run.config for run in runs_behind(model)):
        for name in examination.tasks:
            if same_problems(config["data"].get("task"), name) and (told := _instead(config, name, examination)):
                yield f"task {name}: {model} may have trained on some of these problems. {told}"
                return


def _instead(config: Mapping[str, Any], name: str, examination: Examination) -> str:
    """How to ask what the run of this recipe held out, instead of the task ``name``; nothing where that is asked."""
    data, seed = config["data"], config["seed"]
    count = min(HELD_OUT_AT_MOST if data.get(name) is None else int(data[name]) for name in ("dev", "test"))
    options = dict(data.get("task_options") or {})
    if not count:
        return "It held none out to ask instead."
    other = [f"--task {data['task']}"] if data["task"] != name else []
    other += [f"--seed {seed}"] if seed != examination.seed else []
    if options != dict(examination.task_options):
        other += [f"--task-option {name}={value}" for name, value in options.items()] or ["no --task-option"]
    other += [f"--problems {count}"] if examination.problems > count else []
    return f"To ask those it held out: {', '.join(other)}." if other else ""


def _recipe(examination: Examination, data: Mapping[str, Any]) -> TuneRecipe:
    """A recipe with this test: the checks and words of recipes are those of the flags too."""
    content = {
        "model": ".",
        "data": data,
        "rewards": examination.rewards,
        "sampling": asdict(examination.sampling),
        "gate": {"metric": "reward"},
        "seed": examination.seed,
    }
    return parse_recipe(TuneRecipe, content, "evaluate")


def _judges(recipe: TuneRecipe, opening: Opening) -> RewardSum | None:
    return open_judges(recipe.rewards, opening) if recipe.rewards else None


def rewards_of(examination: Examination) -> Sequence[RewardConfig]:
    """What --reward names. Raises ConfigError."""
    return _recipe(examination, {"train": "."}).rewards


def open_judges(rewards: Sequence[RewardConfig], opening: Opening) -> RewardSum:
    """What judges answers. Raises ConfigError."""
    loaded = load_feedback(rewards, reference_columns=(), label_free=False, surroundings=opening.around)
    return opening.stack.enter_context(loaded)


def _text(value: Any) -> str | None:
    """A completion's text where it is one: itself, or a single message's."""
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0].get("content")
    return value if isinstance(value, str) and value else None
