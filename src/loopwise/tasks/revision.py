"""Sums, with what it takes to learn to revise them: the labelled rows also hold criticised drafts.

A sum is written as in the task ``addition``. Beside its answer, each labelled sum brings rows that continue a draft:

    ``957+864=``            ``7221``  the answer
    ``957+864=7351=``       ``22``    the critique: the place of the first wrong digit, and what belongs there
    ``957+864=7351=49=``    ``7359``  a revision: the draft with the named digit changed, be the critique right or not

so that a recipe's templates are ``{prompt}{draft}=`` for a critique and ``{prompt}{draft}={critique}=`` for a
revision. Nobody writes these rows by hand: drafts are the answer with some digits replaced, and what a revision is
told is drawn at random, because what follows from the sum alone would be learned without reading the critique.
"""

from __future__ import annotations

import numpy as np

from loopwise.runtime import seed_key
from loopwise.tasks.addition import DIGITS, addition
from loopwise.tasks.base import ProblemSource
from loopwise.tasks.options import check_whole
from loopwise.types import Problem

DRAFTS = 1
MOST_DRAFTS = 100


def revision(digits: int = DIGITS, drafts: int = DRAFTS) -> ProblemSource:
    """The sums of the task ``addition``; ``drafts`` is for ``rows_of``. Raises ConfigError."""
    check_whole("drafts", drafts, 0, MOST_DRAFTS)
    return addition(digits)


def operands(problem: Problem) -> str:
    """The operands of a sum or of a row that continues one, in one order."""
    return "+".join(sorted(str(problem.prompt).partition("=")[0].split("+")))


def rows_of(problem: Problem, drafts: int = DRAFTS) -> list[Problem]:
    """What is learned of a labelled sum: itself, and of each of ``drafts`` wrong drafts a critique and a revision.

    A pure function of the problem.
    """
    answer = str(problem.columns["answer"])
    generator = np.random.Generator(np.random.Philox(key=seed_key("wrong drafts", problem.id)))
    rows = [problem]
    for number in range(drafts):
        draft = _wrong_draft(answer, generator)
        rows.append(_row(problem, f"critique-{number}", f"{problem.prompt}{draft}=", critique_of(draft, answer)))
        revised = _replaced(draft, int(generator.integers(len(draft))), generator)
        told = critique_of(draft, revised)
        rows.append(_row(problem, f"revision-{number}", f"{problem.prompt}{draft}={told}=", revised))
    return rows


def critique_of(draft: str, answer: str) -> str:
    """The first place, counted from 1, where a draft differs from the answer, and the digit that belongs there.

    The draft must not begin with the answer: there is nothing to name then.

    >>> critique_of("7321", "7221")
    '22'
    """
    place = next(place for place, digit in enumerate(answer) if draft[place : place + 1] != digit)
    return f"{place + 1}{answer[place]}"


def _wrong_draft(answer: str, generator: np.random.Generator) -> str:
    """From a random digit on, each digit is replaced or kept by the toss of a coin; the first is replaced."""
    first = int(generator.integers(len(answer)))
    draft = answer
    for place in range(first, len(answer)):
        if place == first or generator.random() < 0.5:
            draft = _replaced(draft, place, generator)
    return draft


def _replaced(digits: str, place: int, generator: np.random.Generator) -> str:
    """The digits with another one at a place (from 0)."""
    other = (int(digits[place]) + int(generator.integers(1, 10))) % 10
    return f"{digits[:place]}{other}{digits[place + 1 :]}"


def _row(problem: Problem, kind: str, prompt: str, answer: str) -> Problem:
    return Problem(f"{problem.id}/{kind}", prompt, {**problem.columns, "answer": answer})
