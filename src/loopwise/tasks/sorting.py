"""Letters to be put into alphabetical order: ``loopwise=`` with the answer ``eiloopsw``.

Not arithmetic, yet as checkable, and a transformer of two layers can learn it: count a letter in the first, place it in
the second. Two problems with the same letters, in any order, are the same one when streams are kept disjoint.
"""

from __future__ import annotations

from string import ascii_lowercase

import numpy as np

from loopwise.tasks.base import ProblemSource, endless
from loopwise.tasks.options import check_whole
from loopwise.types import Problem

LONGEST = 1000


def sorting(length: int = 8, letters: int = 26) -> ProblemSource:
    """Words of ``length`` letters, each uniform over the first ``letters`` of the alphabet. Raises ConfigError."""
    check_whole("length", length, 1, LONGEST)
    check_whole("letters", letters, 2, len(ascii_lowercase))

    def draw(generator: np.random.Generator) -> Problem:
        return make("".join(ascii_lowercase[place] for place in generator.integers(0, letters, size=length)))

    return endless(draw)


def make(word: str) -> Problem:
    """The problem of sorting the letters of ``word``; column ``answer`` holds the truth."""
    return Problem(f"sort-{word}", f"{word}=", {"answer": "".join(sorted(word))})


def sorted_letters(problem: Problem) -> str:
    """The letters of a problem in order: the same for every word made of them."""
    return "".join(sorted(str(problem.prompt).rstrip("=")))
