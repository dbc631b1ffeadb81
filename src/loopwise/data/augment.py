"""A user's function that changes training rows: ``function(row: dict, generator: numpy.random.Generator) -> dict``."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from loopwise.data.row import Row, describe
from loopwise.errors import DataError
from loopwise.runtime import seed_key
from loopwise.types import Problem
from loopwise.user_code import failure, load_function

KEY = "data.augment"


def load_augment(
    use: str, rows: Mapping[str, Row], read: Callable[[Problem, Row], Problem], seed: int
) -> Callable[[Problem, int], Problem]:
    """``augmented(problem, epoch)``: the problem that the function ``use`` makes of a problem's row in an epoch.

    A pure function of (seed, problem id, epoch) if the user's function draws from its generator alone. ``rows`` are the
    train rows by problem id; ``read`` makes a changed row the problem, of the same id.
    Raises ConfigError where the function cannot be loaded; what it returns raises DataError naming it and the row.
    """
    function = load_function(use, KEY)

    def augmented(problem: Problem, epoch: int) -> Problem:
        row = rows[problem.id]
        place = f"{row.place}, changed by {use}"
        generator = np.random.Generator(np.random.Philox(key=seed_key("augment", seed, problem.id, epoch)))
        try:
            changed = function(copy.deepcopy(row.columns), generator)
        except (Exception, SystemExit) as error:
            reason = failure(error, use.rpartition(":")[0])
            raise DataError(f"{place}: it raised {reason}. Mend it, or leave {KEY} out.") from error
        return read(problem, Row(place, row.line, _checked(changed, place)))

    return augmented


def _checked(changed: Any, place: str) -> dict[str, Any]:
    if not isinstance(changed, dict) or not all(isinstance(name, str) for name in changed):
        raise DataError(f"{place}: expected a row as a dict, found {describe(changed)}. Return the changed row.")
    try:
        json.dumps(changed, ensure_ascii=False).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{place}: found what JSON cannot hold ({error}). Return text, numbers and lists.") from None
    return changed
