"""Rows kept as Arrow tables: Parquet files, folders that ``datasets`` saved, and datasets on the Hugging Face hub.

Saved folders are read with pyarrow alone: they are Arrow streams beside a ``state.json`` that names them, and loading
``datasets`` for them would take a second.
"""

from __future__ import annotations

import contextlib
import datetime
import decimal
import json
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loopwise.data.row import Row, refuse_twins
from loopwise.errors import ProblemFileError, nearest

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(/[\w.-]+){0,2}")
_PROBE_SECONDS = 5.0
_WRITTEN_AS_TEXT = (datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, uuid.UUID)


def read_parquet(path: Path) -> Iterator[Row]:
    """The rows of a Parquet file. Raises ProblemFileError where its pages are damaged."""
    import pyarrow
    from pyarrow import parquet

    content = pyarrow.BufferReader(path.read_bytes())
    try:
        with parquet.ParquetFile(content, page_checksum_verification=True) as file:
            refuse_twins(str(path), file.schema_arrow.names)
            records = file.read().to_pylist()
    # Past this point an OSError is Arrow's word for damaged pages, a ValueError for values Python has no type for.
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, ProblemFileError):
            raise
        raise ProblemFileError(f"{path}: not a readable Parquet file ({_reason(error)}). Write it again.") from None
    return _rows(str(path), records)


def is_dataset_folder(path: Path) -> bool:
    """Whether the folder was written by ``save_to_disk`` of a dataset, or of a dictionary of them."""
    return os.path.isfile(path / "state.json") or os.path.isfile(path / "dataset_dict.json")


def read_dataset_folder(folder: Path) -> Iterator[Row]:
    """The rows of a dataset that ``save_to_disk`` wrote. Raises ProblemFileError, also on a folder of splits."""
    import pyarrow

    records: list[dict[str, Any]] = []
    for path in dataset_files(folder):
        content = pyarrow.BufferReader(path.read_bytes())
        try:
            with pyarrow.ipc.open_stream(content) as stream:
                refuse_twins(str(path), stream.schema.names)
                table = stream.read_all()
            # Arrow trusts its own streams: without this a damaged one is read past its end.
            table.validate(full=True)
            records.extend(table.to_pylist())
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            if isinstance(error, ProblemFileError):
                raise
            raise ProblemFileError(f"{path}: not a readable Arrow file ({_reason(error)}). Save it again.") from None
    return _rows(str(folder), records)


def dataset_files(folder: Path) -> list[Path]:
    """The Arrow files of a saved dataset, in order. Raises ProblemFileError where ``state.json`` names none."""
    state = folder / "state.json"
    if not state.is_file():
        splits = sorted(entry.name for entry in folder.iterdir() if is_dataset_folder(entry))
        named = f"{folder / splits[0]}" if splits else "the folder of one"
        raise ProblemFileError(
            f"{folder}: holds the splits {', '.join(splits) or '(none)'} of a dataset. Name one, as in {named}."
        )
    try:
        names = [entry["filename"] for entry in json.loads(state.read_text(encoding="utf-8"))["_data_files"]]
        files = [folder / name for name in names]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ProblemFileError(f"{state}: does not name the dataset's files. Save the dataset again.") from None
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise ProblemFileError(f"{folder}: has no file {absent[0]}, which state.json names. Save the dataset again.")
    return files


def is_hub_name(path: str | Path) -> bool:
    """Whether the name may be a dataset's on the hub: ``owner/name``, then ``/config`` or ``/split`` or both.

    A name with an extension is a file's.
    """
    name = str(path)
    return bool(_HUB_NAME.fullmatch(name)) and not name.startswith(".") and not Path(name).suffix


def read_hub(name: str) -> Iterator[Row]:
    """The rows of a dataset on the hub (its split ``train`` where none is named).

    Raises ProblemFileError within seconds where the hub cannot be reached.
    """
    owner, dataset, *rest = name.split("/")
    hub_name = f"{owner}/{dataset}"
    place = f"{name}: no such file or folder here, so taken for a dataset on the hub; "
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        # Loading first would try for half a minute. Offline mode goes on: the dataset may have been downloaded before.
        with contextlib.suppress(OfflineModeIsEnabled):
            HfApi().dataset_info(hub_name, timeout=_PROBE_SECONDS)
        configs = datasets.get_dataset_config_names(hub_name)
        config = rest.pop(0) if rest and rest[0] in configs else None
        if config is None and len(configs) > 1 and "default" not in configs:
            raise ProblemFileError(f"{place}it has the parts {', '.join(configs)}. Name one: {hub_name}/{configs[0]}.")
        splits = datasets.get_dataset_split_names(hub_name, config)
        split = rest.pop(0) if rest else "train"
        if rest or split not in splits:
            raise ProblemFileError(f'{place}it has no split "{"/".join([split, *rest])}". {nearest(split, splits)}')
        table = datasets.load_dataset(hub_name, config, split=split).with_format("arrow")[:]
        records = table.to_pylist()
    except ProblemFileError:
        raise
    except Exception as error:  # datasets and the hub's client raise dozens of kinds, all of them about this name
        raise ProblemFileError(
            f"{place}not loadable ({_reason(error)}). Check the path or the name; HF_HUB_OFFLINE=1 reads a copy "
            "that was downloaded before."
        ) from None
    return _rows(name, records)


def _rows(place: str, records: list[dict[str, Any]]) -> Iterator[Row]:
    for number, columns in enumerate(records, start=1):
        where = f"{place} row {number}"
        yield Row(where, number, {name: _plain(value, where, name) for name, value in columns.items()})


def _plain(value: Any, place: str, column: str) -> Any:
    """The value as JSON can hold it, so that it reaches rewards and journal unchanged."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, dict):
        return {str(name): _plain(part, place, column) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part, place, column) for part in value]
    if isinstance(value, _WRITTEN_AS_TEXT):
        return str(value)
    raise ProblemFileError(
        f'{place}, column "{column}": holds {type(value).__name__}, which is no text. '
        "Remove the column, or write it as text."
    )


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
