"""What a model was trained on, as far as the journals of its runs tell, and which prompts it has met there."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loopwise.config.blocks import CorpusConfig, DataConfig
from loopwise.config.reading import parse_recipe
from loopwise.config.recipes import ImproveRecipe, PretrainRecipe, TuneRecipe
from loopwise.data.arrow import is_hub_name
from loopwise.data.corpus import open_corpus
from loopwise.data.streams import problem_key
from loopwise.errors import DataError, LoopwiseError
from loopwise.evaluate.overlap import Overlap, Seen, counts, find_overlaps, text_of
from loopwise.runs.journal import Journal
from loopwise.runs.rows import RunRow
from loopwise.stages.controls import run_id as control_run
from loopwise.stages.generation import MODEL
from loopwise.tasks.streams import open_streams
from loopwise.types import Problem
from loopwise.workspace import BASE, JOURNAL

RECIPES: dict[str, Any] = {"pretrain": PretrainRecipe, "tune": TuneRecipe, "improve": ImproveRecipe}
DEMO = "demo"
EXAMPLES = 5
PIECE = 2**20
"""Characters of plain text that are looked through at once."""
Key = Callable[[Problem], str]


@dataclass
class Training:
    """What a model was trained on: ``sources`` with how many prompts or documents each, and what is ``unknown``.

    ``known``: there is a run to tell of it at all. ``problems`` come with their places, ``texts`` are plain text.
    """

    known: bool = False
    problems: list[tuple[str, Problem]] = field(default_factory=list)
    texts: list[Seen] = field(default_factory=list)
    sources: Counter[str] = field(default_factory=Counter)
    unknown: list[str] = field(default_factory=list)

    def add(self, source: str, problems: Sequence[Problem]) -> None:
        """Take in problems."""
        self.problems += [(problem.place or source, problem) for problem in problems]
        if problems:
            self.sources[source] += len(problems)

    def seen(self, key: Key = problem_key) -> Iterator[Seen]:
        """Everything, with what makes a problem the same as one of those that ``key`` is for."""
        for place, problem in self.problems:
            yield Seen(place, text_of(problem.prompt), keys_of(problem, key))
        yield from self.texts


def keys_of(problem: Problem, key: Key) -> frozenset[str]:
    """What makes two problems the same one: the prompt, and where a task knows better, its own ``key`` as well."""
    return frozenset({problem_key(problem), f"task {key(problem)}"})


def training_of(model: str) -> Training:
    """What the model in a folder (a run's, or the model or base inside one) was trained on, there and before.

    Prompts are those that rollouts of training drew, labelled rows, and plain text where its files are still there.
    """
    training = Training()
    path: str | None = model
    visited: set[Path] = set()
    while path is not None:
        found = _run_folder(Path(path))
        if found is None:
            training.unknown.append(f"{path}: no run of loopwise, so nobody knows what it was trained on")
            return training
        folder, is_base = found
        if folder.resolve() in visited:
            return training
        visited.add(folder.resolve())
        training.known = True
        path = _read_run(training, folder, is_base)
    return training


def contamination(
    model: str, training: Training, problems: Sequence[Problem], key: Key = problem_key
) -> tuple[dict[str, Any], dict[int, Overlap]]:
    """How many of ``problems`` [P] the model has met in training, with examples; and all of them by their places.

    ``key`` is that of the task they are from. It is asked of all that was seen: tasks of another name, and row files,
    may hold the same problems.
    """
    if not training.known:
        return {"model": model, "known": False, "problems": len(problems)}, {}
    texts = [text_of(problem.prompt) for problem in problems]
    found = find_overlaps(texts, [keys_of(problem, key) for problem in problems], training.seen(key))
    examples = [{"prompt": texts[place][:200], **asdict(overlap)} for place, overlap in list(found.items())[:EXAMPLES]]
    summary = {"model": model, "known": True, "problems": len(problems), "met": len(found), **counts(found)}
    return {**summary, "examples": examples}, found


def _run_folder(path: Path) -> tuple[Path, bool] | None:
    """The folder of the run that this model is of, and whether it is what that began with; None without a journal."""
    if (path / JOURNAL).is_file():
        return path, False
    known = path.name in (MODEL, BASE) and (path.parent / JOURNAL).is_file()
    return (path.parent, path.name == BASE) if known else None


def _read_run(training: Training, folder: Path, is_base: bool) -> str | None:
    """Take in what the runs of a folder trained on, of a base those before the last; where their model came from.

    None where it was made there.
    """
    with closing(Journal.open(folder / JOURNAL, read_only=True)) as journal:
        runs = journal.runs()
        controls = {control_run(name) for name in ("labelled", "unfiltered", "gold")}
        own = [run for run in runs if run.kind in RECIPES and run.run_id not in controls]
        for run in own[:-1] if is_base else own:
            try:
                _take_in(training, folder, journal, run)
            except (LoopwiseError, OSError) as error:
                training.unknown.append(f"{folder}, {run.run_id}: its data cannot be read any more ({error})")
    # The demo hands its first run's model to the second, whatever the recipe of that says.
    first = own[:1] if any(run.kind == DEMO for run in runs) else own[-1:]
    origin = first[0].config.get("model", {}).get("path") if first else None
    return None if origin is None else str(origin)


def _take_in(training: Training, folder: Path, journal: Journal, run: RunRow) -> None:
    if run.kind == "pretrain":
        _take_in_text(training, folder, run)
        return
    # Of every round: one that was cut short may have left its mark in a checkpoint.
    drawn = list(journal.problems(run.run_id, journal.drawn(run.run_id)).values())
    training.add(f"{folder}, {run.run_id}: problems drawn in training", drawn)
    supervised = run.kind == "tune"
    if not (supervised or run.config["data"].get("labelled") or not drawn):
        return
    recipe = parse_recipe(RECIPES[run.kind], run.config, str(folder))
    _check_local(recipe.data)
    # The folder may be a stranger's, and the Python that its recipe names is not to be run to measure it.
    streams = open_streams(recipe.data.model_copy(update={"augment": None}), recipe.seed, supervised=supervised)
    for name, content in streams.fingerprint.items():
        if run.fingerprint.get(name, content) != content:
            training.unknown.append(f"{folder}, {run.run_id}: the file of {name} has changed since")
    training.add(f"{folder}, {run.run_id}: labelled rows", streams.labelled)
    if recipe.data.augment:
        training.unknown.append(f"{folder}, {run.run_id}: rows were changed by {recipe.data.augment}")
    if not (supervised or drawn):  # an update that takes gold answers draws no samples
        for row in journal.rounds(run.run_id):
            if row.round > 0:
                problems = streams.draw(row.round, recipe.problems)
                training.add(f"{folder}, {run.run_id}: problems drawn in training", problems)


def _check_local(data: DataConfig | CorpusConfig) -> None:
    """Raise DataError naming a dataset on the hub: what a folder's journal names is not fetched."""
    train = [data.train] if isinstance(data.train, str) else [source.path for source in data.train or ()]
    more = (data.labelled, *data.skills) if isinstance(data, DataConfig) else ()
    for path in (*train, data.dev, data.test, *more):
        if isinstance(path, str) and is_hub_name(path) and not os.path.exists(path):
            raise DataError(f"{path} is no file here, and the hub is not looked at")


def _take_in_text(training: Training, folder: Path, run: RunRow) -> None:
    recipe = parse_recipe(PretrainRecipe, run.config, str(folder))
    _check_local(recipe.data)
    corpus = open_corpus(recipe.data, recipe.seed)
    for name, content in corpus.fingerprint.items():
        if run.fingerprint.get(name, content) != content:
            training.unknown.append(f"{folder}, {run.run_id}: {name} has changed since")
    for source in corpus.sources:
        for document in source.documents:
            training.texts.extend(Seen(document.place, piece) for piece in _pieces(document.text))
        training.sources[f"{folder}, {run.run_id}: text of {source.name}"] += len(source.documents)


def _pieces(text: str) -> Iterator[str]:
    """A text in pieces of whole lines."""
    first = 0
    while len(text) - first > PIECE:
        last = text.rfind("\n", first, first + PIECE) + 1 or first + PIECE
        yield text[first:last]
        first = last
    yield text[first:]
