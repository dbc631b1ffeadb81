"""The machine a benchmark ran on: what it is, how fast it multiplies matrices and reads memory at best."""

from __future__ import annotations

import functools
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Measurement, Rival, Settings
from loopwise.runtime import versions

SIZES = (512, 1024, 2048)
QUICK_SIZES = (128, 256)
_SECONDS = 1.0
_LEAST_TRIES = 5
_KEY = "gflops_{}"
_BANDWIDTH = "gigabytes_per_second"


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


def dtypes(settings: Settings) -> tuple[str, ...]:
    """What both sides compute in: float32, and bfloat16 where that is quick here or asked for."""
    quick = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()
    return ("float32", "bfloat16") if quick or settings.bf16 else ("float32",)


def matmul_rival(*, quick: bool, dtype: str = "float32") -> Rival:
    """To be run beside the others: the share of the machine they use is a share of this."""
    sizes, megabytes = (QUICK_SIZES, 16) if quick else (SIZES, 512)
    return Rival("matmul", "benchmarks.machine:matmul", {"sizes": sizes, "dtype": dtype, "megabytes": megabytes})


def matmul(options: Mapping[str, Any]) -> dict[str, float]:
    """GFLOP/s of square matrix products in ``dtype``, for each of the ``sizes``, and GB/s of reading ``megabytes``.

    Each is the median of about a second of it, on the GPU where there is one.
    """
    torch.set_num_threads(options["threads"])
    device, dtype = _device(), getattr(torch, options["dtype"])
    figures: dict[str, float] = {}
    for size in options["sizes"]:
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        product = left @ right  # allocated once, so that only the product is timed
        seconds = _median_seconds(functools.partial(torch.matmul, left, right, out=product))
        figures[_KEY.format(size)] = 2 * size**3 / seconds / 1e9
    memory = torch.ones(options["megabytes"] * 250_000, device=device)
    return {**figures, _BANDWIDTH: 4 * memory.numel() / _median_seconds(memory.sum) / 1e9}


def peak(measurement: Measurement) -> float:
    """The best median of all sizes and runs, in GFLOP/s. A peak is what the machine can do, so the best one counts."""
    return max(
        value for run in measurement.runs for key, value in run.items() if key.startswith(_KEY.format("")) and value
    )


def bandwidth(measurement: Measurement) -> float:
    """The best median of all runs, in GB/s."""
    return max(run[_BANDWIDTH] or 0.0 for run in measurement.runs)


def _median_seconds(work: Callable[[], Any]) -> float:
    seconds: list[float] = []
    while len(seconds) < _LEAST_TRIES or sum(seconds) < _SECONDS:
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
