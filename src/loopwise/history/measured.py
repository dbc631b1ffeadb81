"""What a run measured on held-out problems or text, with what tells whether another run measured the same."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopwise.evaluate.perplexity import UNLIMITED
from loopwise.report.measures import Standing
from loopwise.report.numbers import finite
from loopwise.runs.journal import Journal, Place
from loopwise.runs.rows import EvaluationRow, RunRow
from loopwise.tasks.base import SKILL

BITS = "bits a byte"
CANDIDATE = "candidate"
PRETRAIN = "pretrain"
IMPROVE = "improve"
_MODEL, _CHECKPOINTS, _SUMMARY = "model", "checkpoints", "summary.json"
_FROM_PYTHON = ("update, generator and rewards", "from Python")
_MOST_NATS = 700.0
_WHOLE = (".txt", ".md")
"""Files that are one document, unless they are cut: which part of it is held out, no seed decides."""


@dataclass(frozen=True)
class Measured:
    """A stage's figure on a split.

    Scores of two runs pair where ``problems`` (what was held out, by its content) and ``way`` (what scored it) are
    equal. Of plain text the figure is in bits a byte; ``perplexity`` is of the tokens of ``way``.
    """

    measure: str
    standing: Standing
    problems: Any
    way: Any
    perplexity: Standing | None = None


def measured_stages(journal: Journal, out: Path, run: RunRow) -> Iterator[tuple[tuple[str, str], Measured]]:
    """What a run measured by stage and split, the candidates of its rounds left out."""
    rows = journal.evaluations(run.run_id)
    # A model made here was not trained at all when its run began.
    created = run.kind != IMPROVE and bool(run.config.get("model", {}).get("create"))
    problems = {split: _problems(journal, run, split, rows) for split in {row.evaluation.split for row in rows}}
    way = _way(out, run)
    sizes = _Sizes(journal, out, run)
    for row in rows:
        if row.stage == CANDIDATE:
            continue
        key = "untrained" if created and row.stage == "base" else row.stage, row.evaluation.split
        asked = problems[row.evaluation.split]
        if run.kind == PRETRAIN:
            if figures := sizes.of(*key):
                yield key, _of_text(row, figures, asked, way)
            continue
        found = row.evaluation
        standing = Standing(found.mean, *row.interval, int(found.judged.size), found.scores)
        yield key, Measured(str(run.config["gate"]["metric"]), standing, asked, way)


def _of_text(row: EvaluationRow, figures: Mapping[str, Any], problems: Any, way: Any) -> Measured:
    """Scores ``[W]`` (mean log-probability a token of each window) as bits a byte and as perplexity."""
    found, (low, high) = row.evaluation, row.interval
    bits = figures["tokens"] / figures["bytes"] / math.log(2)
    # The mean over windows weighs a short last one fully, the exact figure does not: the interval is put about that.
    nats = finite(figures.get("nats_per_token", -found.mean))
    ends = nats - (high - found.mean), nats + (found.mean - low)
    count = int(found.judged.size)
    standing = Standing(bits * nats, bits * ends[0], bits * ends[1], count, -bits * found.scores)
    perplexity = Standing(_perplexity(nats), _perplexity(ends[0]), _perplexity(ends[1]), count)
    return Measured(BITS, standing, problems, way, perplexity)


def _perplexity(nats: float) -> float:
    return math.exp(min(nats, _MOST_NATS))


class _Sizes:
    """How long the held-out text of a pretraining run is: its summary knows, or its rounds do before it has ended."""

    def __init__(self, journal: Journal, out: Path, run: RunRow) -> None:
        self._stages: Mapping[str, Any] = {}
        self._dev: Mapping[str, Any] = {}
        if run.kind != PRETRAIN:
            return
        if (out / _SUMMARY).is_file():
            self._stages = json.loads((out / _SUMMARY).read_text(encoding="utf-8"))["stages"]
        for row in journal.rounds(run.run_id):
            if "dev/bytes" in row.summary:
                self._dev = {name: row.summary[f"dev/{name}"] for name in ("tokens", "bytes")}

    def of(self, stage: str, split: str) -> Mapping[str, Any] | None:
        """``tokens`` and ``bytes`` at least; None where nobody wrote them down."""
        known: Mapping[str, Any] | None = self._stages.get(stage, {}).get(split)
        return known or (self._dev if split == "dev" and self._dev else None)


def _way(out: Path, run: RunRow) -> Any:
    """What scores are made by: the rewards with their options, or the tokens whose probabilities they are."""
    if run.config.get("gate", {}).get("metric") == "reward":
        # Functions handed over in Python left nothing to know them by: another run's are never taken for the same.
        name, python = _FROM_PYTHON
        unknown = run.created.isoformat() if run.fingerprint.get(name) == python else None
        return [unknown, sorted(json.dumps(_reward(run, reward)) for reward in run.config["rewards"])]
    folders = [out / _MODEL, *sorted((out / _CHECKPOINTS).glob("*/*/policies/*"))]
    folder = next((path for path in folders if (path / "tokenizer.json").is_file()), None)
    tokens = _tokenizer(folder) if folder else run.fingerprint.get("model")
    update = run.config["update"]
    if run.kind == PRETRAIN:
        created = bool(run.config["model"].get("create"))
        context = _context(folder) or UNLIMITED
        return [tokens, update.get("window") or (context if created else min(context, UNLIMITED))]
    # Rows over the context are left out of what is compared where the recipe says so.
    fitting = None if update.get("too_long", "error") == "error" else _context(folder)
    return [tokens, update.get("end_of_text", True), fitting]


def _reward(run: RunRow, reward: Mapping[str, Any]) -> Any:
    file, colon, function = reward["use"].rpartition(":")
    use = [run.fingerprint.get(f"reward file {file}", file), function] if colon else reward["use"]
    return [use, *(reward.get(name) for name in ("weight", "uses_reference", "options"))]


def _tokenizer(folder: Path) -> str:
    """A hash of what a tokenizer does. Padding and truncation are switches that the last call left behind."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    parts = [content | {"padding": None, "truncation": None}]
    template = folder / "chat_template.jinja"
    parts.append(template.read_text(encoding="utf-8") if template.is_file() else None)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _context(folder: Path | None) -> int | None:
    """The most tokens that a model was made for, where it says so."""
    if folder is None:
        return None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = ("max_position_embeddings", "n_positions", "context")
    return next((config[name] for name in names if isinstance(config.get(name), int)), None)


