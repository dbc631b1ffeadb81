"""The streams of row files: their own rows, split where no held-out file is named; several files are a mixture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loopwise.config.blocks import DataConfig, RowsConfig
from loopwise.data.augment import load_augment
from loopwise.data.formats import Row, fingerprint
from loopwise.data.rows import Source, check_columns, read_source
from loopwise.data.streams import check_disjoint, draw, draw_mixture, problem_key, split
from loopwise.errors import ConfigError, DataError, ProblemFileError
from loopwise.tasks.base import HELD_OUT_AT_MOST, SKILL, SourceRows, Streams
from loopwise.types import Problem

AUGMENT_TRIALS = 3


@dataclass(frozen=True)
class _Reader:
    """Reads the files of a recipe alike. ``column`` is where every problem keeps its completion to learn."""

    data: DataConfig
    supervised: bool
    column: str = ""

    def source(self, config: RowsConfig, *, supervised: bool, seen: Counter[str] | None = None) -> Source:
        data = self.data
        return read_source(
            config.path,
            config.format or data.format,
            config.prompt_column or data.prompt_column,
            config.completion_column or data.completion_column,
            supervised=supervised,
            seen=seen,
        )

    def problems(self, path: str, *, supervised: bool | None = None) -> list[Problem]:
        """The problems of a file that is no train file."""
        supervised = self.supervised if supervised is None else supervised
        source = self.source(RowsConfig(path=path), supervised=supervised)
        if not supervised:
            check_columns(source, self.data.reference_columns)
        return self.stored(source)

    def stored(self, source: Source) -> list[Problem]:
        """The problems of a source with their completions in ``column``."""
        return [self.store(source, problem) for problem in source.problems]

    def store(self, source: Source, problem: Problem) -> Problem:
        own = source.shape.stored
        if own == self.column or own not in problem.columns:
            return problem
        if self.column in problem.columns:
            raise ProblemFileError(
                f'{source.path}, column "{self.column}": the recipe\'s other files keep their completions under this '
                f'name, and here "{own}" holds them. Rename the column, or name one with data.completion_column.'
            )
        return replace(problem, columns={**problem.columns, self.column: problem.columns[own]})


def row_file_streams(data: DataConfig, seed: int, *, supervised: bool) -> Streams:
    """The streams of the files that ``data`` names; ``supervised`` rows hold completions. Raises DataError."""
    if data.augment and not supervised:
        raise ConfigError('key "data.augment": changes the rows that `loopwise tune` learns. Leave it out here.')
    if data.labelled and supervised:
        raise ConfigError(
            'key "data.labelled": `loopwise tune` learns the train rows. Leave it out, or name both files under '
            '"data.train".'
        )
    configs = _configs(data)
    reader = _Reader(data, supervised)
    seen: Counter[str] = Counter()
    sources = [reader.source(config, supervised=supervised, seen=seen) for config in configs.values()]
    if not supervised:
        _check_references(sources, data.reference_columns)
    reader = replace(reader, column=_completion_column(data, sources))
    train, held_out = _split(data, reader, sources, seed)
    files = {"train" if len(configs) == 1 else f"train {name}": config.path for name, config in configs.items()}
    files |= {name: path for name in ("dev", "test") if isinstance(path := getattr(data, name), str)}
    everything = [problem for problems in train for problem in problems]
    check_disjoint(everything, held_out)
    for path in data.skills:
        name = f"{SKILL}{Path(path).name}"
        if name in held_out:
            raise ConfigError(f'key "data.skills": two files have the name of {path}. Rename one.')
        held_out[name] = reader.problems(path)
        files[path] = path
    for name in (name for name in held_out if name.startswith(SKILL)):
        check_disjoint(everything, {name: held_out[name]})
    labelled = _labelled(data, reader, everything)
    files |= {"labelled": data.labelled} if isinstance(data.labelled, str) else {}
    files |= {"augment": data.augment.rpartition(":")[0]} if data.augment else {}
    weights = [config.weight for config in configs.values()]
    augment = _augment(data.augment, reader, sources, train, held_out, seed) if data.augment else None
    draw_round = _draw(train, weights, seed)
    return Streams(
        draw=draw_round,
        held_out={name: held_out[name] for name in sorted(held_out, key=_split_order)},
        labelled=labelled,
        completion_column=reader.column,
        reference_columns=_references(data, sources, reader.column),
        train_count=len(everything),
        fingerprint={name: fingerprint(path) for name, path in files.items()},
        rows=everything,
        sources=_counts(configs, sources, train, held_out) if supervised else (),
        augment=augment,
        prompts=lambda count: [problem.prompt for problem in draw_round(1, count)],
    )


def _configs(data: DataConfig) -> dict[str, RowsConfig]:
    """The train files by names that tell them apart: the file's, or its whole path where two have the same."""
    configs = (RowsConfig(path=data.train),) if isinstance(data.train, str) else data.train or ()
    names = Counter(Path(config.path).name for config in configs)
    named = [Path(config.path).name if names[Path(config.path).name] == 1 else config.path for config in configs]
    twins = [name for name, count in Counter(named).items() if count > 1]
    if twins:
        raise ConfigError(f'key "data.train": names {twins[0]} twice. Name it once, with the sum of the weights.')
    return dict(zip(named, configs, strict=True))


