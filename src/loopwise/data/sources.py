"""Plain text from files, folders, datasets and the hub, as documents that know where they stood."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from loopwise.config.blocks import SourceConfig
from loopwise.data.arrow import is_dataset_folder
from loopwise.data.dedup import text_key
from loopwise.data.formats import read_rows, read_text
from loopwise.data.row import Row, describe, unreadable
from loopwise.errors import ConfigError, DataError, ProblemFileError, nearest

TEXT_FILES = (".md", ".txt")
ROW_FILES = (".csv", ".json", ".jsonl", ".parquet", ".csv.gz", ".json.gz", ".jsonl.gz")


@dataclass(frozen=True)
class Document:
    """A text and its place, ready for an error. ``opens`` and ``closes`` are false where it was cut out of a longer
    one, so that no document begins or ends there."""

    text: str
    place: str
    opens: bool = True
    closes: bool = True

    @cached_property
    def key(self) -> str:
        """What makes two documents the same one: see ``text_key``."""
        return text_key(self.text)

    @property
    def bytes(self) -> int:
        """Length in UTF-8: what bits per byte are counted by."""
        return len(self.text.encode())


@dataclass(frozen=True)
class SourceText:
    """What a source holds: its documents in order, the files (or datasets) they are from, how many documents were
    empty and so left out, and which files of a folder were passed over."""

    documents: tuple[Document, ...]
    files: tuple[str, ...]
    empty: int
    skipped: tuple[str, ...]


def read_source(source: SourceConfig) -> SourceText:
    """Read all documents of a source.

    A ``.txt`` or ``.md`` file is one document, or as many as ``split_on`` cuts it into (line breaks are read as
    ``\\n``); a row file or dataset has one a row, the text in ``text_column`` or its list of texts joined by line
    breaks. A folder is read with all folders in it, in the order of the names; hidden files, linked folders and those
    with an unknown extension are passed over. Documents of white space alone are empty.
    Raises ProblemFileError naming file, line, column and mend, and DataError where there is no text at all.
    """
    path = Path(source.path)
    files: list[str] = [source.path]
    skipped: list[str] = []
    if os.path.isdir(path) and not is_dataset_folder(path):
        files, skipped = _walk(path)
    elif os.path.isfile(path) and not _is_known(path.name):
        raise ProblemFileError(
            f"{path}: unknown extension, so its format is not known. {nearest(path.suffix.lower(), _KNOWN)}"
        )
    documents, empty = [], 0
    for file in files:
        for document in _documents(file, source):
            if document.text.strip():
                documents.append(document)
            else:
                empty += 1
    if not documents:
        found = f"{empty} empty documents in {len(files)} files" if files else "no file of a known kind"
        passed = f", passed over: {', '.join(skipped[:3])}" if skipped else ""
        raise DataError(f"{path}: no text in it ({found}{passed}). Known: {', '.join(_KNOWN)}.")
    return SourceText(tuple(documents), tuple(files), empty, tuple(skipped))


def refuse_idle_settings(source: SourceConfig, text: SourceText) -> None:
    """Raise ConfigError where ``split_on`` or ``text_column`` is set, and the source has no file it could be for."""
    cuttable = [file.lower().endswith(TEXT_FILES) for file in text.files]
    if source.split_on is not None and not any(cuttable):
        raise ConfigError(f'{source.path}: "split_on" cuts text files, and there is none. Leave it out.')
    if source.text_column != SourceConfig.model_fields["text_column"].default and all(cuttable):
        raise ConfigError(f'{source.path}: "text_column" is for row files, and there is none. Leave it out.')


_KNOWN = (*TEXT_FILES, *ROW_FILES)


def _is_known(name: str) -> bool:
    return name.lower().endswith(_KNOWN)


def _walk(folder: Path) -> tuple[list[str], list[str]]:
    """The readable files (and datasets' folders) below a folder, and those passed over, both sorted."""

    def refuse(error: OSError) -> None:
        raise unreadable(error.filename or folder, error) from None

    files, skipped = [], []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        here = Path(parent)
        hidden = {name for name in folders if name.startswith(".")}
        datasets = {name for name in folders if name not in hidden and is_dataset_folder(here / name)}
        # Links may lead in circles, or to what is read already.
        links = {name for name in folders if name not in datasets and (here / name).is_symlink()}
        files += [str(here / name) for name in datasets]
        skipped += [str(here / name) for name in hidden | links]
        folders[:] = [name for name in folders if name not in hidden | datasets | links]
        for name in names:
            (skipped if name.startswith(".") or not _is_known(name) else files).append(str(here / name))
    return sorted(files), sorted(skipped)


def _documents(file: str, source: SourceConfig) -> Iterator[Document]:
    if not file.lower().endswith(TEXT_FILES):
        columns = [source.text_column] if isinstance(source.text_column, str) else source.text_column
        for row in read_rows(file):
            yield Document("\n".join(_column(row, column) for column in columns), row.place)
        return
    text = read_text(Path(file)).replace("\r\n", "\n")
    if source.split_on is None:
        yield Document(text, file)
        return
    line = 1
    for part in text.split(source.split_on):
        leading = part[: len(part) - len(part.lstrip())].count("\n")
        yield Document(part, f"{file} line {line + leading}")
        line += part.count("\n") + source.split_on.count("\n")


def _column(row: Row, column: str) -> str:
    """The text of a row's column; a missing value (null) is an empty document."""
    place = f'{row.place}, column "{column}"'
    if column not in row.columns:
        if "messages" in row.columns:
            raise _conversation(row.place)
        known = nearest(column, row.columns) if row.columns else "The row has no columns."
        raise ProblemFileError(f"{place}: missing. {known} Add it, or name another column with text_column.")
    value = row.columns[column]
    if value is None or isinstance(value, str):
        return value or ""
    if not isinstance(value, list):
        raise ProblemFileError(
            f"{place}: expected text or a list of texts, found {describe(value)}. "
            "Put quotes around it, or name another column with text_column."
        )
    for number, entry in enumerate(value, start=1):
        if isinstance(entry, dict) and {"role", "content"} <= entry.keys():
            raise _conversation(row.place)
        if not isinstance(entry, str):
            raise ProblemFileError(
                f"{place}, entry {number}: expected text, found {describe(entry)}. "
                "Put quotes around it, or name another column with text_column."
            )
    return "\n".join(value)


def _conversation(place: str) -> ProblemFileError:
    return ProblemFileError(
        f'{place}, column "messages": a conversation, not plain text. Train on it with `loopwise tune`, or name a '
        "column of text with text_column."
    )
