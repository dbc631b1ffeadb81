"""The last part of a report: what it cost, how it was configured, what to be careful about."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from loopwise.report import numbers
from loopwise.report.samples import text
from loopwise.report.source import Source

_MOST_EVENTS = 20
OWN_MODEL_TYPE = "loopwise_lstm"
"""The model type of models/lstm.py, which cannot be imported without torch."""


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
    """``budget``, ``versions`` and ``events`` are rows of two cells.

    ``own_shape``: transformers knows the model's shape only once loopwise registers it.
    """

    cautions: tuple[str, ...]
    budget: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]
    runs: tuple[RunConfig, ...]
    prompt_state: str | None
    own_shape: bool
    events: tuple[tuple[str, str], ...]


def details(source: Source, cautions: tuple[str, ...]) -> Details:
    """The details of a run, of which a reader should be careful about ``cautions``."""
    events = source.journal.events(source.run_id)[-_MOST_EVENTS:]
    return Details(
        cautions=cautions,
        budget=_budget(source.summary.get("budget", {}), judged=bool(source.parts)),
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
        own_shape=_own_shape(source.out),
        events=tuple((event.level, text(event.message).whole) for event in events),
    )


def _budget(spent: Mapping[str, Any], *, judged: bool) -> tuple[tuple[str, str], ...]:
    def figure(name: str) -> float:
        return numbers.finite(spent.get(name))

    return (
        ("Tokens generated", numbers.amount(figure("tokens_generated"))),
        ("Tokens trained on", numbers.amount(figure("tokens_trained"))),
        *([("Answers judged", numbers.amount(figure("judge_calls")))] if judged else []),
        ("Arithmetic", f"{numbers.amount(figure('flops'))} operations"),
        ("Computing time", numbers.duration(figure("seconds"))),
    )


def _yaml(config: Mapping[str, Any]) -> str:
    return str(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, default_flow_style=None, width=100))


def _prompt_state(out: Path) -> str | None:
    file = out / "model" / "prompt_state.json"
    return text(file.read_text(encoding="utf-8")).whole if file.is_file() else None


def _own_shape(out: Path) -> bool:
    file = out / "model" / "config.json"
    return file.is_file() and str(json.loads(file.read_text(encoding="utf-8")).get("model_type")) == OWN_MODEL_TYPE
