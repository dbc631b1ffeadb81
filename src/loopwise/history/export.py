"""Runs in the formats of other tools: samples, metrics, the model."""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from loopwise.errors import ConfigError, OutputExistsError, ResumeError, nearest
from loopwise.history.past import open_run
from loopwise.runs.files import replace_file, to_json
from loopwise.runs.journal import Journal
from loopwise.runs.rows import RunRow
from loopwise.stages.improve import RUN_ID as IMPROVE

FORMATS = ("jsonl", "csv", "parquet")
CONTENTS = ("samples", "metrics", "model")
MODEL = "model"

Rows = Iterable[Mapping[str, Any]]


def export_run(out: Path, to: Path, what: str = "samples", format: str | None = None, name: str | None = None) -> str:
    """Write ``what`` of the run ``name`` in ``out`` to the new path ``to``, whole or not at all; say what was written.

    ``format`` is one of FORMATS, by default told by the suffix of ``to``; a model is copied as the folder it is.
    Raises ConfigError, OutputExistsError, ResumeError.
    """
    if what not in CONTENTS:
        raise ConfigError(f'--what "{what}": no such part of a run. {nearest(what, CONTENTS)}')
    if to.exists() or to.is_symlink():
        raise OutputExistsError(f"{to}: exists already and is never overwritten. Choose another --to.")
    if not to.parent.is_dir():
        raise ConfigError(f"{to}: there is no folder {to.parent}. Make it first, or choose another --to.")
    if to.parent.resolve().is_relative_to(out.resolve()):
        raise ConfigError(f"{to}: in the run's own folder, which is the run's alone. Choose another --to.")
    if what == MODEL:
        return _copy_model(out, to, format, name)
    chosen = _format(to, format)
    with closing(open_run(out)) as journal, tempfile.TemporaryDirectory() as folder:
        run = choose_run(journal, out, name).run_id
        columns, rows, count = (_samples if what == "samples" else _metrics)(journal, run, Path(folder))
        replace_file(to, lambda temporary: _WRITERS[chosen](temporary, columns, rows))
    return f"{to}: {count:,} {'samples' if what == 'samples' else 'steps and rounds'} of run {run}."


def choose_run(journal: Journal, out: Path, name: str | None) -> RunRow:
    """The run of a name, or by default the one the folder was made for (of a demo, its loop). Raises ResumeError."""
    runs = {run.run_id: run for run in journal.runs()}
    if not runs:
        raise ResumeError(f"{out}: its run was stopped before it began, so there is nothing to show.")
    if name is None:
        return runs.get(IMPROVE) or next(iter(runs.values()))
    if name not in runs:
        raise ResumeError(f'{out}: there is no run "{name}". {nearest(name, runs)}')
    return runs[name]


def _format(to: Path, format: str | None) -> str:
    chosen = format or to.suffix.removeprefix(".").lower()
    if format is None and chosen not in FORMATS:
        raise ConfigError(f"{to}: its name does not tell the format. Add --format {', '.join(FORMATS)}.")
    if chosen not in FORMATS:
        raise ConfigError(f'--format "{chosen}": not known. {nearest(chosen, FORMATS)}')
    return chosen


def _copy_model(out: Path, to: Path, format: str | None, name: str | None) -> str:
    if format or name:
        flag = "--format" if format else "--run"
        raise ConfigError(f"{flag} says nothing about a model: a folder has one, in Hugging Face format. Leave it out.")
    open_run(out).close()
    if not (out / MODEL).is_dir():
        raise ResumeError(f"{out}: no model yet, the run has not ended. Go on with `loopwise runs resume {out}`.")
    temporary = to.with_name(f".{to.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        shutil.copytree(out / MODEL, temporary)
        temporary.rename(to)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return f"{to}: the model of {out}."


def _samples(journal: Journal, run_id: str, folder: Path) -> tuple[list[str], Rows, int]:
    """Columns and rows of ``journal.export_samples``, read back batch by batch."""
    from pyarrow import parquet

    file = folder / "samples.parquet"
    journal.export_samples(run_id, file)
    table = parquet.ParquetFile(file)

    def rows() -> Iterator[Mapping[str, Any]]:
        for batch in table.iter_batches(1000):
            yield from batch.to_pylist()

    return list(table.schema_arrow.names), rows(), table.metadata.num_rows


def _metrics(journal: Journal, run_id: str, folder: Path) -> tuple[list[str], Rows, int]:
    """Steps and rounds with their nested figures as ``decision.reason`` and the like."""
    file = folder / "metrics.jsonl"
    journal.export_metrics(run_id, file)
    rows = [dict(flat(json.loads(line))) for line in file.read_text(encoding="utf-8").splitlines()]
    # The start of a run has no decision at all: null under a name that nothing else goes by.
    columns = dict.fromkeys(name for row in rows for name, value in row.items() if value is not None)
    return list(columns), [{name: row.get(name) for name in columns if name in row} for row in rows], len(rows)


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings with their dotted names; an empty mapping is left out."""
    for name, entry in value.items():
        if isinstance(entry, Mapping):
            yield from flat(entry, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", entry


def _write_jsonl(path: Path, columns: Sequence[str], rows: Rows) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(to_json(row) + "\n" for row in rows)


def _write_csv(path: Path, columns: Sequence[str], rows: Rows) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _write_parquet(path: Path, columns: Sequence[str], rows: Rows) -> None:
    import pyarrow
    from pyarrow import parquet

    kept = list(rows)
    parquet.write_table(pyarrow.table({name: _column([row.get(name) for row in kept]) for name in columns}), path)


def _column(values: Sequence[Any]) -> Sequence[Any]:
    """The values as they are, or all as text where they are of kinds that no column holds together."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} or len(kinds) == 1:
        return values
    return [value if value is None or isinstance(value, str) else to_json(value) for value in values]


_WRITERS = {"jsonl": _write_jsonl, "csv": _write_csv, "parquet": _write_parquet}
