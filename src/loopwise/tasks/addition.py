"""Sums of two numbers of a few digits, written so that a tiny model can learn them.

Operands are padded with zeros to ``digits``, the sum to one more, and each number's digits are reversed, so that
759 + 468 = 1227 is ``957+864=`` with the answer ``7221``. Two sums with the same operands, in any order, are the same
problem when streams are kept disjoint.
"""

from __future__ import annotations

import numpy as np

from loopwise.tasks.base import ProblemSource, endless
from loopwise.tasks.options import check_whole
from loopwise.types import Problem

DIGITS = 3
MOST_DIGITS = 18
"""Operands are drawn as 64-bit numbers."""


def addition(digits: int = DIGITS) -> ProblemSource:
    """Sums whose operands are uniform over the numbers of up to ``digits`` digits. Raises ConfigError."""
    check_whole("digits", digits, 1, MOST_DIGITS)

    def draw(generator: np.random.Generator) -> Problem:
        first, second = (int(number) for number in generator.integers(0, 10**digits, size=2))
        return make(first, second, digits)

    return endless(draw)


def make(first: int, second: int, digits: int = DIGITS) -> Problem:
    """The problem ``first + second``; column ``answer`` holds the truth, ``mirrored`` the prompt ``second + first``."""
    one, other = _reversed(first, digits), _reversed(second, digits)
    columns = {"answer": _reversed(first + second, digits + 1), "mirrored": f"{other}+{one}="}
    return Problem(f"add-{first}-{second}", f"{one}+{other}=", columns)


def operands(problem: Problem) -> str:
    """The operands of a sum as it is written, in one order: the same for ``a + b`` and ``b + a``."""
    return "+".join(sorted(str(problem.prompt).rstrip("=").split("+")))


def _reversed(number: int, digits: int) -> str:
    return f"{number:0{digits}d}"[::-1]
