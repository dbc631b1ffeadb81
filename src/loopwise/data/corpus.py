"""The text of a pretraining run: sources to train on, without what was seen before, and what is held out of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from loopwise.config.blocks import CorpusConfig, SourceConfig
from loopwise.data.arrow import is_dataset_folder
from loopwise.data.dedup import near_duplicates
from loopwise.data.formats import fingerprint
from loopwise.data.sources import Document, SourceText, read_source, refuse_idle_settings
from loopwise.errors import ConfigError, DataError, OverlapError
from loopwise.runtime import seed_key

HELD_OUT = ("dev", "test")


@dataclass(frozen=True)
class Source:
    """The documents of one source left to train on; ``weight`` is its share of the tokens drawn, relative to others."""

    name: str
    weight: float
    documents: tuple[Document, ...]


@dataclass(frozen=True)
class Corpus:
    """Text to train on and text held out (``dev`` and ``test``, either may be empty), which share no document.

    ``fingerprint`` is a SHA-256 of every file, and of every folder's list of files. ``counts`` has the documents,
    characters and bytes of train, dev and test (``train/documents``), the documents ``dropped/exact``,
    ``dropped/near`` and ``dropped/empty``, and the files ``skipped``; ``skipped`` names these.
    """

    sources: tuple[Source, ...]
    held_out: Mapping[str, tuple[Document, ...]]
    fingerprint: Mapping[str, str]
    counts: Mapping[str, int]
    skipped: tuple[str, ...]


def open_corpus(config: CorpusConfig, seed: int) -> Corpus:
    """Read, deduplicate and split the text of a run: a pure function of the files, the config and the seed.

    A share is held out of each source: where the source is one document its end (train, dev and test in the text's
    order), otherwise whole documents of about that share of the characters, by a hash of their content and the seed,
    none of them longer than the share.
    A held-out file is read as the first source is, and nothing is dropped from it. What is held out decides: a
    training document equal to a held-out one, or near to it under ``deduplicate: near``, is dropped. Whether a document
    stands inside a longer one is not looked for.
    Raises OverlapError where a held-out file repeats documents of the train files or of the other, DataError where a
    source is left with nothing to train on or too coarse to hold a share out of, ConfigError on shares of 1 or more and
    where two sources read the same file.
    """
    shares = {name: float(share) for name in HELD_OUT if not isinstance(share := getattr(config, name), str)}
    if sum(shares.values()) >= 1:
        raise ConfigError('key "data": dev and test leave nothing to train on. Lower the two shares.')
    texts = [read_source(source) for source in config.train]
    for source, text in zip(config.train, texts, strict=True):
        refuse_idle_settings(source, text)
    files = {
        name: read_source(config.train[0].model_copy(update={"path": path}))
        for name in HELD_OUT
        if isinstance(path := getattr(config, name), str)
    }
    train = [list(text.documents) for text in texts]
    held_out = {name: list(files[name].documents) if name in files else [] for name in HELD_OUT}
    if files:
        _refuse_overlap({"train": [document for part in train for document in part], **held_out})
    read = [*texts, *files.values()]
    paths = [source.path for source in config.train] + [str(getattr(config, name)) for name in files]
    prints = _fingerprint(paths, read)
    _refuse_twins(paths, read, prints)
    dropped = {"exact": 0 if config.deduplicate == "none" else _drop_repeats(train), "near": 0}
    for source, part in zip(config.train, train, strict=True):
        for name, documents in _hold_out(part, shares, seed, source.path).items():
            held_out[name] += documents
    everything_held_out = [document for part in held_out.values() for document in part]
    dropped["exact"] += _drop_held_out(train, everything_held_out)
    if config.deduplicate == "near":
        dropped["near"] = _drop_near(train, everything_held_out, config.near_threshold)
    sources = [
        Source(name, source.weight, tuple(part))
        for name, source, part in zip(_names(config.train), config.train, train, strict=True)
    ]
    for left in sources:
        if not left.documents:
            raise DataError(
                f"{left.name}: nothing left to train on; every document is held out or repeats another. "
                "Leave the source out, or lower data.dev and data.test."
            )
    splits = {"train": [document for part in train for document in part], **held_out}
    return Corpus(
        sources=tuple(sources),
        held_out={name: tuple(documents) for name, documents in held_out.items()},
        fingerprint=prints,
        counts=_counts(splits, dropped, read),
        skipped=tuple(file for text in read for file in text.skipped),
    )


def _refuse_overlap(splits: Mapping[str, Sequence[Document]]) -> None:
    """Raise OverlapError where two of the splits, as their files hold them, share documents."""
    places: dict[str, dict[str, str]] = {name: {} for name in splits}
    for name, documents in splits.items():
        for document in documents:
            places[name].setdefault(document.key, document.place)
    complaints = []
    for kept, checked in combinations(splits, 2):
        shared = [key for key in places[checked] if key in places[kept]]
        if shared:
            examples = " and ".join(f"{places[checked][key]} = {places[kept][key]}" for key in shared[:2])
            complaints.append(
                f"{checked}: {len(shared)} of {len(places[checked])} different documents are also in {kept}, "
                f"for example {examples}. Remove them from {kept} or from {checked}."
            )
    if complaints:
        raise OverlapError("\n".join(complaints))


def _refuse_twins(paths: Sequence[str], texts: Sequence[SourceText], prints: Mapping[str, str]) -> None:
    """Raise ConfigError where two sources read the same file: cut otherwise, one may hold the other's held-out text."""
    owners: dict[str, str] = {}
    for path, text in zip(paths, texts, strict=True):
        # Of a file that is a source by itself a copy counts too. Folders may well share one, such as a licence.
        marks = {os.path.realpath(file) for file in text.files} | ({prints[path]} if text.files == (path,) else set())
        for mark in sorted(marks):
            if mark in owners:
                raise ConfigError(
                    f'key "data": {owners[mark]} and {path} hold the same file, so that what is held out of one could '
                    "be trained on in the other. Name it once."
                )
        owners |= dict.fromkeys(marks, path)


