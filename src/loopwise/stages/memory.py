"""How much memory a piece of work takes at its peak: measured, not worked out."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

from loopwise.runtime import Runtime

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


class PeakMemory:
    """The peak since it was made, in bytes: of this process, or of torch's memory on a GPU.

    ``before`` is what was in use then. ``exact`` is false where the system cannot forget an earlier peak of the
    process; what is read is then at least that one.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._device = runtime.torch_device
        self.exact = True
        if self._device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(self._device)
            self.before = torch.cuda.memory_allocated(self._device)
            return
        try:
            _CLEAR.write_text(_RESET_PEAK)
        except OSError:
            self.exact = False
        self.before = _status("VmRSS") or _lifetime_peak()

    def read(self) -> int:
        """The peak up to now."""
        if self._device.type == "cuda":
            import torch

            return torch.cuda.max_memory_allocated(self._device)
        return (_status("VmHWM") if self.exact else None) or _lifetime_peak()


def _status(name: str) -> int | None:
    """A line of the kernel's account of this process, in bytes; None where there is none."""
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


def _lifetime_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
