"""What a benchmark reads off a process: peak memory, and seconds and tokens of each optimizer step."""

from __future__ import annotations

import contextlib
import functools
import inspect
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

STEP, TRAINED, SAMPLED = "step", "tokens_trained", "tokens_sampled"
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_MIB = 2**20


class MemoryGauge:
    """Peak memory since the gauge was made, in MiB: of the GPU where there is one, resident memory elsewhere.

    Where the system cannot begin a new peak, what came before the gauge counts for the peak too.
    """

    def __init__(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self._before = float(torch.cuda.memory_allocated())
            return
        with contextlib.suppress(OSError):
            _CLEAR.write_text(_RESET_PEAK)
        self._before = _status("VmRSS") or _most_resident()

    def figures(self) -> dict[str, float | None]:
        """``peak_mib``, and ``growth_mib`` over what the process held when the gauge was made."""
        if torch.cuda.is_available():
            peak = float(torch.cuda.max_memory_allocated())
        else:
            # Not ru_maxrss where this is there: a child's begins at its parent's.
            peak = _status("VmHWM") or _most_resident()
        return {"peak_mib": peak / _MIB, "growth_mib": (peak - self._before) / _MIB}


class StepMeter:
    """Totals that grow while a process trains; ``mark`` ends a step, and a step's figures are the difference of marks.

    The first mark is where measuring begins: the step before it warmed up. ``memory`` is the peak at the last mark:
    what a run does when its steps are done is left out.
    """

    def __init__(self) -> None:
        self._gauge = MemoryGauge()
        self.memory: dict[str, float | None] = {}
        self.totals: defaultdict[str, float] = defaultdict(float)
        self.marks: list[Mapping[str, float]] = []

    def mark(self) -> None:
        """A step has ended."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks.append({**self.totals, STEP: time.perf_counter()})
        self.memory = self._gauge.figures()

    def median(self, key: str) -> float:
        """A step's median of a total, over the steps between marks; raises StatisticsError where there are none."""
        return statistics.median(
            after.get(key, 0.0) - before.get(key, 0.0)
            for before, after in zip(self.marks, self.marks[1:], strict=False)
        )

    @contextlib.contextmanager
    def clock(self, total: str) -> Iterator[None]:
        """Add the seconds spent inside to a total."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.totals[total] += time.perf_counter() - began

    @contextlib.contextmanager
    def timing(self, owner: Any, method: str, total: str) -> Iterator[None]:
        """Add the seconds spent in ``owner.method``, which may be a coroutine function, to a total."""
        with _replaced(owner, method, self._timed(getattr(owner, method), total)):
            yield

    @contextlib.contextmanager
    def counting_tokens(self) -> Iterator[None]:
        """Count the tokens that models look up in their tables, with gradients and without: what they read."""
        totals, look_up = self.totals, nn.Embedding.forward

        def counted(table: nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
            totals[TRAINED if torch.is_grad_enabled() else SAMPLED] += ids.numel()
            return look_up(table, ids)

        with _replaced(nn.Embedding, "forward", counted):
            yield

    def _timed(self, function: Callable[..., Any], total: str) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def awaited(*arguments: Any, **keywords: Any) -> Any:
                with self.clock(total):
                    return await function(*arguments, **keywords)

            return awaited

        @functools.wraps(function)
        def called(*arguments: Any, **keywords: Any) -> Any:
            with self.clock(total):
                return function(*arguments, **keywords)

        return called


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _status(key: str) -> float | None:
    """A figure of this process's own status, in bytes; None where the system keeps none."""
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)


def _most_resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
