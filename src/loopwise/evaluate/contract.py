"""TRL's reward contract: how a reward function is called and what it may return.

Shared by rewards called in this process and by the worker process, which must start fast: standard library only.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

FIXED_ARGUMENTS = frozenset({"prompts", "completions", "completion_ids", "log_extra", "log_metric"})


class CallError(Exception):
    """One call of a reward failed. Never leaves this package: a check turns it into a RewardError, a run into a mask.

    ``reason`` says what happened, ``mend`` what to do; ``index`` is the sample of the batch at fault where that is
    known; ``lost_worker`` is true where the worker process was lost and has to be started again.
    """

    def __init__(self, reason: str, mend: str, index: int | None = None, lost_worker: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.mend = mend
        self.index = index
        self.lost_worker = lost_worker


@dataclass(frozen=True)
class Batch:
    """The arguments of one call, one entry a sample; ``columns`` maps each column to its values."""

    prompts: list[Any]
    completions: list[Any]
    completion_ids: list[list[int]]
    columns: Mapping[str, list[Any]]

    def __len__(self) -> int:
        return len(self.prompts)

    def row(self, index: int) -> Batch:
        """The batch of one sample."""
        columns = {name: [values[index]] for name, values in self.columns.items()}
        return Batch([self.prompts[index]], [self.completions[index]], [self.completion_ids[index]], columns)


@dataclass
class Outcome:
    """What one call gave: a reward (or None) a sample, logged columns, and every value logged of each metric; of a
    critic, a critique (or None: nothing to say against it) a sample instead of rewards."""

    rewards: list[float | None] = field(default_factory=list)
    critiques: list[str | None] = field(default_factory=list)
    extra: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class BoundReward:
    """A reward function with the keywords its signature accepts (None: every one) and those it requires.

    ``words``: a critic, which returns critiques.
    """

    function: Callable[..., Any]
    accepts: frozenset[str] | None
    requires: frozenset[str]
    file: str | None = None
    words: bool = False

    @staticmethod
    def of(function: Callable[..., Any], file: str | None = None, *, words: bool = False) -> BoundReward:
        """Read the signature. ``file`` is the reward's source, so that errors name its line."""
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            return BoundReward(function, None, frozenset(), file, words)
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        accepts = None if takes_all else frozenset(p.name for p in named)
        return BoundReward(function, accepts, frozenset(p.name for p in named if p.default is p.empty), file, words)

    def take(self, returned: Any, count: int, outcome: Outcome) -> None:
        """Put what a call on ``count`` samples returned into ``outcome``. Raises CallError on a breach of contract."""
        if self.words:
            outcome.critiques, outcome.rewards = checked_critiques(returned, count), [None] * count
        else:
            outcome.rewards = checked_rewards(returned, count)

    def start(self, batch: Batch, outcome: Outcome) -> Any:
        """Call the function with the keywords it accepts; an async one returns its awaitable.

        What it logs lands in ``outcome``. Raises CallError where a column it requires is not there.
        """
        arguments: dict[str, Any] = {k: v for k, v in batch.columns.items() if k not in FIXED_ARGUMENTS}
        arguments |= {
            "prompts": batch.prompts,
            "completions": batch.completions,
            "completion_ids": batch.completion_ids,
            "log_extra": lambda column, values: _log_extra(outcome, len(batch), column, values),
            "log_metric": lambda name, value: outcome.metrics.setdefault(str(name), []).append(float(value)),
        }
        missing = sorted(self.requires - arguments.keys())
        if missing:
            raise missing_column(missing[0], batch.columns)
        if self.accepts is not None:
            arguments = {name: value for name, value in arguments.items() if name in self.accepts}
        return self.function(**arguments)


def missing_column(column: str, columns: Mapping[str, Any]) -> CallError:
    """The failure of a reward that needs ``column`` where it may see only ``columns``."""
    return CallError(
        f'it needs column "{column}"; the columns it may see are: {", ".join(sorted(columns)) or "none"}',
        "Add the column to the rows. A reference column reaches only rewards with uses_reference: true.",
    )


def checked_rewards(returned: Any, count: int) -> list[float | None]:
    """The rewards as floats, None where a sample could not be judged. Raises CallError on a breach of the contract."""
    mend = "Return a list with one number (or None: could not be judged) for each completion."
    _check_list(returned, count, "rewards", mend)
    return [_checked_reward(value, index, mend) for index, value in enumerate(returned)]


def checked_critiques(returned: Any, count: int) -> list[str | None]:
    """The critiques, None where there is nothing to say against a sample. Raises CallError on a breach of contract."""
    mend = "Return a list with a text (or None: nothing to say against it) for each completion."
    _check_list(returned, count, "critiques", mend)
    for index, value in enumerate(returned):
        if value is not None and not isinstance(value, str):
            raise CallError(f"it returned {_shorten(value)} ({type(value).__name__}) as a critique", mend, index)
    # Halves of surrogate pairs: no tokenizer could show such a critique to a model.
    return [value.encode("utf-8", "replace").decode() if value else None for value in returned]


def _check_list(returned: Any, count: int, what: str, mend: str) -> None:
    if not isinstance(returned, list | tuple):
        raise CallError(f"it returned {_shorten(returned)}, not a list", mend)
    if len(returned) != count:
        raise CallError(f"it returned {len(returned)} {what} for {count} completions", mend)


@contextmanager
def classified(file: str | None) -> Iterator[None]:
    """Turn whatever user code raises into a CallError that names the line of ``file``."""
    try:
        yield
    except CallError:
        raise
    except (Exception, SystemExit) as error:
        reason = f"it raised {type(error).__name__}: {_shorten(error, str)}{_line(error, file)}"
        raise CallError(reason, "Mend it, or return None for a sample that cannot be judged.") from error


def _checked_reward(value: Any, index: int, mend: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, str) or not hasattr(type(value), "__float__"):
        raise CallError(f"it returned {_shorten(value)} ({type(value).__name__}) as a reward", mend, index)
    number = float(value)
    if not math.isfinite(number):
        raise CallError(f"it returned {number} as a reward", mend, index)
    return number


def _log_extra(outcome: Outcome, count: int, column: str, values: Any) -> None:
    values = list(values)
    if len(values) != count:
        raise CallError(
            f'it called log_extra("{column}") with {len(values)} values for {count} completions',
            "Log one value a completion.",
        )
    outcome.extra[str(column)] = [_jsonable(value) for value in values]


def plain(value: Any) -> Any:
    """What JSON can hold in place of an array or an array's number. Raises TypeError on anything else."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__}")


def _jsonable(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, default=plain))
    except (TypeError, ValueError):
        return repr(value)


def _line(error: BaseException, file: str | None) -> str:
    """Where in the user's code an error came from: the deepest line of ``file``, else of any code but ours."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename} line {error.lineno})"
    ours = os.path.dirname(os.path.abspath(__file__))
    frames = traceback.extract_tb(error.__traceback__)
    outside = [f for f in frames if os.path.dirname(f.filename) != ours and not f.filename.startswith("<frozen")]
    frames_of_file = [f for f in outside if file is not None and os.path.realpath(f.filename) == os.path.realpath(file)]
    places = frames_of_file or outside
    return f" ({places[-1].filename} line {places[-1].lineno})" if places else ""


def _shorten(value: Any, text: Callable[[Any], str] = repr, limit: int = 200) -> str:
    shown = text(value)
    return shown if len(shown) <= limit else f"{shown[:limit]}…"
