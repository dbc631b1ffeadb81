"""Real rows through every loader: the same problems from each kind of file."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from tests.encoded import labelled_from_rows

from loopwise.config.blocks import DataConfig
from loopwise.tasks.streams import open_streams

REAL_ROWS = Path(__file__).resolve().parents[3] / "shared" / "data"
BANKING = REAL_ROWS / "banking77_train.csv"
GSM8K = REAL_ROWS / "gsm8k_train.jsonl"
BANKING_COLUMNS = {"prompt_column": "text", "completion_column": "category"}
pytestmark = pytest.mark.skipif(not REAL_ROWS.is_dir(), reason="the folder shared/data beside the repository is absent")
Rows = list[dict[str, Any]]


def as_jsonl(path: Path, rows: Rows) -> None:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")


def as_json(path: Path, rows: Rows) -> None:
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=2), encoding="utf-8")


def as_csv(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def as_parquet(path: Path, rows: Rows) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def as_compressed(path: Path, rows: Rows) -> None:
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode(), 1))


def as_dataset(path: Path, rows: Rows) -> None:
    pytest.importorskip("datasets").Dataset.from_list(rows).save_to_disk(path)


LOADERS: dict[str, Callable[[Path, Rows], None]] = {
    "rows.jsonl": as_jsonl,
    "rows.json": as_json,
    "rows.csv": as_csv,
    "rows.parquet": as_parquet,
    "rows.jsonl.gz": as_compressed,
    "rows": as_dataset,
}


def rows_of(path: Path) -> Rows:
    """The file's rows, read by the standard library."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file)) if path.suffix == ".csv" else [json.loads(line) for line in file]


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize(("source", "columns"), [(BANKING, BANKING_COLUMNS), (GSM8K, {})], ids=["banking77", "gsm8k"])
def test_every_loader_gives_the_same_problems(name: str, source: Path, columns: dict[str, str], tmp_path: Path) -> None:
    rows = rows_of(source)
    prompt, completion = columns.values() or ("question", "answer")
    LOADERS[name](tmp_path / name, rows)
    found = labelled_from_rows(tmp_path / name, **columns)
    assert [(one.problem.prompt, one.completion) for one in found] == [(row[prompt], row[completion]) for row in rows]
    assert [one.problem for one in found] == [one.problem for one in labelled_from_rows(source, **columns)]


def test_a_mixture_of_both() -> None:
    sources = [{"path": str(BANKING), **BANKING_COLUMNS}, {"path": str(GSM8K), "weight": 2}]
    streams = open_streams(DataConfig(train=sources, dev=500, test=500), 0, supervised=True)
    assert [(source.name, source.weight) for source in streams.sources] == [(BANKING.name, 1.0), (GSM8K.name, 2.0)]
    assert sum(source.count for source in streams.sources) + 1000 == 10_003 + 7473
    dev = [streams.completion(problem) for problem in streams.held_out["dev"]]
    assert sum("####" in answer for answer in dev) == pytest.approx(500 * 7473 / 17_476, abs=1)
