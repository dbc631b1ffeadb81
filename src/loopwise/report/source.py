"""What the parts of a report are gathered from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from loopwise.report import numbers, wording
from loopwise.report.history import History
from loopwise.report.measures import Measure
from loopwise.runs.journal import Journal

PRETRAIN, JUDGE = "pretrain", "judge"
SPLITS = ("test", "dev")


@dataclass(frozen=True)
class Heading:
    """Which run this is."""

    task: str
    seed: int
    started: str
    wall: str


@dataclass(frozen=True)
class Source:
    """A run's journal, folder and summary. ``parts`` are its rewards by name."""

    journal: Journal
    out: Path
    summary: Mapping[str, Any]
    history: History
    parts: tuple[str, ...]

    @classmethod
    def read(cls, journal: Journal, out: Path, summary: Mapping[str, Any]) -> Source:
        """Read what all parts need. Raises ValueError where the journal has no run of the summary's ``run_id``."""
        run_id = str(summary["run_id"])
        history = History.read(journal, run_id)
        if history is None:
            raise ValueError(f'{out}: the journal has no run "{run_id}". Write the report of a run that it has.')
        return cls(journal, out, summary, history, tuple(journal.reward_parts(run_id)))

    @property
    def heading(self) -> Heading:
        return Heading(
            task=self.task,
            seed=int(self.summary["seed"]),
            started=f"{self.history.run.created:%Y-%m-%d %H:%M} UTC",
            wall=numbers.duration(numbers.finite(self.summary.get("wall_seconds"))),
        )

    @property
    def kind(self) -> str:
        """The command that the run is of: pretrain, tune, improve or judge."""
        return self.history.run.kind

    @property
    def config(self) -> Mapping[str, Any]:
        return self.history.run.config

    @property
    def run_id(self) -> str:
        return self.history.run.run_id

    @property
    def task(self) -> str:
        return str(self.summary["task"])

    @property
    def stages(self) -> Mapping[str, Any]:
        """Figures by stage and split, as in ``summary.json``."""
        stages: Mapping[str, Any] = self.summary["stages"]
        return stages

    @property
    def threshold(self) -> float:
        """The total reward from which a sample passes."""
        return float(self.config.get("update", {}).get("threshold", 1.0))

    @property
    def has_gold(self) -> bool:
        """Whether held-out samples were also judged by the true answers, for the report alone."""
        return bool(self.config.get("report_rewards"))

    @property
    def drawn(self) -> list[int]:
        """The rounds that drew samples."""
        return [row.round for row in self.history.rounds if row.summary.get("samples")]

    @cached_property
    def measure(self) -> Measure:
        """What the held-out figures are."""
        rewards = [reward.get("use") for reward in self.config.get("rewards", ())]
        checked = bool(rewards) and all(name in wording.CHECKERS for name in rewards)
        if self.kind == PRETRAIN:
            return Measure("nats", "", "windows")
        if self.kind == JUDGE:
            likelihood = self.config["gate"]["metric"] == "likelihood"
            noun = wording.JUDGED_NOUNS[self.summary["judge"]["kind"]]
            return Measure("judgement" if likelihood else "share", "right", noun)
        noun, passed = wording.noun(self.task), "right" if checked else "passing"
        if self.config.get("gate", {}).get("metric") == "likelihood":
            return Measure("likelihood", passed, noun)
        return Measure("share" if self.history.is_share else "reward", passed, noun)

    @property
    def ends(self) -> tuple[str, str]:
        """The stages a verdict compares: where the run started, and its result."""
        for result in ("tuned", "pretrained", "trained"):
            if result in self.stages:
                return ("base" if "base" in self.stages else "untrained"), result
        return "base", "improved"

    @property
    def split(self) -> str:
        """The split both of these were measured on: test where there is one, else dev, else none ("")."""
        first, last = (self.stages.get(stage, {}) for stage in self.ends)
        return next((split for split in SPLITS if split in first and split in last), "")
