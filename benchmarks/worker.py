"""The process of one run: ``python -m benchmarks.worker MODULE:FUNCTION RESULT.json``, options as JSON on its input."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path


def main() -> None:
    """Call the function with its options and write the figures it returns."""
    target, result = sys.argv[1:]
    module, _, function = target.partition(":")
    figures = getattr(importlib.import_module(module), function)(json.load(sys.stdin))
    Path(result).write_text(json.dumps(figures, allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    main()
