"""The last part of a report: what it cost, how it was configured, what to be careful about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from loopwise.report import numbers, wording
from loopwise.report.samples import text
from loopwise.report.source import Source

_MOST_EVENTS = 20


@dataclass(frozen=True)
class RunConfig:
    """A run of the journal, its configuration as YAML."""

    run_id: str
    kind: str
    status: str
    started: str
    threads: int
    yaml: str


@dataclass(frozen=True)
class Details:
    """``budget``, ``versions`` and ``events`` are rows of two cells."""

    cautions: tuple[str, ...]
    budget: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]
    runs: tuple[RunConfig, ...]
    prompt_state: str | None
    events: tuple[tuple[str, str], ...]


def details(source: Source, held_out: int) -> Details:
    """``held_out`` problems are what the verdict rests on."""
    events = source.journal.events(source.run_id)[-_MOST_EVENTS:]
    return Details(
        cautions=wording.cautions(source.config, list(source.stages), source.split, held_out, source.parts),
        budget=_budget(source.summary.get("budget", {})),
        versions=tuple((str(name), str(version)) for name, version in source.history.run.versions.items()),
        runs=tuple(
            RunConfig(
                run_id=run.run_id,
                kind=run.kind,
                status=run.status,
                started=f"{run.created:%H:%M:%S}",
                threads=run.threads,
                yaml=_yaml(run.config),
            )
            for run in source.journal.runs()
        ),
        prompt_state=_prompt_state(source.out),
        events=tuple((event.level, text(event.message).whole) for event in events),
    )


def _budget(spent: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    def figure(name: str) -> float:
        return numbers.finite(spent.get(name))

    return (
        ("Tokens generated", numbers.amount(figure("tokens_generated"))),
        ("Tokens trained on", numbers.amount(figure("tokens_trained"))),
        ("Answers judged", numbers.amount(figure("judge_calls"))),
        ("Arithmetic", f"{numbers.amount(figure('flops'))} operations"),
        ("Computing time", numbers.duration(figure("seconds"))),
    )


def _yaml(config: Mapping[str, Any]) -> str:
    return str(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, default_flow_style=None, width=100))


def _prompt_state(out: Path) -> str | None:
    file = out / "model" / "prompt_state.json"
    return text(file.read_text(encoding="utf-8")).whole if file.is_file() else None
