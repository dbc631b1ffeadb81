"""What benchmarks read off a process: steps, seconds in methods, tokens read, peak memory."""

from __future__ import annotations

import asyncio
import mmap
import time

import pytest
import torch
from benchmarks.gauges import SAMPLED, STEP, TRAINED, MemoryGauge, StepMeter
from torch import nn


def test_a_step_is_what_lies_between_marks() -> None:
    meter = StepMeter()
    for total in (100.0, 103.0, 104.0, 109.0):  # what came before the first mark warmed up
        meter.totals["work"] = total
        meter.mark()
    assert meter.median("work") == 3.0
    assert meter.median("never there") == 0.0
    assert meter.median(STEP) > 0


def test_seconds_in_a_method_are_counted_while_asked_for_whether_it_is_awaited_or_not() -> None:
    class Worker:
        def work(self) -> str:
            time.sleep(0.01)
            return "done"

        async def wait(self) -> str:
            await asyncio.sleep(0.01)
            return "waited"

    meter, before = StepMeter(), Worker.work
    with meter.timing(Worker, "work", "working"), meter.timing(Worker, "wait", "waiting"):
        assert Worker().work() == "done"
        assert asyncio.run(Worker().wait()) == "waited"
    assert Worker.work is before
    Worker().work()
    assert 0.01 <= meter.totals["working"] < 0.02 + 0.5
    assert meter.totals["waiting"] >= 0.01


def test_seconds_count_for_a_call_that_fails() -> None:
    class Worker:
        def fail(self) -> None:
            raise ValueError

    meter = StepMeter()
    with pytest.raises(ValueError), meter.timing(Worker, "fail", "failing"):
        Worker().fail()
    assert meter.totals["failing"] > 0


def test_tokens_are_counted_with_and_without_gradients() -> None:
    meter, table = StepMeter(), nn.Embedding(5, 2)
    with meter.counting_tokens():
        table(torch.zeros(2, 3, dtype=torch.long))
        with torch.inference_mode():
            table(torch.zeros(4, dtype=torch.long))
    table(torch.zeros(7, dtype=torch.long))
    assert (meter.totals[TRAINED], meter.totals[SAMPLED]) == (6, 4)


def hold(mebibytes: int) -> None:
    """Write to fresh pages and give them back: a tensor may get pages that an earlier test has left resident."""
    with mmap.mmap(-1, mebibytes * 2**20) as pages:
        for page in range(0, len(pages), mmap.PAGESIZE):
            pages[page] = 1


def test_the_peak_counts_from_the_gauge_on_where_the_system_can_tell() -> None:
    hold(120)
    gauge = MemoryGauge()
    hold(40)
    figures = gauge.figures()
    assert figures["growth_mib"] is not None
    assert 35 < figures["growth_mib"] < 100
    assert (figures["peak_mib"] or 0) > figures["growth_mib"]