def _drop_repeats(train: Sequence[list[Document]]) -> int:
    """Drop (in place) the documents that repeat one before them, in their source or another; how many."""
    seen: set[str] = set()
    dropped = 0
    for part in train:
        first: dict[str, Document] = {}
        for document in part:
            if document.key not in seen:
                first.setdefault(document.key, document)
        dropped += len(part) - len(first)
        seen |= first.keys()
        part[:] = first.values()
    return dropped


def _drop_held_out(train: Sequence[list[Document]], held_out: Sequence[Document]) -> int:
    """Drop (in place) the training documents equal to a held-out one, such as the cut end of another; how many."""
    keys = {document.key for document in held_out}
    dropped = 0
    for part in train if keys else ():
        left = [document for document in part if document.key not in keys]
        dropped += len(part) - len(left)
        part[:] = left
    return dropped


def _drop_near(train: Sequence[list[Document]], held_out: Sequence[Document], threshold: float) -> int:
    """Drop (in place) the training documents near to a held-out one or to one before them; how many."""
    texts = [document.text for part in (held_out, *train) for document in part]
    near = near_duplicates(texts, threshold, kept=len(held_out))
    first = len(held_out)
    for part in train:
        stop = first + len(part)
        part[:] = [document for place, document in enumerate(part, start=first) if place not in near]
        first = stop
    return len(near)


def _hold_out(part: list[Document], shares: Mapping[str, float], seed: int, path: str) -> dict[str, list[Document]]:
    """Take the shares out of a source's documents (in place) and return them by split."""
    wanted = {name: share for name, share in shares.items() if share}
    if not wanted:
        return {}
    if len(part) == 1:
        part[0], pieces = _cut(part[0], wanted)
        return pieces
    total = sum(len(document.text) for document in part)
    groups: dict[str, list[int]] = {}
    for place, document in enumerate(part):
        groups.setdefault(document.key, []).append(place)
    waiting = [groups[key] for key in sorted(groups, key=lambda key: (seed_key("held out", seed, key), key))]
    taken: dict[str, list[Document]] = {}
    gone: set[int] = set()
    for name, share in wanted.items():
        room = most = round(share * total)
        chosen: list[int] = []
        passed_over = []
        for number, group in enumerate(waiting):
            size = sum(len(part[place].text) for place in group)
            if size > most:
                passed_over.append(group)
                continue
            # To go on and fill up with what still fits would favour short documents.
            if size >= 2 * room:
                passed_over += waiting[number:]
                break
            room -= size
            chosen += group
        if 2 * room > most or not chosen:
            raise DataError(
                f"{path}: data.{name} = {share:g} of its text is {most:,} characters, and those of its documents that "
                f"are no longer have {most - room:,} in all. Cut the text into shorter documents with split_on, name "
                f"each long one as a source of its own (its end is then held out), or name a file with data.{name}."
            )
        taken[name] = [part[place] for place in sorted(chosen)]
        gone.update(chosen)
        waiting = passed_over
    part[:] = [document for place, document in enumerate(part) if place not in gone]
    return taken


def _cut(document: Document, shares: Mapping[str, float]) -> tuple[Document, dict[str, list[Document]]]:
    """One document as its beginning and its last parts, none of which ends or begins a document where it was cut."""
    text, place = document.text, document.place
    left = 1 - sum(shares.values())
    stop = int(len(text) * left)
    pieces, first = {}, stop
    for name, share in shares.items():
        left += share
        last = len(text) if name == list(shares)[-1] else int(len(text) * left)
        pieces[name] = [Document(text[first:last], f"{place}, {name}", opens=False, closes=False)]
        first = last
    if not all(part.strip() for part in (text[:stop], *(piece.text for [piece] in pieces.values()))):
        raise DataError(
            f"{place}: too short a text ({len(text)} characters) to hold parts of it out. "
            "Add text, or name files with data.dev and data.test."
        )
    return replace(document, text=text[:stop], closes=False), pieces


def _names(sources: Sequence[SourceConfig]) -> list[str]:
    """Short names of the sources: the last part of their path, or all of it where two would be the same."""
    short = [Path(source.path).name for source in sources]
    return [name if short.count(name) == 1 else source.path for name, source in zip(short, sources, strict=True)]


def _fingerprint(paths: Sequence[str], texts: Sequence[SourceText]) -> dict[str, str]:
    result: dict[str, str] = {}
    for path, text in zip(paths, texts, strict=True):
        result |= {file: fingerprint(file) for file in text.files}
        # Without this a file taken out of a folder would go unnoticed.
        if os.path.isdir(path) and not is_dataset_folder(Path(path)):
            names = [os.path.relpath(file, path) for file in text.files]
            result[path] = hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()
    return result


def _counts(
    splits: Mapping[str, Sequence[Document]], dropped: Mapping[str, int], texts: Sequence[SourceText]
) -> dict[str, int]:
    counts = {}
    for name, documents in splits.items():
        counts[f"{name}/documents"] = len(documents)
        counts[f"{name}/characters"] = sum(len(document.text) for document in documents)
        counts[f"{name}/bytes"] = sum(document.bytes for document in documents)
    counts |= {f"dropped/{reason}": count for reason, count in dropped.items()}
    counts["dropped/empty"] = sum(text.empty for text in texts)
    counts["skipped"] = sum(len(text.skipped) for text in texts)
    return counts
