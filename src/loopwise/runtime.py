"""The machine as one passed value, and counter-based random numbers. torch is loaded only when a device is asked for.

No global random state is ever read: every draw is a pure function of a 64-bit key (what is drawn, where) and a
position, so that resume, batch size and world size cannot change it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import platform
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from loopwise.config.blocks import RuntimeConfig
from loopwise.errors import ConfigError
from loopwise.ranks import ALONE, Ranks, current_ranks
from loopwise.threads import calm_threads

if TYPE_CHECKING:
    import torch

BFLOAT16_IS_EMULATED = (
    "this processor has no bfloat16 instructions and emulates them, up to 100 times slower than float32: "
    "use runtime.dtype=float32 here"
)
SHARD_IS_IDLE = "runtime.shard does nothing on one process: start several with torchrun, or leave it out"
T = TypeVar("T")
MOST_THREADS_A_CORE = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Runtime:
    """Device, compute type, threads and place among the ranks. ``seed`` is the run's.

    ``shard``: what is trained lies in shards, where there are several ranks to hold them.
    """

    device: str
    dtype: str
    threads: int
    seed: int
    ranks: Ranks = ALONE
    shard: bool = False

    @property
    def sharded(self) -> bool:
        """Whether what is trained lies in shards."""
        return self.shard and self.ranks.world > 1

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Compute in bfloat16 where the recipe asks for it; master weights stay float32."""
        import torch

        if self.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.split(":")[0], dtype=torch.bfloat16)

    @property
    def warnings(self) -> list[str]:
        """What a person should know about running on this machine."""
        import torch

        slow = self.dtype == "bfloat16" and self.device == "cpu" and not torch.cpu._is_avx512_bf16_supported()
        idle = self.shard and not self.sharded
        return [BFLOAT16_IS_EMULATED] * slow + [SHARD_IS_IDLE] * idle

    @property
    def torch_device(self) -> torch.device:
        import torch

        return torch.device(self.device)


def make_runtime(config: RuntimeConfig, seed: int, threads: int | None = None) -> Runtime:
    """Resolve a runtime config and pin torch's thread count. ``threads`` (a resumed run's own) wins over the config.

    The ranks of one machine share its cores, and have a GPU each.
    """
    calm_threads()
    import torch

    ranks = current_ranks()
    if ranks.world > 1 and config.processes > 1:
        raise ConfigError('key "runtime.processes": several ranks run the controls one after another. Leave it out.')
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f'key "runtime.device": {device} asked for, but torch sees no GPU. Use device: cpu or auto.')
    if device.startswith("cuda") and ranks.world > 1:
        device = _own_gpu(device, ranks)
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, NotImplementedError, AssertionError):
        raise ConfigError(f'key "runtime.device": torch knows no device {device!r}. Use cpu, cuda or auto.') from None
    cores = len(os.sched_getaffinity(0))
    count = threads or config.threads or max(1, cores // ranks.local_world)
    if count > MOST_THREADS_A_CORE * cores:
        raise ConfigError(
            f'key "runtime.threads": {count} threads on {cores} cores would only wait for one another. '
            f"Use {cores} or less; a run is resumed with the number it was started with."
        )
    torch.set_num_threads(count)
    return Runtime(device, config.dtype, count, seed, ranks, config.shard)


def _own_gpu(device: str, ranks: Ranks) -> str:
    import torch

    if device != "cuda":
        raise ConfigError(
            f'key "runtime.device": {device} for {ranks.world} ranks, which take a GPU each. Use device: cuda or auto.'
        )
    if ranks.local_world > torch.cuda.device_count():
        raise ConfigError(
            f"{ranks.local_world} ranks on this machine, and {torch.cuda.device_count()} GPUs. Start as many as it has."
        )
    torch.cuda.set_device(ranks.local_rank)
    return f"cuda:{ranks.local_rank}"


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end from ordinary code, also inside a notebook, whose own event loop is running."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def seed_key(*parts: object) -> int:
    """A 64-bit key of the given parts (text or whole numbers), the same on every machine.

    >>> seed_key("train", 1, "problem-7", 0)
    13832746610856113121
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def uniforms(keys: np.ndarray, position: int) -> np.ndarray:
    """One uniform in [0, 1) per key at a position: uint64 ``[S]`` to float64 ``[S]``.

    SplitMix64 (Steele, Lea and Flood 2014) in counter mode: the state is ``key + (position + 1) * golden``.

    >>> keys = np.array([seed_key("a"), seed_key("b")], dtype=np.uint64)
    >>> bool((uniforms(keys, 5) == uniforms(keys[::-1], 5)[::-1]).all())  # a row's place in its batch does not matter
    True
    """
    with np.errstate(over="ignore"):
        state = keys.astype(np.uint64) + np.uint64(position + 1) * _GOLDEN
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return np.asarray((state >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def versions() -> dict[str, str]:
    """Versions of what a result depends on, for journal and report."""
    names = ("loopwise", "torch", "transformers", "tokenizers", "numpy")
    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
