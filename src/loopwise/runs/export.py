"""The journal in the formats other tools read: ``metrics.jsonl`` and Parquet."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loopwise.runs.files import replace_file, to_json
from loopwise.runs.reading import JournalReader
from loopwise.runs.rows import SampleRow
from loopwise.types import Prompt

_BATCH = 1000
_BEFORE_PARTS = {
    "run_id": "string",
    "round": "int32",
    "step": "int32",
    "phase": "string",
    "problem_id": "string",
    "index": "int32",
    "prompt": "string",
    "completion": "string",
}
_AFTER_PARTS = {"reward": "float64", "kept": "bool", "finish_reason": "string", "policy_id": "string"}


def export_metrics(journal: JournalReader, run_id: str, path: Path) -> None:
    """Write one line per optimizer step and per round, a round's line after its steps; the file is put in place whole.

    Lines are strict JSON with ``kind`` (step or round), ``round`` and, for steps, ``step``; a round's line has its
    summary, its ``decision`` (or null) and the ``budget`` spent by its end. NaN and infinity become null.
    """
    lines = "".join(to_json(line) + "\n" for line in _lines(journal, run_id))
    replace_file(path, lambda temporary: _write_text(temporary, lines))


def export_samples(journal: JournalReader, run_id: str, path: Path) -> None:
    """Write all samples as Parquet, one row each; the file is put in place whole.

    Columns: run_id, round, step, phase, problem_id, index, prompt (chat prompts as JSON), completion, one column per
    reward part (``rewards/NAME`` where a part is called like another column), reward (the weighted total), kept,
    finish_reason, policy_id. Rewards that could not be judged are null. Halves of surrogate pairs, which Parquet
    cannot hold, are written as escapes.
    """
    import pyarrow
    import pyarrow.parquet

    columns = _part_columns(journal.reward_parts(run_id))
    schema = _parquet_schema(columns.values())

    def write(temporary: Path) -> None:
        with pyarrow.parquet.ParquetWriter(temporary, schema) as writer:
            rows = journal.all_samples(run_id)
            while batch := list(itertools.islice(rows, _BATCH)):
                lines = [_parquet_row(row, columns) for row in batch]
                writer.write_table(pyarrow.Table.from_pylist(lines, schema=schema))

    replace_file(path, write)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _lines(journal: JournalReader, run_id: str) -> Iterator[Mapping[str, Any]]:
    decisions = {row.round: asdict(row.decision) for row in journal.decisions(run_id)}
    entries: list[tuple[int, float, Mapping[str, Any]]] = [
        (row.round, row.step, {"kind": "step", "round": row.round, "step": row.step, **row.metrics})
        for row in journal.steps(run_id)
    ]
    for row in journal.rounds(run_id):
        ends = {"decision": decisions.get(row.round), "budget": asdict(row.budget)}
        entries.append((row.round, math.inf, {"kind": "round", "round": row.round, **row.summary, **ends}))
    for _, _, line in sorted(entries, key=lambda entry: entry[:2]):
        yield line


def _part_columns(parts: Sequence[str]) -> dict[str, str]:
    """The Parquet column of each reward part."""
    taken = _BEFORE_PARTS.keys() | _AFTER_PARTS.keys()
    return {part: f"rewards/{part}" if part in taken else part for part in parts}


def _parquet_schema(part_columns: Iterable[str]) -> Any:
    import pyarrow

    types = _BEFORE_PARTS | dict.fromkeys(part_columns, "float64") | _AFTER_PARTS
    return pyarrow.schema([(name, pyarrow.type_for_alias(alias)) for name, alias in types.items()])


def _parquet_row(row: SampleRow, columns: Mapping[str, str]) -> dict[str, Any]:
    sample = row.sample
    return {
        **row.place._asdict(),
        "problem_id": sample.problem_id,
        "index": sample.index,
        "prompt": _encodable(_prompt_text(row.prompt)),
        "completion": _encodable(sample.text),
        **{column: row.parts.get(part) for part, column in columns.items()},
        "reward": row.total,
        "kept": row.kept,
        "finish_reason": sample.finish_reason,
        "policy_id": sample.policy_id,
    }


def _prompt_text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(list(prompt), ensure_ascii=False)


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
