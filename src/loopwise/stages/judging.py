"""``loopwise judge``: a classifier or reward model, trained on judgements, that other runs use as a reward."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Any

from loopwise.config.recipes import JudgeRecipe, MaskedRecipe
from loopwise.data.judged import Example, Examples, open_examples
from loopwise.errors import ConfigError, DataError
from loopwise.evaluate.calibration import bound_of, fit_temperature
from loopwise.evaluate.judged import JudgedRows
from loopwise.evaluate.rewards import RewardSum
from loopwise.evaluate.stats import difference
from loopwise.generate.local import LocalGenerator
from loopwise.loop import Position
from loopwise.measuring import Parts
from loopwise.models.encoders import calibrated, most_tokens, start_judge, with_body
from loopwise.models.judges import encode_readings
from loopwise.models.policy import Policy
from loopwise.observer import Observer
from loopwise.report import write_report
from loopwise.results import Result, write_policy
from loopwise.runtime import Runtime, make_runtime
from loopwise.session import Run, Session
from loopwise.stages.beginning import beginning
from loopwise.stages.masked import MaskedTexts
from loopwise.stages.misjudged import misjudged
from loopwise.tasks.base import Streams
from loopwise.types import Update
from loopwise.update.judging import JudgedRow, Judging
from loopwise.workspace import Workspace, write_json

RUN_ID = "judge"
MASKED_RUN_ID = "masked"
TRAINED = "trained"


@dataclass(frozen=True)
class Prepared:
    """A recipe with everything resolved, before anything is written.

    ``rows`` are the examples of each split as the base reads them, and ``sources`` those examples; ``left_out`` counts
    those too long for it. ``masked`` is what the base learns to read by first, where the recipe says so.
    """

    recipe: JudgeRecipe
    runtime: Runtime
    examples: Examples
    base: Policy
    rows: Mapping[str, tuple[JudgedRow, ...]]
    sources: Mapping[str, tuple[Example, ...]]
    left_out: Mapping[str, int]
    masked: MaskedTexts | None

    @cached_property
    def judged(self) -> JudgedRows:
        """The held-out rows."""
        held_out = {name: self.rows[name] for name in self.examples.held_out}
        return JudgedRows(self.examples.kind, self.examples.labels, held_out, self.runtime)

    def as_run(self) -> Run:
        """What the journal knows it as."""
        recipe, judged = self.recipe, self.judged
        update = Judging(recipe.update, self.examples.kind, self.rows["train"], recipe.rounds)
        parts = self._parts(
            recipe,
            update,
            list(judged.splits),
            score=lambda policy, split: judged.score(policy, split, recipe.gate.metric),
            figures=lambda evaluation: judged.figures(evaluation.policy_id, evaluation.split),
        )
        return Run(RUN_ID, "judge", parts, self.base, {})

    def as_masked_run(self) -> Run | None:
        """The run before it, in which the body learns to read."""
        recipe, masked = self.recipe, self.masked
        if masked is None or recipe.masked is None:
            return None
        reading = MaskedRecipe(
            update=recipe.masked,
            rounds=recipe.masked.rounds,
            **{name: getattr(recipe, name) for name in ("model", "data", "seed", "runtime", "budget")},
        )
        splits = [name for name in ("dev",) if masked.held_out]
        parts = self._parts(reading, masked.update(recipe.masked), splits, score=masked.score)
        return Run(MASKED_RUN_ID, "masked", parts, masked.base, {})

    def _parts(
        self, recipe: JudgeRecipe | MaskedRecipe, update: Update, splits: Sequence[str], **measures: Any
    ) -> Parts:
        return Parts(
            recipe=recipe,
            streams=Streams.without_problems(splits, self.examples.fingerprint),
            runtime=self.runtime,
            update=update,
            generator=LocalGenerator(self.runtime),
            feedback=RewardSum(()),
            **measures,
        )


def train_judge(
    recipe: JudgeRecipe | str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    observer: Observer | None = None,
) -> Result:
    """Train a judge on a recipe's rows into the new folder ``out`` (or go on with it); the best round wins.

    ``out`` is then what the reward ``trained_judge`` takes as its ``path``. Raises LoopwiseError for anything a person
    can mend, before anything is written.
    """
    with beginning(JudgeRecipe, recipe, out, RUN_ID, resume=resume, observer=observer) as start:
        prepared = prepare(start.recipe, start.threads)
        workspace = start.open_workspace()
        _tell_rows(start.observer, prepared)
        run = prepared.as_run()
        files = run.enter(workspace)  # before the run that comes first: the folder is made for this one
        base = _read(workspace, prepared, start.observer)
        session = Session(run.parts, files, start.observer)
        position = session.run(base)
        return _conclude(workspace, prepared, session, base, position, start.began)


def prepare(recipe: JudgeRecipe, threads: int | None = None) -> Prepared:
    """Resolve everything a recipe names. Writes nothing."""
    runtime = make_runtime(recipe.runtime, recipe.seed, threads)
    examples = open_examples(recipe.data, recipe.seed)
    for key in recipe.update.changed("loss", "margin") if examples.kind != "preference" else ():
        raise ConfigError(f'key "update.{key}": is of preference rows, and these are {examples.kind}. Leave it out.')
    head = "labels" if examples.kind == "labels" else "score"
    texts = examples.texts
    base = start_judge(recipe.model, head, examples.reads, examples.labels, runtime, texts)
    rows: dict[str, tuple[JudgedRow, ...]] = {}
    sources: dict[str, tuple[Example, ...]] = {}
    left_out: dict[str, int] = {}
    most = most_tokens(base, recipe.update.max_length)
    for name, part in {"train": examples.train, **examples.held_out}.items():
        sources[name], rows[name] = _encode(base, part, most)
        left_out[name] = len(part) - len(rows[name])
        if not rows[name]:
            raise DataError(
                f"{recipe.data.train}: every row of {name} is longer than {most} tokens. Raise update.max_length, or "
                "take a model with a longer context."
            )
    masked = None
    if recipe.masked is not None:
        reader = start_judge(recipe.model, "tokens", examples.reads, (), runtime, texts)
        longest = most_tokens(reader, recipe.masked.max_length)
        held_out = examples.held_out.get("dev", ())
        masked = MaskedTexts.of(
            reader, _readings(examples.train), _readings(held_out), longest, recipe.masked.share, runtime
        )
    return Prepared(recipe, runtime, examples, base, rows, sources, left_out, masked)


def examine_judge(recipe: JudgeRecipe) -> dict[str, Any]:
    """What a recipe comes to, without training: its rows, its judge, and how many steps of how many rows."""
    prepared = prepare(recipe)
    weights, update = prepared.base.weights, recipe.update
    assert weights is not None
    longest = [max(max(map(len, row.texts)) for row in part) for part in prepared.rows.values()]
    return {
        "kind": prepared.examples.kind,
        "reads": prepared.examples.reads,
        "labels": len(prepared.examples.labels),
        "rows": {**prepared.examples.counts, **{f"too_long/{name}": n for name, n in prepared.left_out.items()}},
        "parameters": weights.parameter_count,
        "longest_text": max(longest),
        "most_tokens": most_tokens(prepared.base, update.max_length),
        "steps": recipe.rounds * update.steps,
        "epochs": round(recipe.rounds * update.steps * update.batch_size / len(prepared.rows["train"]), 2),
        "masked_steps": recipe.masked.rounds * recipe.masked.steps if recipe.masked else 0,
    }


def _readings(examples: Sequence[Example]) -> list[Any]:
    return [reading for one in examples for reading in one.readings]


def _encode(
    base: Policy, examples: Sequence[Example], most: int | None
) -> tuple[tuple[Example, ...], tuple[JudgedRow, ...]]:
    """The examples that have no text of more than ``most`` tokens, and what they are as token ids."""
    encoded = iter(encode_readings(base, _readings(examples)))
    rows = [JudgedRow(tuple(next(encoded) for _ in one.readings), one.label, one.margin) for one in examples]
    fitting = [most is None or max(map(len, row.texts)) <= most for row in rows]
    return tuple(compress(examples, fitting)), tuple(compress(rows, fitting))


def _tell_rows(observer: Observer, prepared: Prepared) -> None:
    counts = prepared.examples.counts
    for name in ("repeated", "contradicting"):
        if count := counts[f"dropped/{name}"]:
            observer.note("warning", f"{count:,} rows left out: a row before them has their text ({name} it)")
    for name, count in prepared.left_out.items():
        if count:
            observer.note("warning", f"{name}: {count:,} of {counts[f'{name}/rows']:,} rows left out, too long")


def _doubts(prepared: Prepared, base: Policy, best: Policy, temperature: float) -> list[str]:
    """Where the judge is not seen to have learned anything, or could not be told how sure it may be."""
    judged, metric = prepared.judged, prepared.recipe.gate.metric
    doubts = []
    if judged.splits:
        split = list(judged.splits)[-1]
        found = difference(judged.score(best, split, metric), judged.score(base, split, metric))
        if not found.low > 0:
            doubts.append(
                f"on {split} the judge is not seen to be better than before training (difference {found.value:+.3f}, "
                f"95% interval {found.low:+.3f} to {found.high:+.3f}, {found.n:,} rows): as a reward it may pay for "
                "nothing. Train it longer, at another rate, or hold out more rows."
            )
    if "dev" not in judged.splits:
        return doubts
    bound = bound_of(judged.logits(best, "dev"), judged.truth("dev"), temperature)
    if bound == "hottest":
        doubts.append(
            "the temperature is at its upper bound: what the judge is sure of does not hold on dev, and as a reward it "
            "pays almost the same for every text. Look at the rows, or train it otherwise."
        )
    elif bound == "coldest":
        doubts.append(
            "no temperature is too low for dev, as where every row is judged right: dev cannot say how sure the judge "
            "may be, and as a reward it pays all or nothing. Hold out more rows, or harder ones."
        )
    return doubts


def _fitted(judged: JudgedRows, best: Policy) -> tuple[float, float]:
    """Temperature and centre, as dev has them."""
    if "dev" not in judged.splits:
        return 1.0, 0.0
    return fit_temperature(judged.logits(best, "dev"), judged.truth("dev")), judged.centre(best, "dev")


def _read(workspace: Workspace, prepared: Prepared, observer: Observer) -> Policy:
    """The base, after it has learned to read where the recipe says so."""
    run = prepared.as_masked_run()
    if run is None:
        return prepared.base
    _, position = run.go(workspace, observer)
    workspace.store(lambda: workspace.journal.set_status(MASKED_RUN_ID, "finished"))
    return with_body(prepared.base, position.incumbent)


def _conclude(
    workspace: Workspace, prepared: Prepared, session: Session, base: Policy, end: Position, began: float
) -> Result:
    """Fit the temperature on dev; write model folder, ``metrics.jsonl``, ``summary.json`` and ``report.html``."""
    best, out = end.incumbent, workspace.out
    temperature, centre = _fitted(prepared.judged, best)
    doubts = _doubts(prepared, base, best, temperature)
    for doubt in doubts:
        session.observer.note("warning", doubt)
    for split in prepared.judged.splits:  # what an earlier process measured has its scores alone
        prepared.judged.logits(base, split)
        prepared.judged.logits(best, split)
    policy = calibrated(best, temperature, centre)
    rounds = workspace.ask(lambda journal: journal.rounds(RUN_ID))
    summary = {
        "task": Path(prepared.recipe.data.train).name,
        "seed": prepared.recipe.seed,
        "run_id": RUN_ID,
        "wall_seconds": round(time.monotonic() - began, 2),
        "stages": {
            "base": session.stage(base, 0, "base"),
            TRAINED: session.stage(best, end.incumbent_round, TRAINED),
        },
        "rounds": [row.summary for row in rounds if row.round > 0],
        "budget": asdict(end.budget),
        "rows": {**prepared.examples.counts, **{f"too_long/{name}": n for name, n in prepared.left_out.items()}},
        "judge": _described(prepared, best, temperature, centre) | {"doubts": doubts},
    }

    def write() -> None:
        write_policy(policy, out / "model")
        workspace.journal.export_metrics(RUN_ID, out / "metrics.jsonl")
        write_json(out / "summary.json", summary)
        write_report(out, summary)

    workspace.store(write)
    workspace.store(lambda: workspace.journal.set_status(RUN_ID, "finished"))
    return Result(out, policy, summary)


def _described(prepared: Prepared, best: Policy, temperature: float, centre: float) -> dict[str, Any]:
    """What there is to say of the judge, and for each held-out split what it gets right and wrong there."""
    judged, examples = prepared.judged, prepared.examples
    assert best.weights is not None
    return {
        "kind": examples.kind,
        "reads": examples.reads,
        "labels": list(examples.labels),
        "parameters": best.weights.parameter_count,
        "most_tokens": most_tokens(best),
        "temperature": temperature,
        "centre": centre,
        **{
            split: judged.report(best, split, temperature)
            | misjudged(judged, best, split, temperature, prepared.sources[split])
            for split in judged.splits
        },
    }
