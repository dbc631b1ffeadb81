"""Rows with judgements: texts with labels, better and worse completions, completions that are right or wrong."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loopwise.config.judge_blocks import JudgeDataConfig
from loopwise.data.dedup import text_key
from loopwise.data.formats import fingerprint, read_rows
from loopwise.data.row import Row, describe
from loopwise.data.shapes import Shape, shape_of
from loopwise.errors import ConfigError, DataError, OverlapError, ProblemFileError, nearest
from loopwise.models.judges import Reading, reading_of
from loopwise.runtime import seed_key

HELD_OUT = ("dev", "test")


@dataclass(frozen=True)
class Example:
    """One row: a text with its ``label`` (its place among the labels; of unpaired rows 1 is right, 0 wrong), or a pair
    of the chosen and the rejected text, the first better by ``margin``. Examples that share one of their ``keys`` (of
    the prompt where there is one, and of each reading) belong to one split."""

    readings: tuple[Reading, ...]
    keys: tuple[str, ...]
    place: str
    label: int = 0
    margin: float = 0.0


@dataclass(frozen=True)
class Examples:
    """The rows of a judge's recipe: ``kind`` is labels, preference or unpaired; no prompt, and nothing that the judge
    reads, stands in two splits.

    ``counts`` has the rows of each split, those ``dropped/repeated`` (the same text with the same judgement before
    them), those ``dropped/contradicting`` one before them, and in how many ``groups`` that share a prompt or a text the
    rows were split.
    """

    kind: str
    reads: str
    labels: tuple[str, ...]
    train: tuple[Example, ...]
    held_out: Mapping[str, tuple[Example, ...]]
    counts: Mapping[str, int]
    fingerprint: Mapping[str, str]

    @property
    def texts(self) -> list[str]:
        """What a tokenizer and a masked language model learn from: the training texts alone."""
        return [text for one in self.train for reading in one.readings for text in reading if text]


def open_examples(config: JudgeDataConfig, seed: int) -> Examples:
    """Read, deduplicate and split the rows: a pure function of the files, the config and the seed.

    A share is held out by a hash of the text (of the prompt where there is one) and the seed. Rows that share a prompt
    or a text stay together, and so do rows that others tie together. Raises ProblemFileError naming file, line, column
    and mend, OverlapError where a held-out file repeats texts of another, and DataError where a split has no rows.
    """
    rows = {name: read_rows(path) for name in ("train", *HELD_OUT) if isinstance(path := getattr(config, name), str)}
    kind = _kind(rows["train"][0], config)
    reads = config.reads or ("completion" if kind == "labels" else "both")
    if reads == "both" and kind == "labels" and config.prompt_column is None:
        raise ConfigError('key "data.reads": both needs the column of the prompts. Name it with data.prompt_column.')
    _refuse_idle(config, kind, reads)
    labels = _labels(rows, config) if kind == "labels" else ()
    read = {name: _read(part, kind, config, reads, labels) for name, part in rows.items()}
    dropped: Counter[str] = Counter()
    splits = {name: _without_repeats(part, dropped) for name, part in read.items()}
    _refuse_overlap(splits)
    shares = {name: share for name in HELD_OUT if not isinstance(share := getattr(config, name), str) and share}
    groups = _groups(splits["train"])
    splits |= _split(splits["train"], groups, shares, seed)
    for name, part in splits.items():
        if not part:
            mend = "add rows" if name == "train" else f"raise data.{name}, name a file there, or set it to 0"
            raise DataError(
                f"{config.train}: no row is left for {name}, of {len(set(groups)):,} groups of rows that share a "
                f"prompt or a text and stay together. To mend it, {mend}."
            )
    counts = {f"{name}/rows": len(part) for name, part in splits.items()} | {
        f"dropped/{name}": dropped[name] for name in ("repeated", "contradicting")
    }
    counts["groups"] = len(set(groups))
    return Examples(
        kind,
        reads,
        labels,
        tuple(splits.pop("train")),
        {name: tuple(splits[name]) for name in HELD_OUT if name in splits},
        counts,
        {path: fingerprint(path) for name in rows if isinstance(path := getattr(config, name), str)},
    )


def _refuse_idle(config: JudgeDataConfig, kind: str, reads: str) -> None:
    """Raise ConfigError on keys that say something of rows of another kind, or of what is not read."""
    idle = {
        "labels": ["completion_column", "margin_column", *(["prompt_column"] if reads != "both" else [])],
        "preference": ["text_column", "label_column", "completion_column"],
        "unpaired": ["text_column", "label_column", "margin_column"],
    }
    for key in config.changed(*idle[kind]):
        raise ConfigError(f'key "data.{key}": does nothing with {kind} rows read for {reads}. Leave it out.')
    if kind == "preference" and reads == "prompt":
        raise ConfigError('key "data.reads": both answers of a pair have the same prompt. Use both, or completion.')


def _kind(first: Row, config: JudgeDataConfig) -> str:
    if config.format != "auto":
        return config.format
    needs = {
        "labels": {config.text_column, config.label_column},
        "preference": {"chosen", "rejected"},
        "unpaired": {config.completion_column or "completion", "label"},
    }
    fitting = [kind for kind, columns in needs.items() if columns <= first.columns.keys()]
    if len(fitting) != 1:
        what = f"several formats: {', '.join(fitting)}" if fitting else "no format"
        raise ProblemFileError(
            f"{first.place}: its columns ({', '.join(first.columns)}) fit {what}. Name the columns of labelled texts "
            "with data.text_column and data.label_column, or name a format with data.format."
        )
    return fitting[0]


def _labels(rows: Mapping[str, Sequence[Row]], config: JudgeDataConfig) -> tuple[str, ...]:
    """Every label of the training rows. Raises ProblemFileError on a held-out row with another."""
    known = sorted({_label(row, config) for row in rows["train"]})
    if len(known) < 2:
        raise ProblemFileError(
            f'{rows["train"][0].place}, column "{config.label_column}": every row has the label "{known[0]}". '
            "Add rows with another, or name another column with data.label_column."
        )
    for name in HELD_OUT:
        for row in rows.get(name, ()):
            if (label := _label(row, config)) not in known:
                raise ProblemFileError(
                    f'{row.place}, column "{config.label_column}": no training row has the label "{label}". '
                    f"{nearest(label, known)}"
                )
    return tuple(known)


def _label(row: Row, config: JudgeDataConfig) -> str:
    value = _value(row, config.label_column, "label_column")
    if isinstance(value, bool | int):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise _wrong(row, config.label_column, "text or a whole number", value)
    return value.strip()


def _read(rows: Sequence[Row], kind: str, config: JudgeDataConfig, reads: str, labels: Sequence[str]) -> list[Example]:
    if kind == "labels":
        places = {label: place for place, label in enumerate(labels)}
        return [_labelled(row, config, reads, places[_label(row, config)]) for row in rows]
    shape = shape_of(rows, "preference" if kind == "preference" else "unpaired", *_columns(kind, config))
    read = _pair if kind == "preference" else _unpaired
    return [read(row, shape, config, reads) for row in rows]


def _columns(kind: str, config: JudgeDataConfig) -> tuple[str | None, str | None]:
    return config.prompt_column, None if kind == "preference" else config.completion_column


def _labelled(row: Row, config: JudgeDataConfig, reads: str, label: int) -> Example:
    text = _text(row, config.text_column, "text_column")
    prompt = _text(row, config.prompt_column, "prompt_column") if config.prompt_column else ""
    reading = (prompt, text) if reads == "both" else (text, None)
    return Example((reading,), _keys(prompt if reads == "both" else "", (reading,)), row.place, label)


def _pair(row: Row, shape: Shape, config: JudgeDataConfig, reads: str) -> Example:
    parts = shape.read(row, supervised=False)
    answers = [parts.columns[shape.stored], parts.columns["rejected"]]
    readings = tuple(reading_of(reads, parts.prompt, answer) for answer in answers)
    if readings[0] == readings[1]:
        raise ProblemFileError(f"{row.place}: the chosen and the rejected text are the same. Mend or remove the row.")
    margin = 0.0
    if config.margin_column:
        value = _value(row, config.margin_column, "margin_column")
        try:
            margin = float(value)
        except (TypeError, ValueError):
            margin = math.nan
        if not 0 <= margin < math.inf:
            raise _wrong(row, config.margin_column, "a number of 0 or more", value)
    return Example(readings, _keys(parts.prompt, readings), row.place, 0, margin)


def _unpaired(row: Row, shape: Shape, config: JudgeDataConfig, reads: str) -> Example:
    parts = shape.read(row, supervised=False)
    label = bool(parts.columns["label"])
    answer = _value(row, shape.completion, "completion_column")
    reading = reading_of(reads, parts.prompt, answer)
    return Example((reading,), _keys(parts.prompt, (reading,)), row.place, int(label))


def _keys(prompt: Any, readings: Sequence[Reading]) -> tuple[str, ...]:
    """Of the prompt where there is one, then of each reading."""
    asked = [text_key(json.dumps(prompt, ensure_ascii=False, default=str))] if prompt else []
    return (*asked, *map(_reading_key, readings))


def _reading_key(reading: Reading) -> str:
    return text_key("\n".join(part or "" for part in reading))


def _without_repeats(examples: Sequence[Example], dropped: Counter[str]) -> list[Example]:
    """The examples without those whose texts stood before; of two judgements on one text, the first counts."""
    seen: dict[tuple[str, ...], tuple[int, str]] = {}
    kept = []
    for one in examples:
        texts = [_reading_key(reading) for reading in one.readings]
        judgement = (one.label, texts[0])  # of a pair: which of the two was chosen
        before = seen.get(tuple(sorted(texts)))
        if before is None:
            seen[tuple(sorted(texts))] = judgement
            kept.append(one)
        else:
            dropped["repeated" if before == judgement else "contradicting"] += 1
    return kept


def _refuse_overlap(splits: Mapping[str, Sequence[Example]]) -> None:
    owners: dict[str, tuple[str, str]] = {}
    for name, part in splits.items():
        for one in part:
            for key in one.keys:
                owner, place = owners.setdefault(key, (name, one.place))
                if owner != name:
                    raise OverlapError(
                        f"{one.place}: its prompt or text stands in {owner} too ({place}), so {name} would tell "
                        "nothing. Remove one of the two, or leave the file out and have a share held out."
                    )


def _groups(examples: Sequence[Example]) -> list[str]:
    """Of each example a key that it shares with all that belong to one split with it, whatever their order."""
    parents: dict[str, str] = {}

    def root(key: str) -> str:
        above = parents.setdefault(key, key)
        while above != key:
            parents[key] = parents[above]
            key, above = above, parents[above]
        return key

    for one in examples:
        for key in one.keys:
            parents[root(key)] = root(one.keys[0])
    names: dict[str, str] = {}
    for one in examples:
        first = one.keys[0]
        names[root(first)] = min(first, names.get(root(first), first))
    return [names[root(one.keys[0])] for one in examples]


def _split(
    train: Sequence[Example], groups: Sequence[str], shares: Mapping[str, float], seed: int
) -> dict[str, list[Example]]:
    splits: dict[str, list[Example]] = {"train": [], **{name: [] for name in shares}}
    for one, group in zip(train, groups, strict=True):
        mark, name = seed_key("held out", seed, group) / 2**64, "train"
        for held_out, share in shares.items():
            if mark < share:
                name = held_out
                break
            mark -= share
        splits[name].append(one)
    return splits


def _text(row: Row, column: str, key: str) -> str:
    value = _value(row, column, key)
    if not isinstance(value, str) or not value.strip():
        raise _wrong(row, column, "text", value)
    return value


def _value(row: Row, column: str, key: str) -> Any:
    if column not in row.columns:
        raise ProblemFileError(
            f'{row.place}, column "{column}": missing. {nearest(column, row.columns)} '
            f"Add it, or name another column with data.{key}."
        )
    return row.columns[column]


def _wrong(row: Row, column: str, expected: str, value: Any) -> ProblemFileError:
    return ProblemFileError(
        f'{row.place}, column "{column}": expected {expected}, found {describe(value)}. Mend or remove the row.'
    )
