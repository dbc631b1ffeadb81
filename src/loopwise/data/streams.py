"""Streams of problems that never overlap: keys, the check of held-out splits, splitting and drawing."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, combinations

import numpy as np

from loopwise.data.batches import permutation
from loopwise.data.dedup import normalised
from loopwise.errors import ConfigError, DataError, OverlapError
from loopwise.runtime import seed_key, uniforms
from loopwise.types import Problem

SHOWN = 40
"""Characters of a problem that an error shows."""


def problem_key(problem: Problem) -> str:
    """What makes two problems of row files the same one: a hash (32 hex digits) of the prompt in Unicode NFKC with
    white space collapsed. Text and a single user message of it are the same. Columns never count, but that the text of
    a row of plain text stands in for its empty prompt.
    """
    content: list[object]
    if not problem.prompt and isinstance(problem.columns.get("text"), str):
        content = ["text", normalised(problem.columns["text"])]
    elif isinstance(problem.prompt, str):
        content = ["prompt", ["user", normalised(problem.prompt)]]
    else:
        content = ["prompt", *([message["role"], normalised(message["content"])] for message in problem.prompt)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def check_disjoint(
    train: Sequence[Problem],
    held_out: Mapping[str, Sequence[Problem]],
    key: Callable[[Problem], str] = problem_key,
) -> None:
    """Check that no two splits share a problem: ``train`` against each of ``held_out``, and these with each other.

    Two problems with the same ``key`` are the same one; a task may know better than their prompts.
    Raises OverlapError with a line for each pair of splits that do: how many, how the first two begin, the mend.
    """
    splits = {"train": train, **held_out}
    found: dict[str, dict[str, Problem]] = {name: {} for name in splits}
    for name, problems in splits.items():
        for problem in problems:
            found[name].setdefault(key(problem), problem)
    complaints = []
    for kept, checked in combinations(splits, 2):
        shared = [same for same in found[checked] if same in found[kept]]
        if shared:
            pairs = [(_beginning(found[checked][same]), _beginning(found[kept][same])) for same in shared[:2]]
            # Splits may write the same problem differently, up to the key.
            examples = " and ".join(one if one == other else f"{one} = {other}" for one, other in pairs)
            complaints.append(
                f"{checked}: {len(shared)} of {len(found[checked])} different problems are also in {kept}, "
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
    return _walk(problems, [count] * (round + 1), seed)


def draw_mixture(
    sources: Sequence[Sequence[Problem]], weights: Sequence[float], count: int, seed: int, round: int
) -> list[Problem]:
    """The problems of a round (from 0) of several sources, drawn by weight: a pure function of seed and round.

    Each source is walked as ``draw`` walks it. Its part of a round is its share of ``count``, rounded up or down at
    random so that the mean is the share, and at most all of it: what a small source cannot give, the others do.
    Raises DataError where a source has no problems.
    """
    shares = _shares(count, weights, [len(problems) for problems in sources])
    counts = _rounded_at_random(shares, seed, round + 1)
    walked = [_walk(problems, counts[:, place].tolist(), seed) for place, problems in enumerate(sources)]
    return [problem for problems in walked for problem in problems]


def _beginning(problem: Problem) -> str:
    """Where a problem stands, or how it begins, in quotes: a conversation by its last message, a text by itself."""
    if problem.place:
        return problem.place
    prompt = problem.prompt or str(problem.columns.get("text", ""))
    text = " ".join((prompt if isinstance(prompt, str) else prompt[-1]["content"]).split())
    return json.dumps(text if len(text) <= SHOWN else text[:SHOWN] + "…", ensure_ascii=False)


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


def _walk(problems: Sequence[Problem], counts: Sequence[int], seed: int) -> list[Problem]:
    """The last of several rounds, of which each takes its count of problems and goes on where the one before ended."""
    total = len(problems)
    if not total:
        raise DataError("no problems to draw from. Give at least one.")
    starts = [0, *accumulate(counts)]
    first, stop = starts[-2:]
    order = np.empty(0, dtype=np.int64)
    chosen: list[int] = []
    for number in range(max(stop - 1, 0) // total + 1):
        start = number * total
        begun = min(bisect_right(starts, start), len(counts)) - 1
        before = start - starts[begun] if counts[begun] <= total else 0
        order = _pass_order(total, seed, number, order[total - before :], counts[begun] - before)
        chosen.extend(order[max(first - start, 0) : max(stop - start, 0)].tolist())
    return [problems[index] for index in chosen]


def _shares(count: int, weights: Sequence[float], limits: Sequence[int]) -> np.ndarray:
    """Parts of ``count`` in proportion to ``weights``, none over its limit: float64, one a source."""
    weight, limit = np.asarray(weights, dtype=np.float64), np.asarray(limits, dtype=np.float64)
    shares = np.zeros(len(weight))
    free = np.ones(len(weight), dtype=bool)
    while free.any():
        left = max(min(count, limit.sum()) - shares[~free].sum(), 0.0)
        shares[free] = left * weight[free] / weight[free].sum()
        over = free & (shares > limit)
        if not over.any():
            break
        shares[over] = limit[over]
        free &= ~over
    return shares


def _rounded_at_random(shares: np.ndarray, seed: int, rounds: int) -> np.ndarray:
    """``shares`` as whole numbers of the same sum, a row for each round, each rounded up with the probability of its
    fraction: int64 ``[rounds, sources]``.

    Systematic sampling (Madow 1949): one uniform shifts the cumulated shares, and whole numbers crossed are counted.
    """
    keys = np.array([seed_key("mixture", seed, round) for round in range(rounds)], dtype=np.uint64)
    # Rounded, since the sum must be whole and floating-point shares fall a little short of it.
    crossed = np.floor(np.round(np.cumsum(shares), 9) + uniforms(keys, 0)[:, None]).astype(np.int64)
    return np.diff(crossed, axis=1, prepend=0)
