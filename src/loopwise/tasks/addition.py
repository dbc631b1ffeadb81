"""Sums of two numbers of up to three digits, written so that a tiny model can learn them.

Operands are padded with zeros to 3 digits, the sum to 4, and each number's digits are reversed, so that
759 + 468 = 1227 is ``957+864=`` with the answer ``7221``. Two sums with the same operands, in any order, are the same
problem when streams are kept disjoint.
"""

from __future__ import annotations

import numpy as np

from loopwise.types import Problem

DIGITS = 3


def addition(generator: np.random.Generator) -> Problem:
    """One sum, both operands uniform over 0 to 999."""
    first, second = (int(number) for number in generator.integers(0, 10**DIGITS, size=2))
    return make(first, second)


def make(first: int, second: int) -> Problem:
    """The problem ``first + second``; column ``answer`` holds the truth."""
    prompt = f"{_reversed(first, DIGITS)}+{_reversed(second, DIGITS)}="
    return Problem(f"add-{first}-{second}", prompt, {"answer": _reversed(first + second, DIGITS + 1)})


def operands(problem: Problem) -> str:
    """The operands of a sum as it is written, in one order: the same for ``a + b`` and ``b + a``."""
    return "+".join(sorted(str(problem.prompt).rstrip("=").split("+")))


def _reversed(number: int, digits: int) -> str:
    return f"{number:0{digits}d}"[::-1]
