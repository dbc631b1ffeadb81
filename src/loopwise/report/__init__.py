"""The report of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_report(out: Path, summary: Mapping[str, Any]) -> Path:
    """To be written."""
    return out / "report.html"