def _problems(journal: Journal, run: RunRow, split: str, rows: list[EvaluationRow]) -> Any:
    """What two runs share only where a split's scores are of the same problems in the same order.

    The problems themselves; or, where nothing was sampled because likelihood was measured, all they are made from.
    """
    if run.kind == PRETRAIN:
        return _text(run, split)
    for number in sorted({row.round for row in rows if row.evaluation.split == split}):
        samples = journal.samples_at(Place(run.run_id, number, 0, split))
        if samples:
            ids = [sample.problem_id for sample in samples.values()]
            known = journal.problems(run.run_id, ids)
            return [[known[name].prompt, json.dumps(known[name].columns, sort_keys=True)] for name in ids]
    return _rows(run, split)


def _rows(run: RunRow, split: str) -> Any:
    """What a held-out split is read or generated from: contents of files, never their names."""
    data, known = run.config["data"], run.fingerprint
    reading = [data.get(name) for name in ("format", "prompt_column", "completion_column")]
    if isinstance(data.get(split), str):
        return [known.get(split), reading]
    if split.startswith(SKILL):
        return [[known.get(path) for path in data["skills"] if f"{SKILL}{Path(path).name}" == split], reading]
    train = data.get("train") or []
    sources = [{"path": train}] if isinstance(train, str) else train
    files = [_file(known, source["path"], alone=len(sources) == 1) for source in sources]
    own = [[source.get(name) for name in ("format", "prompt_column", "completion_column")] for source in sources]
    sizes = [None if isinstance(data.get(name), str) else data.get(name) for name in ("dev", "test")]
    return [run.config.get("seed"), data.get("task"), data.get("task_options"), sizes, reading, files, own]


def _file(known: Mapping[str, Any], path: str, *, alone: bool) -> Any:
    """The fingerprint of a train file, which goes by the file's name where there are several."""
    return known.get("train") if alone else known.get(f"train {Path(path).name}", known.get(f"train {path}"))


def _text(run: RunRow, split: str) -> Any:
    """What a held-out text is read or cut from: contents of files, never their places."""
    data, known = run.config["data"], run.fingerprint
    train = data["train"]
    if isinstance(data.get(split), str):
        return [_files(known, data[split]), train[0].get("text_column"), train[0].get("split_on")]
    whole = all(source["path"].endswith(_WHOLE) and not source.get("split_on") for source in train)
    shares = [None if isinstance(data.get(name), str) else data.get(name) for name in ("dev", "test")]
    sources = [[_files(known, source["path"]), source.get("text_column"), source.get("split_on")] for source in train]
    return [None if whole else run.config.get("seed"), data.get("deduplicate") == "none", shares, sources]


def _files(known: Mapping[str, Any], path: str) -> list[list[Any]]:
    """The fingerprints of a file, or of a folder with its files by their places in it."""
    inside = {name: value for name, value in known.items() if name == path or name.startswith(f"{path}/")}
    return sorted([name.removeprefix(path), value] for name, value in inside.items())
