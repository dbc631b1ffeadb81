"""The streams of a task: fresh problems every round, none of them held out."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from loopwise.config.blocks import DataConfig
from loopwise.errors import ConfigError
from loopwise.runtime import seed_key
from loopwise.tasks.base import HELD_OUT_AT_MOST, Streams, Task
from loopwise.tasks.registry import find_task
from loopwise.types import Problem, Prompt

MOST_MISSES = 10_000
"""Known problems in a row after which a task counts as exhausted."""


def generated_streams(data: DataConfig, seed: int) -> Streams:
    """The streams of the task that ``data`` names. Raises ConfigError."""
    _refuse_row_keys(data)
    name = str(data.task)
    task = find_task(name, data.task_options)
    for key in ("dev", "test", "labelled"):
        if isinstance(getattr(data, key), str):
            raise ConfigError(f'key "data.{key}": with a built-in task give a number of problems, not a file.')
    if data.skills:
        raise ConfigError('key "data.skills": old skills are row files of their own; a built-in task takes none yet.')

    def exactly(stream: str, count: int, taken: Collection[str]) -> list[Problem]:
        problems = _generate(task, seed_key("task", name, stream, seed), count, taken)
        if len(problems) < count:
            raise ConfigError(
                f"task {name}: it has too few distinct problems: stream {stream} needs {count:,}, and after "
                f"{len(problems):,} no new one came up. Ask for fewer (data.dev, data.test, data.labelled, problems)."
            )
        return problems

    taken: set[str] = set()
    held_out: dict[str, Sequence[Problem]] = {}
    for stream in ("dev", "test"):
        count = getattr(data, stream)
        held_out[stream] = exactly(stream, HELD_OUT_AT_MOST if count is None else count, taken)
        taken |= set(map(task.key, held_out[stream]))

    def draw_level(level: str, round: int, count: int) -> list[Problem]:
        # An easy level may have few problems: what there is of it is drawn, and the harder ones are not held up.
        return _generate(task, seed_key("task", name, f"train-{round}", seed), count, taken, level)

    def prompts(count: int) -> list[Prompt]:
        return [problem.prompt for problem in _generate(task, seed_key("task", name, "train-1", seed), count, taken)]

    return Streams(
        draw=lambda round, count: exactly(f"train-{round}", count, taken),
        held_out={stream: problems for stream, problems in held_out.items() if problems},
        labelled=[row for problem in exactly("labelled", int(data.labelled or 0), taken) for row in task.rows(problem)],
        completion_column=task.completion_column,
        reference_columns=tuple(dict.fromkeys((*task.reference_columns, *data.reference_columns))),
        train_count=None,
        key=task.key,
        levels=tuple(task.levels) if len(task.levels) > 1 else (),
        draw_level=draw_level if len(task.levels) > 1 else None,
        prompts=prompts,
    )


def _refuse_row_keys(data: DataConfig) -> None:
    for key in ("format", "prompt_column", "completion_column", "augment"):
        if getattr(data, key) != DataConfig.model_fields[key].default:
            raise ConfigError(f'key "data.{key}": is for row files, and a built-in task has none. Leave it out.')


def _generate(task: Task, key: int, count: int, taken: Collection[str], level: str | None = None) -> list[Problem]:
    """``count`` distinct problems, none of them taken, or what there are: a pure function of its arguments."""
    problems: list[Problem] = []
    seen = set(taken)
    misses = 0
    source = task.problems(key, level)
    while len(problems) < count and misses <= MOST_MISSES:
        problem = next(source)
        identity = task.key(problem)
        misses = misses + 1 if identity in seen else 0
        if not misses:
            seen.add(identity)
            problems.append(problem)
    return problems
