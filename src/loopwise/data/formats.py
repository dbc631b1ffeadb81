"""Files, folders and datasets of rows, each read into rows that know where they stood."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from loopwise.data.arrow import (
    dataset_files,
    is_dataset_folder,
    is_hub_name,
    read_dataset_folder,
    read_hub,
    read_parquet,
)
from loopwise.data.row import Row, describe, refuse_twins, unreadable
from loopwise.errors import ProblemFileError, nearest

__all__ = ["Row", "describe", "fingerprint", "read_rows", "read_text"]

_BETWEEN_OBJECTS = re.compile(r"[\s,]*")
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_rows(path: str | Path) -> list[Row]:
    """Read every row of a JSONL, JSON (a list of objects), CSV (with a header) or Parquet file, told by its extension;
    of a dataset's folder (``save_to_disk``); or of a dataset on the hub (``owner/name``, where no such file is).

    Text is UTF-8, with or without a byte-order mark, and may be compressed (``.jsonl.gz``). Blank lines are skipped.
    CSV values are all text.
    Raises ProblemFileError naming file, line, column and mend; a file without rows is an error too.
    """
    try:
        rows = list(_reader(Path(path))())
    except OSError as error:
        raise unreadable(path, error) from None
    if not rows:
        raise ProblemFileError(f"{path}: no rows in it. Write at least one, or name another file.")
    return rows


def fingerprint(path: str | Path) -> str:
    """SHA-256 in hex of a file's bytes, of a dataset's files, or of the rows of a dataset on the hub.

    Raises ProblemFileError where it cannot be read.
    """
    path = Path(path)
    try:
        if is_dataset_folder(path):
            parts = [f"{file.name} {_digest(file)}\n" for file in dataset_files(path)]
            return hashlib.sha256("".join(parts).encode()).hexdigest()
        if not os.path.exists(path) and is_hub_name(path):
            rows = [row.columns for row in read_rows(path)]
            return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
        _require_file(path)
        return _digest(path)
    except OSError as error:
        raise unreadable(path, error) from None


def read_text(path: Path) -> str:
    """A file's text: UTF-8 without its byte-order mark, unpacked where it is ``.gz``.

    Raises ProblemFileError naming file, line, byte and mend.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ProblemFileError(f"{path}: no such file. Check the path.") from None
    except OSError as error:
        raise unreadable(path, error) from None
    if path.suffix.lower() == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            reason = str(error).rstrip(".")
            raise ProblemFileError(f"{path}: not a readable gzip file ({reason}). Compress it again.") from None
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = error.start - content.rfind(b"\n", 0, error.start)
        raise ProblemFileError(
            f"{path} line {line}, byte {byte}: not UTF-8 (found 0x{content[error.start]:02x}). Save the file as UTF-8."
        ) from None


def _reader(path: Path) -> Callable[[], Iterator[Row]]:
    """What reads this path, bound to it."""
    if is_dataset_folder(path):
        return lambda: read_dataset_folder(path)
    if not os.path.exists(path) and is_hub_name(path):
        return lambda: read_hub(str(path))
    _require_file(path)
    name = path.name.lower()
    kind = Path(name.removesuffix(".gz")).suffix
    if kind not in _READERS or (name.endswith(".gz") and kind == ".parquet"):
        found = f'unknown extension "{path.suffix}"' if path.suffix else "no extension"
        raise ProblemFileError(f"{path}: {found}, so its format is not known. {nearest(path.suffix.lower(), _READERS)}")
    return lambda: _READERS[kind](path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_file(path: Path) -> None:
    # os.path's checks answer no where pathlib's raise, for example under a folder that may not be entered.
    if not os.path.exists(path):
        raise ProblemFileError(f"{path}: no such file. Check the path.")
    if os.path.isdir(path):
        raise ProblemFileError(f"{path}: a folder, not a file of rows. Name one of the files in it.")


def _read_jsonl(path: Path) -> Iterator[Row]:
    # JSON strings may hold U+2028 and its kind as they are, so splitlines() would cut rows apart.
    for line, text in enumerate(read_text(path).split("\n"), start=1):
        if not text.strip():
            continue
        place = f"{path} line {line}"
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise ProblemFileError(
                f"{place}: not JSON ({error.msg} at character {error.colno}). Mend or remove the line."
            ) from None
        except (ValueError, RecursionError) as error:
            raise _too_much(place, error) from None
        yield Row(place, line, _columns(place, value, "Write one object a line; name a file that is one list .json."))


def _read_json(path: Path) -> Iterator[Row]:
    text = read_text(path)
    try:
        values = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        raise ProblemFileError(
            f"{path} line {error.lineno}: not JSON ({error.msg} at character {error.colno}). "
            "Mend the line, or name a file with one object a line .jsonl."
        ) from None
    except (ValueError, RecursionError) as error:
        raise _too_much(str(path), error) from None
    if not isinstance(values, list):
        raise ProblemFileError(f"{path} line 1: expected a list of objects, found {describe(values)}. Put it in [ ].")
    # A second walk over text known to be valid, because json.loads does not tell on which lines its objects began.
    decoder, position, line = json.JSONDecoder(), text.find("[") + 1, 1 + text.count("\n", 0, text.find("[") + 1)
    for _ in values:
        start = _end(_BETWEEN_OBJECTS, text, position)
        line += text.count("\n", position, start)
        value, position = decoder.raw_decode(text, start)
        place = f"{path} line {line}"
        yield Row(place, line, _columns(place, value, "Make every entry of the list an object."))
        line += text.count("\n", start, position)


def _read_csv(path: Path) -> Iterator[Row]:
    # Prompts may be longer than the csv module's 128 KiB. Raised for good: putting it back would race with threads.
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    header: list[str] = []
    while True:
        line = reader.line_num + 1
        place = f"{path} line {line}"
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise ProblemFileError(
                f"{place}: not CSV ({error}). Put quotes around the field and double the quotes inside it."
            ) from None
        if fields is None:
            return
        if not fields:
            continue
        if not header:
            refuse_twins(place, fields)
            header = fields
        elif len(fields) != len(header):
            raise ProblemFileError(
                f"{place}: expected {len(header)} fields as in the header, found {len(fields)}. "
                "Put quotes around a field that holds a comma, or add the missing one."
            )
        else:
            yield Row(place, line, dict(zip(header, fields, strict=True)))


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": read_parquet,
}


def _columns(place: str, value: Any, mend: str) -> dict[str, Any]:
    """The value as a row's columns: an object, all of it text that can be written as UTF-8."""
    if not isinstance(value, dict):
        raise ProblemFileError(f'{place}: expected an object such as {{"prompt": …}}, found {describe(value)}. {mend}')
    for name, content in value.items():
        if _holds_surrogate([name, content]):
            raise ProblemFileError(
                f"{place}, column {json.dumps(name)}: holds half of a surrogate pair (a \\ud800 to \\udfff alone), "
                "which is no character. Remove it or write the whole pair."
            )
    return value


def _holds_surrogate(value: Any) -> bool:
    if isinstance(value, str):
        return _SURROGATE.search(value) is not None
    if isinstance(value, dict):
        return any(_holds_surrogate(part) for item in value.items() for part in item)
    return isinstance(value, list) and any(map(_holds_surrogate, value))


def _too_much(place: str, error: Exception) -> ProblemFileError:
    reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]
    return ProblemFileError(f"{place}: not readable JSON ({reason}). Mend or remove it.")


def _end(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    return match.end() if match else position
