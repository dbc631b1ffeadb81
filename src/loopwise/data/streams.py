"""Streams of problems that never overlap: keys, the check of held-out splits, splitting and drawing."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np

from loopwise.data.batches import permutation
from loopwise.errors import ConfigError, DataError, OverlapError
from loopwise.runtime import seed_key
from loopwise.types import Problem


def problem_key(problem: Problem) -> str:
    """What makes two problems of row files the same one: a hash (32 hex digits) of the prompt in Unicode NFKC with
    white space collapsed. Text and a single user message of it are the same. Columns never count.
    """
    content: list[object]
    if isinstance(problem.prompt, str):
        content = ["prompt", ["user", _normalised(problem.prompt)]]
    else:
        content = ["prompt", *([message["role"], _normalised(message["content"])] for message in problem.prompt)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def check_disjoint(
    train: Sequence[Problem],
    held_out: Mapping[str, Sequence[Problem]],
    key: Callable[[Problem], str] = problem_key,
) -> None:
    """Check that no two splits share a problem: ``train`` against each of ``held_out``, and these with each other.

    Two problems with the same ``key`` are the same one; a task may know better than their prompts.
    Raises OverlapError with a line for each pair of splits that do: how many, the first two by their ids, the mend.
    """
    splits = {"train": train, **held_out}
    ids: dict[str, dict[str, str]] = {name: {} for name in splits}
    for name, problems in splits.items():
        for problem in problems:
            ids[name].setdefault(key(problem), problem.id)
    complaints = []
    for kept, checked in combinations(splits, 2):
        shared = [found for found in ids[checked] if found in ids[kept]]
        if shared:
            examples = " and ".join(
                f"{checked} {ids[checked][found]} = {kept} {ids[kept][found]}" for found in shared[:2]
            )
            complaints.append(
                f"{checked}: {len(shared)} of {len(ids[checked])} different problems are also in {kept}, "
                f"for example {examples}. Remove them from {kept} or from {checked}."
            )
    if complaints:
        raise OverlapError("\n".join(complaints))


def split(problems: Sequence[Problem], sizes: Mapping[str, int], seed: int) -> dict[str, list[Problem]]:
    """Part problems at random into splits of exactly the given sizes, filled in their order; what is over is left out.

    A problem's place depends on its key and the seed, not on the order of ``problems``; equal keys stay together.
    Raises DataError where there are too few problems, ConfigError where a size is negative.
    """
    for name, size in sizes.items():
        if size < 0:
            raise ConfigError(
                f'split "{name}": expected a size of at least 0, found {size}. '
                "Name a larger one, or make the others smaller."
            )
    if sum(sizes.values()) > len(problems):
        wanted = " + ".join(f"{size} {name}" for name, size in sizes.items())
        raise DataError(
            f"{wanted} = {sum(sizes.values())} problems wanted, but there are {len(problems)}. "
            "Choose smaller sizes or add rows."
        )
    groups: dict[str, list[Problem]] = {}
    for problem in sorted(problems, key=lambda problem: problem.id):
        groups.setdefault(problem_key(problem), []).append(problem)
    waiting = [groups[key] for key in sorted(groups, key=lambda key: (seed_key("split", seed, key), key))]
    parts: dict[str, list[Problem]] = {}
    for name, size in sizes.items():
        parts[name], waiting = _fill(waiting, size)
        if len(parts[name]) < size:
            raise DataError(
                f'split "{name}": {size} problems cannot be filled without parting equal prompts. '
                "Choose another size, or remove rows whose prompt stands in the file twice."
            )
    return parts


def draw(problems: Sequence[Problem], count: int, seed: int, round: int) -> list[Problem]:
    """The ``count`` problems of a round (from 0): a pure function of seed and round.

    Rounds walk through the problems in random order, a new one for each pass; every pass visits each problem once, and
    no problem comes twice in a round unless ``count`` exceeds their number. Raises DataError where there are none.
    """
    total = len(problems)
    if not total:
        raise DataError("no problems to draw from. Give at least one.")
    first, stop = round * count, (round + 1) * count
    order = np.empty(0, dtype=np.int64)
    chosen: list[int] = []
    for number in range((stop - 1) // total + 1):
        start = number * total
        before = start % count if count <= total else 0
        order = _pass_order(total, seed, number, order[total - before :], count - before)
        chosen.extend(order[max(first - start, 0) : max(stop - start, 0)].tolist())
    return [problems[index] for index in chosen]


def _normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _fill(groups: Sequence[list[Problem]], size: int) -> tuple[list[Problem], list[list[Problem]]]:
    """Take whole groups, in order, where they fit into ``size``; return what was taken and the groups passed over."""
    taken: list[Problem] = []
    left = []
    for group in groups:
        if len(taken) + len(group) <= size:
            taken.extend(group)
        else:
            left.append(group)
    return taken, left


def _pass_order(total: int, seed: int, number: int, avoid: np.ndarray, head: int) -> np.ndarray:
    """The order of one pass, in which none of ``avoid`` (the begun round's problems) comes among the first ``head``."""
    order = permutation(total, "draw", seed, number)
    fresh = np.flatnonzero(~np.isin(order, avoid))[:head]
    return np.concatenate([order[fresh], np.delete(order, fresh)])
