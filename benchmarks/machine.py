"""The machine a benchmark ran on: what it is, and how fast it multiplies matrices at best."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Measurement, Rival
from loopwise.runtime import versions

SIZES = (512, 1024, 2048)
QUICK_SIZES = (128, 256)
_SECONDS = 1.0
_LEAST_TRIES = 5
_KEY = "gflops_{}"


def describe(threads: int) -> dict[str, Any]:
    """Cores this process may use, threads, versions, and how busy the machine is."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "omp_wait_policy": "PASSIVE",
        "versions": versions(),
        "load_before": list(os.getloadavg()),
    }


def matmul_rival(*, quick: bool) -> Rival:
    """To be run beside the others: the share of the machine they use is a share of this."""
    return Rival("matmul", "benchmarks.machine:matmul", {"sizes": QUICK_SIZES if quick else SIZES})


def matmul(options: Mapping[str, Any]) -> dict[str, float]:
    """fp32 GFLOP/s of square matrix products, for each size the median of about a second of them."""
    torch.set_num_threads(options["threads"])
    return {_KEY.format(size): _gflops(torch.randn(size, size), torch.randn(size, size)) for size in options["sizes"]}


def peak(measurement: Measurement) -> float:
    """The best median of all sizes and runs, in GFLOP/s. A peak is what the machine can do, so the best one counts."""
    return max(
        value for run in measurement.runs for key, value in run.items() if key.startswith(_KEY.format("")) and value
    )


def _gflops(left: torch.Tensor, right: torch.Tensor) -> float:
    product = left @ right  # allocated once, so that only the product is timed
    seconds: list[float] = []
    while len(seconds) < _LEAST_TRIES or sum(seconds) < _SECONDS:
        began = time.perf_counter()
        torch.matmul(left, right, out=product)
        seconds.append(time.perf_counter() - began)
    return float(2 * len(left) ** 3 / statistics.median(seconds) / 1e9)


def _processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