def _completion_column(data: DataConfig, sources: Sequence[Source]) -> str:
    """The column for completions: the recipe's, the one all sources have them in, or else ``completion``."""
    own = {source.shape.stored for source in sources}
    return data.completion_column or (own.pop() if len(own) == 1 else "completion")


def _references(data: DataConfig, sources: Sequence[Source], column: str) -> tuple[str, ...]:
    """What the recipe declares, and what the formats say gives an answer away; the completion itself goes without."""
    own = [name for source in sources for name in (*source.shape.references, source.shape.stored) if name != column]
    return tuple(dict.fromkeys((*data.reference_columns, *own)))


def _check_references(sources: Sequence[Source], names: Sequence[str]) -> None:
    """Each source must have the reference columns in every row or, in a mixture, in none; one of them must have it."""
    for name in names:
        having = [s for s in sources if any(name in problem.columns for problem in s.problems)]
        for source in having or sources:
            check_columns(source, [name])


def _split(
    data: DataConfig, reader: _Reader, sources: Sequence[Source], seed: int
) -> tuple[list[list[Problem]], dict[str, Sequence[Problem]]]:
    """Each source's train problems, and what is held out of all: of each source as much as its rows are of them."""
    stored = [reader.stored(source) for source in sources]
    # A prompt that several sources share is the first one's, so that no split parts it.
    keys = {problem.id: problem_key(problem) for problems in stored for problem in problems}
    owners: dict[str, int] = {}
    for place, problems in enumerate(stored):
        for problem in problems:
            owners.setdefault(keys[problem.id], place)
    owned = [[p for p in problems if owners[keys[p.id]] == place] for place, problems in enumerate(stored)]
    rows = [len(problems) for problems in owned]
    held_out: dict[str, Sequence[Problem]] = {}
    sizes: dict[str, list[int]] = {}
    for name in ("dev", "test"):
        held = getattr(data, name)
        if isinstance(held, str):
            held_out[name] = reader.problems(held)
        else:
            sizes[name] = _apportion(min(HELD_OUT_AT_MOST, sum(rows) // 10) if held is None else held, rows)
    train = []
    parts: dict[str, list[Problem]] = {name: [] for name, quotas in sizes.items() if any(quotas)}
    for place, source in enumerate(sources):
        quotas = {name: sizes[name][place] for name in parts}
        split_up = {"train": owned[place]}
        if any(quotas.values()):
            _check_sizes(source.path, rows[place], quotas)
            split_up = split(owned[place], {**quotas, "train": rows[place] - sum(quotas.values())}, seed)
        train.append(split_up["train"])
        for name in parts:
            parts[name].extend(split_up.get(name, ()))
    held_keys = {keys[problem.id] for problems in parts.values() for problem in problems}
    for place, problems in enumerate(stored):
        shared = [p for p in problems if owners[keys[p.id]] != place and keys[p.id] not in held_keys]
        train[place].extend(shared)
        if not train[place]:
            raise DataError(
                f"{sources[place].path}: all its rows are held out with those of the other files, which leaves none to "
                "train on. Remove it, or lower data.dev and data.test."
            )
    return train, {**held_out, **parts}


def _apportion(count: int, rows: Sequence[int]) -> list[int]:
    """``count`` as whole parts in proportion to ``rows``, what rounding leaves to the largest remainders."""
    shares = [count * n / max(sum(rows), 1) for n in rows]
    parts = [int(share) for share in shares]
    by_remainder = sorted(range(len(rows)), key=lambda place: parts[place] - shares[place])
    for place in by_remainder[: count - sum(parts)]:
        parts[place] += 1
    return parts


def _check_sizes(path: str, rows: int, sizes: Mapping[str, int]) -> None:
    """Refuse held-out splits that leave nothing to train on."""
    if sum(sizes.values()) >= rows:
        wanted = " + ".join(f"{name} {size}" for name, size in sizes.items())
        raise DataError(
            f"{path}: {wanted} held-out rows wanted of {rows}, which leaves none to train on. "
            "Lower data.dev and data.test, or add rows."
        )


def _labelled(data: DataConfig, reader: _Reader, train: Sequence[Problem]) -> Sequence[Problem]:
    if isinstance(data.labelled, str):
        return reader.problems(data.labelled, supervised=True)
    if data.labelled:
        raise ConfigError('key "data.labelled": with a row file name the file of labelled rows, not a number.')
    return train if reader.supervised else ()


def _draw(
    train: Sequence[Sequence[Problem]], weights: Sequence[float], seed: int
) -> Callable[[int, int], list[Problem]]:
    total = sum(map(len, train))
    if len(train) == 1:
        return lambda round, count: draw(train[0], min(count, total), seed, round - 1)
    return lambda round, count: draw_mixture(train, weights, min(count, total), seed, round - 1)


def _counts(
    configs: Mapping[str, RowsConfig],
    sources: Sequence[Source],
    train: Sequence[Sequence[Problem]],
    held_out: Mapping[str, Sequence[Problem]],
) -> tuple[SourceRows, ...]:
    held = {problem.id for problems in held_out.values() for problem in problems}
    return tuple(
        SourceRows(
            name,
            len(problems),
            config.weight,
            source.left_out + sum(p.id not in held for p in source.problems) - len(problems),
        )
        for (name, config), source, problems in zip(configs.items(), sources, train, strict=True)
    )


def _augment(
    use: str,
    reader: _Reader,
    sources: Sequence[Source],
    train: Sequence[Sequence[Problem]],
    held_out: Mapping[str, Sequence[Problem]],
    seed: int,
) -> Callable[[Problem, int], Problem]:
    """``augmented(problem, epoch)``, tried on some rows. A row that became a held-out problem stays as it was."""
    homes = {problem.id: source for source in sources for problem in source.problems}
    held = {problem_key(problem) for problems in held_out.values() for problem in problems}

    def read(problem: Problem, row: Row) -> Problem:
        source = homes[problem.id]
        parts = source.shape.read(row, supervised=True)
        if not parts.learnable:
            raise ProblemFileError(f'{row.place}, column "label": false, so nothing is to be learned. Leave it true.')
        changed = reader.store(source, Problem(problem.id, parts.prompt, parts.columns))
        return problem if problem_key(changed) in held else changed

    rows = {id: row for source in sources for id, row in source.rows.items()}
    augmented = load_augment(use, rows, read, seed)
    for problem in [problem for problems in train for problem in problems[:AUGMENT_TRIALS]]:
        augmented(problem, 0)
    return augmented


def _split_order(name: str) -> tuple[int, str]:
    return ({"dev": 0, "test": 1}.get(name, 2), name)
