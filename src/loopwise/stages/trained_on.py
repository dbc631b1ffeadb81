"""What a model was trained on, as far as the journals of its run and of those before it tell."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loopwise.config.blocks import CorpusConfig, DataConfig, RuntimeConfig
from loopwise.config.methods import DistillConfig, PairsConfig
from loopwise.config.reading import parse_recipe
from loopwise.config.recipes import ImproveRecipe, PretrainRecipe, TuneRecipe
from loopwise.data.arrow import is_hub_name
from loopwise.data.corpus import open_corpus
from loopwise.errors import DataError, LoopwiseError
from loopwise.evaluate.overlap import Seen, text_of
from loopwise.runs.journal import Journal
from loopwise.runs.rows import RunRow
from loopwise.runtime import make_runtime
from loopwise.stages.controls import KEEPS
from loopwise.stages.controls import run_id as control_run
from loopwise.stages.finetune import REJECTED
from loopwise.stages.generation import MODEL
from loopwise.starting import start_policy
from loopwise.tasks.base import Streams
from loopwise.tasks.streams import open_streams
from loopwise.types import Completion, Problem
from loopwise.workspace import BASE, JOURNAL

RECIPES: dict[str, Any] = {"pretrain": PretrainRecipe, "tune": TuneRecipe, "improve": ImproveRecipe}
DEMO = "demo"
TRAINED_JUDGE = "trained_judge"
PIECE = 2**20
"""Characters of plain text that are looked through at once."""


@dataclass
class Training:
    """What a model was trained on: ``sources`` with how many prompts or documents each, and what is ``unknown``.

    ``known``: there is a run to tell of it at all. ``problems`` come with their places; ``texts`` are plain text and
    what was learned to follow the problems' prompts.
    """

    known: bool = False
    problems: list[tuple[str, Problem]] = field(default_factory=list)
    texts: list[Seen] = field(default_factory=list)
    sources: Counter[str] = field(default_factory=Counter)
    unknown: list[str] = field(default_factory=list)

    def add(
        self, source: str, problems: Sequence[Problem], learned: Sequence[Callable[[Problem], Completion]] = ()
    ) -> None:
        """Take in problems, and the completions ``learned`` of each: a question may stand in these as well."""
        for problem in problems:
            place = problem.place or source
            self.problems.append((place, problem))
            self.texts += [Seen(place, text_of(completion(problem))) for completion in learned]
        if problems:
            self.sources[source] += len(problems)


def training_of(model: str) -> Training:
    """What the model in a folder (a run's, or the model or base inside one) was trained on, there and before.

    Prompts are those that rollouts of training drew; labelled rows with their completions; and plain text where its
    files are still there. Where a run began with a model that its folder no longer holds, what came before is unknown.
    """
    training = Training()
    path: str | None = model
    later: RunRow | None = None
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
        with closing(Journal.open(folder / JOURNAL, read_only=True)) as journal:
            if later is not None and not _still_there(training, journal, path, later):
                return training
            training.known = True
            for run in _trained_in(journal, is_base):
                try:
                    _take_in(training, folder, journal, run)
                except (LoopwiseError, OSError) as error:
                    training.unknown.append(f"{folder}, {run.run_id}: its data cannot be read any more ({error})")
            later = _first(journal)
        path = None if later is None else later.config.get("model", {}).get("path")
    return training


def runs_behind(model: Path) -> list[RunRow]:
    """The runs that trained the model in a folder, as far as they lie there: none where it is no run's."""
    found = _run_folder(model)
    if found is None:
        return []
    folder, is_base = found
    with closing(Journal.open(folder / JOURNAL, read_only=True)) as journal:
        return _trained_in(journal, is_base)


def _run_folder(path: Path) -> tuple[Path, bool] | None:
    """The folder of the run that this model is of, and whether it is what that began with; None without a journal."""
    if (path / JOURNAL).is_file():
        return path, False
    known = path.name in (MODEL, BASE) and (path.parent / JOURNAL).is_file()
    return (path.parent, path.name == BASE) if known else None


def _own(journal: Journal) -> list[RunRow]:
    """The runs whose models follow from one another, oldest first: a control's model is nobody's beginning."""
    controls = set(map(control_run, KEEPS))
    return [run for run in journal.runs() if run.kind in RECIPES and run.run_id not in controls]


def _trained_in(journal: Journal, is_base: bool) -> list[RunRow]:
    """The runs of a journal that trained its folder's model or, before the loop, its base."""
    # By kind: a demo that was stopped has its base in the folder before the loop is in the journal.
    return [run for run in _own(journal) if not (is_base and run.kind == "improve")]


def _first(journal: Journal) -> RunRow | None:
    """The run of a journal whose recipe names the model that everything in the folder began with."""
    own = _own(journal)
    # The demo hands its first run's model to the second, whatever the recipe of that says.
    is_demo = any(run.kind == DEMO for run in journal.runs())
    return (own[0] if is_demo else own[-1]) if own else None


def _still_there(training: Training, journal: Journal, path: str, later: RunRow) -> bool:
    """Whether the model at ``path``, in the folder of ``journal``, may be the one that the run ``later`` began with.

    Says what is unknown where it is not, or where nobody can tell.
    """
    try:
        if _is_origin(journal, later):
            return True
    except (LoopwiseError, OSError) as error:
        why = f"its model cannot be read any more, so it may be another than {later.run_id} began with ({error})"
        training.unknown.append(f"{path}: {why}")
        return True
    training.unknown.append(f"{path}: holds another model now than the run {later.run_id} after it began with")
    return False


def _is_origin(journal: Journal, later: RunRow) -> bool:
    """Whether the run ``later`` began with a model of this journal. Raises LoopwiseError where it cannot be read."""
    began_with = later.fingerprint.get("model")
    measured = (row.evaluation.policy_id for run in journal.runs() for row in journal.evaluations(run.run_id))
    if began_with is None or began_with in measured:
        return True
    # Never measured, or changed since, as by merging adapters: only the weights tell, made ready as that run did it.
    recipe = parse_recipe(RECIPES[later.kind], later.config, later.run_id)
    runtime = make_runtime(RuntimeConfig(device="cpu"), recipe.seed)
    return bool(start_policy(recipe.model, runtime, tuple).id == began_with)


def _take_in(training: Training, folder: Path, journal: Journal, run: RunRow) -> None:
    name = f"{folder}, {run.run_id}"
    if run.kind == "pretrain":
        _take_in_text(training, name, run)
        return
    # Of every round: one that was cut short may have left its mark in a checkpoint.
    drawn = list(journal.problems(run.run_id, journal.drawn(run.run_id)).values())
    training.add(f"{name}: problems drawn in training", drawn)
    recipe = parse_recipe(RECIPES[run.kind], run.config, str(folder))
    if isinstance(recipe, ImproveRecipe):
        training.unknown += [f"{name}: what {other} was trained on" for other in _learned_from(recipe)]
    gold = recipe.update.uses_gold
    if not (run.kind == "tune" or recipe.data.labelled or gold):
        return
    _check_local(recipe.data)
    # The folder may be a stranger's, and the Python that its recipe names is not to be run to measure it.
    data = recipe.data.model_copy(update={"augment": None})
    streams = open_streams(data, recipe.seed, supervised=run.kind == "tune")
    for file, content in streams.fingerprint.items():
        if run.fingerprint.get(file, content) != content:
            training.unknown.append(f"{name}: the file of {file} has changed since")
    training.add(f"{name}: labelled rows", streams.labelled, _learned(streams, recipe))
    if recipe.data.augment:
        training.unknown.append(f"{name}: rows were changed by {recipe.data.augment}")
    if not gold:
        return
    if drawn:
        training.texts += [Seen(f"{name}: gold answers", text_of(streams.completion(problem))) for problem in drawn]
        return
    for row in journal.rounds(run.run_id):  # an update of gold answers alone draws no samples
        if row.round > 0:
            problems = streams.draw(row.round, recipe.problems)
            training.add(f"{name}: problems drawn in training", problems, [streams.completion])


def _learned(streams: Streams, recipe: TuneRecipe | ImproveRecipe) -> list[Callable[[Problem], Completion]]:
    """What a labelled row has to learn beside its prompt: a completion, of pairs the rejected one as well."""
    pairs = isinstance(recipe, TuneRecipe) and isinstance(recipe.update, PairsConfig)
    return [streams.completion, *([replace(streams, completion_column=REJECTED).completion] if pairs else [])]


def _learned_from(recipe: ImproveRecipe) -> Iterator[str]:
    """Other models that a run learned from; what they have met may have reached it."""
    if isinstance(recipe.update, DistillConfig):
        yield f"its teacher {recipe.update.teacher}"
    if recipe.generator is not None:
        yield f"the endpoint {recipe.generator}, which wrote its samples,"
    for judge in (*recipe.rewards, *recipe.critics):
        if judge.use == TRAINED_JUDGE:
            yield f"its judge {judge.options.get('path')}"


def _check_local(data: DataConfig | CorpusConfig) -> None:
    """Raise DataError naming a dataset on the hub: what a folder's journal names is not fetched."""
    train = [data.train] if isinstance(data.train, str) else [source.path for source in data.train or ()]
    more = (data.labelled, *data.skills) if isinstance(data, DataConfig) else ()
    for path in (*train, data.dev, data.test, *more):
        if isinstance(path, str) and is_hub_name(path) and not os.path.exists(path):
            raise DataError(f"{path} is no file here, and the hub is not looked at")


def _take_in_text(training: Training, name: str, run: RunRow) -> None:
    recipe = parse_recipe(PretrainRecipe, run.config, name)
    _check_local(recipe.data)
    corpus = open_corpus(recipe.data, recipe.seed)
    for file, content in corpus.fingerprint.items():
        if run.fingerprint.get(file, content) != content:
            training.unknown.append(f"{name}: {file} has changed since")
    for source in corpus.sources:
        for document in source.documents:
            training.texts.extend(Seen(document.place, piece) for piece in _pieces(document.text))
        training.sources[f"{name}: text of {source.name}"] += len(source.documents)


def _pieces(text: str) -> Iterator[str]:
    """A text in pieces of whole lines."""
    first = 0
    while len(text) - first > PIECE:
        last = text.rfind("\n", first, first + PIECE) + 1 or first + PIECE
        yield text[first:last]
        first = last
    yield text[first:]
