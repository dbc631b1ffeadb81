"""``python -m benchmarks``: run them, print their tables, write one JSON file."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Benchmark, BenchmarkError, Settings
from loopwise.threads import CALM

NAMES = ("pretrain", "perplexity", "grpo", "sampling", "sft", "dpo", "target", "methods", "judges", "sandbox")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen benchmarks; the exit status is 1 where one could not run, 0 otherwise."""
    chosen = _parser().parse_args(arguments)
    settings = Settings(
        data=chosen.data.resolve(),
        repeats=chosen.repeats or (1 if chosen.quick else 3),
        threads=chosen.threads,
        quick=chosen.quick,
        bf16=chosen.bf16,
    )
    from benchmarks.machine import describe

    machine = describe(settings.threads)
    found: dict[str, Any] = {}
    for name in chosen.only or NAMES:
        found[name] = _run(name, settings)
        # After each one: what was measured is safe, whatever the next one does.
        machine["load_after"] = list(os.getloadavg())
        _write(
            chosen.json,
            {"machine": machine, "repeats": settings.repeats, "quick": settings.quick, "benchmarks": found},
        )
    print(_signature(machine, settings))
    print(f"Written to {chosen.json}.", file=sys.stderr)
    return int(any("failed" in content for content in found.values()))


def _run(name: str, settings: Settings) -> dict[str, Any]:
    """One benchmark's content; ``{"skipped": reason}`` or ``{"failed": reason}`` where it has none."""
    benchmark: Benchmark = importlib.import_module(f"benchmarks.{name}").BENCHMARK
    missing = [file for file in benchmark.files if not (settings.data / file).is_file()]
    if missing:
        reason = f"{settings.data} has no {' and no '.join(missing)}. Name the folder of texts with --data."
        print(f"{name}: skipped: {reason}\n")
        return {"skipped": reason}
    try:
        section = benchmark.run(settings)
    except BenchmarkError as error:
        print(f"{name}: failed: {error}\n", file=sys.stderr)
        return {"failed": str(error)}
    print(f"\n{section.markdown}\n")
    return dict(section.content)


def _signature(machine: dict[str, Any], settings: Settings) -> str:
    """The machine and the settings, to stand below every table."""
    before, after = (machine[when][0] for when in ("load_before", "load_after"))
    calm = ", ".join(f"{name}={value}" for name, value in CALM.items())
    sizes = "tiny sizes that only try it out, " if settings.quick else ""
    return (
        f"{sizes}repeats {settings.repeats}, rivals alternated, median (lowest-highest); {machine['processor']}, "
        f"cores: {machine['cores']}, threads: {machine['threads']}, idle ones soon asleep ({calm}), "
        f"torch {machine['versions']['torch']}, transformers {machine['versions']['transformers']}; "
        f"load average {before:.1f} before, {after:.1f} after"
    )


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="loopwise beside its rivals, in one run")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", help=f"of: {', '.join(NAMES)}")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), help="file to write (%(default)s)")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of texts (%(default)s)")
    parser.add_argument("--repeats", type=_at_least_one, help="runs of each rival (3; 1 with --quick)")
    parser.add_argument("--threads", type=_at_least_one, default=len(os.sched_getaffinity(0)), help="(%(default)s)")
    parser.add_argument("--bf16", action="store_true", help="in bfloat16 too, where the processor emulates it as well")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    return parser


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
