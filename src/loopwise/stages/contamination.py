"""Which of the problems that a model is asked it has met in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from loopwise.data.streams import problem_key
from loopwise.evaluate.overlap import Overlap, Seen, counts, find_overlaps, text_of
from loopwise.stages.trained_on import Training
from loopwise.types import Problem

EXAMPLES = 5
Key = Callable[[Problem], str]


def contamination(
    model: str, training: Training, problems: Sequence[Problem], key: Key = problem_key
) -> tuple[dict[str, Any], dict[int, Overlap]]:
    """How many of ``problems`` [P] the model has met in training, with examples; and all of them by their places.

    ``key`` is that of the task they are from. It is asked of all that was seen: tasks of another name, and row files,
    may hold the same problems.
    """
    if not training.known:
        return {"model": model, "known": False, "problems": len(problems)}, {}
    texts = [text_of(problem.prompt) for problem in problems]
    found = find_overlaps(texts, [_keys(problem, key) for problem in problems], _seen(training, key))
    examples = [{"prompt": texts[place][:200], **asdict(overlap)} for place, overlap in list(found.items())[:EXAMPLES]]
    summary = {"model": model, "known": True, "problems": len(problems), "met": len(found), **counts(found)}
    return {**summary, "examples": examples}, found


def _seen(training: Training, key: Key) -> Iterator[Seen]:
    """Everything, with what makes a problem the same as one of those that ``key`` is for."""
    for place, problem in training.problems:
        yield Seen(place, text_of(problem.prompt), _keys(problem, key))
    yield from training.texts


def _keys(problem: Problem, key: Key) -> frozenset[str]:
    """What makes two problems the same one: the prompt, and where a task knows better, its own ``key`` as well."""
    return frozenset({problem_key(problem), f"task {key(problem)}"})
