"""Whether an output is the expected one. Runs outside, on plain data: no object of the program's has a say."""

from __future__ import annotations

import math
from typing import Any


def same_output(found: Any, expected: Any, tolerance: float) -> bool:
    """Whether two JSON values are equal.

    Numbers are equal where they are the same, or where one is a float and they differ by no more than ``tolerance``,
    absolutely or relatively. True and False are no numbers.
    """
    try:
        return _same(found, expected, tolerance)
    except RecursionError:  # nested deeper than anything a test expects
        return False


def same_text(found: str, expected: str) -> bool:
    """Whether two texts are equal but for white space at the ends of lines and empty lines at the end."""
    return _trimmed(found) == _trimmed(expected)


def _same(found: Any, expected: Any, tolerance: float) -> bool:
    if isinstance(found, bool) or isinstance(expected, bool):
        return found is expected
    if isinstance(found, int | float) and isinstance(expected, int | float):
        return _same_number(found, expected, tolerance)
    if type(found) is not type(expected):
        return False
    if isinstance(found, list):
        return len(found) == len(expected) and all(_same(a, b, tolerance) for a, b in zip(found, expected, strict=True))
    if isinstance(found, dict):
        return found.keys() == expected.keys() and all(_same(found[key], expected[key], tolerance) for key in expected)
    return bool(found == expected)


def _same_number(found: float, expected: float, tolerance: float) -> bool:
    if found == expected:
        return True
    if isinstance(found, int) and isinstance(expected, int):
        return False
    try:
        return math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance)
    except OverflowError:  # a whole number beyond what a float can hold
        return False


def _trimmed(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]
