"""``loopwise improve``: a model, prompts and feedback in; a better model and an honest report out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from loopwise import loop
from loopwise.config.methods import RFTConfig, rows_config
from loopwise.config.reading import load_recipe
from loopwise.config.recipes import ImproveRecipe
from loopwise.errors import ConfigError, LoopwiseError, nearest
from loopwise.evaluate.rewards import RewardSum, load_feedback
from loopwise.evaluate.sources import Surroundings
from loopwise.generate.check import check_sampling
from loopwise.generate.local import LocalGenerator
from loopwise.loop import Position
from loopwise.measuring import Parts
from loopwise.models.policy import Policy
from loopwise.models.tokens import encode_fitting
from loopwise.observer import Observer
from loopwise.remote.client import Endpoint
from loopwise.remote.generator import RemoteGenerator
from loopwise.results import Result, conclude, write_policy
from loopwise.runtime import Runtime, make_runtime, run_async
from loopwise.session import Run, Stages
from loopwise.stages import endpoints
from loopwise.stages.controls import Figures, OneAtATime, SideRuns, control_recipe, failure_of, run_id, stage_name
from loopwise.stages.updates import build_update, uses_gold
from loopwise.starting import (
    TRIAL_PROBLEMS,
    comparable,
    recorded_threads,
    reward_fingerprint,
    row_counts,
    start_policy,
    take_place,
    tell_rows,
    texts_of,
    try_rewards,
)
from loopwise.tasks.base import Streams
from loopwise.tasks.curriculum import check_curriculum
from loopwise.tasks.rewards import with_task_rewards
from loopwise.tasks.streams import open_streams
from loopwise.types import Feedback, FeedbackSource, Generator, Sample, Update
from loopwise.update.rows import Encoding, encode_labelled
from loopwise.workspace import BASE, Workspace, open_workspace

RUN_ID = "improve"


@dataclass(frozen=True)
class Prepared:
    """A recipe with everything resolved and tried, before anything is written.

    ``encodings`` say what became of the labelled rows, and of each split that is compared by likelihood;
    ``read_besides`` names what else the update reads, as a teacher, by its content.
    """

    recipe: ImproveRecipe
    runtime: Runtime
    streams: Streams
    base: Policy
    update: Update
    generator: Generator
    feedback: FeedbackSource
    report: FeedbackSource | None
    trial: tuple[Sample, ...]
    trial_feedback: Feedback
    own_parts: bool
    encodings: Mapping[str, Encoding]
    read_besides: Mapping[str, str]
    remote: endpoints.Endpoints

    def attach(self, workspace: Workspace, run: str = "") -> None:
        """Keep what remote models are paid for in the run's folder, from now on."""
        endpoints.attach(self.remote, workspace, run)

    def as_run(self, name: str) -> Run:
        """What the journal knows as run ``name``."""
        parts = Parts(
            self.recipe,
            self.streams,
            self.runtime,
            self.update,
            self.generator,
            self.feedback,
            self.report,
            watched=self.streams.watch,
            exhausted=partial(endpoints.exhausted, self.remote),
        )
        named = (*self.recipe.rewards, *self.recipe.report_rewards, *self.recipe.critics)
        rewards = named if self.own_parts else ()
        origin = "from the recipe" if self.own_parts else "from Python"
        fingerprint = {**reward_fingerprint(rewards), "update, generator and rewards": origin, **self.read_besides}
        return Run(name, "improve", parts, self.base, fingerprint)


@dataclass(frozen=True)
class Ended:
    """Figures of every stage, the loop's last position, what became of rows; ``failure`` is what kept controls from
    their figures, ``spent`` what remote models were paid for."""

    stages: Stages
    position: Position
    encodings: Mapping[str, Encoding]
    failure: LoopwiseError | None = None
    spent: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def improve(
    recipe: ImproveRecipe | str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    observer: Observer | None = None,
    rewards: Sequence[Callable[..., Any]] | None = None,
    update: Update | None = None,
    generator: Generator | None = None,
    policy: Policy | None = None,
) -> Result:
    """Run the loop of a recipe into the new folder ``out`` (or go on with it) and return the best accepted model.

    ``rewards`` are Python functions with TRL's signature that take the place of the recipe's; ``update``,
    ``generator`` and ``policy`` may replace the recipe's own. Raises LoopwiseError for anything a person can mend,
    before anything is written.
    """
    began = time.monotonic()
    out = Path(out)
    if not isinstance(recipe, ImproveRecipe):
        recipe = load_recipe(ImproveRecipe, recipe)
    with ExitStack() as stack:
        observer = take_place(stack, observer)
        threads = recorded_threads(out, RUN_ID, resume=resume)
        prepared = prepare(stack, recipe, threads, rewards, update, generator, policy, trial=not resume)
        workspace = stack.enter_context(
            open_workspace(out, resume=resume, note=observer.note, disk_wait=recipe.runtime.disk_wait)
        )
        return finish(workspace, recipe, improve_in(workspace, prepared, observer), began)


def improve_in(workspace: Workspace, prepared: Prepared, observer: Observer) -> Ended:
    """The loop and its controls in an open workspace: figures of every stage, and where the loop ended.

    With ``runtime.processes`` above 1 the controls run beside the loop, unless parts of it were replaced from Python;
    one that fails there is left out of the stages, and costs the loop nothing.
    """
    recipe = prepared.recipe
    shared = OneAtATime(observer)
    workspace = replace(workspace, note=shared.note)
    tell_rows(shared, prepared.encodings)
    _save_base(workspace, prepared)
    prepared.as_run(RUN_ID).enter(workspace)
    prepared.attach(workspace)
    beside = recipe.runtime.processes - 1 if prepared.own_parts else 0
    stages: Stages = {}
    failures: list[LoopwiseError] = []
    with SideRuns(workspace.out, max(1, beside), shared) as side:
        if beside:
            side.start(recipe.controls)
        session, position = prepared.as_run(RUN_ID).go(workspace, shared)
        stages["base"] = session.stage(prepared.base, 0, "base")
        for name in recipe.controls:
            if not beside:
                stages[stage_name(name)] = run_control(prepared, workspace, name, shared)
                continue
            try:
                stages[stage_name(name)] = side.finish(name)
            except LoopwiseError as error:
                failures.append(error)
    stages["improved"] = session.stage(position.incumbent, position.incumbent_round, "improved")
    failure = failure_of(failures, workspace.out)
    return Ended(stages, position, prepared.encodings, failure, endpoints.spent(prepared.remote))


def finish(workspace: Workspace, recipe: ImproveRecipe, ended: Ended, began: float) -> Result:
    """Write the result of the loop. Raises, after that, the error of a control that failed beside it."""
    rows = row_counts(ended.encodings)
    more = {**({"rows": rows} if rows else {}), **({"endpoints": ended.spent} if ended.spent else {})}
    result = conclude(workspace, RUN_ID, recipe, ended.stages, ended.position, began, more)
    if ended.failure is not None:
        raise ended.failure
    return result


def prepare(
    stack: ExitStack,
    recipe: ImproveRecipe,
    threads: int | None = None,
    rewards: Sequence[Callable[..., Any]] | None = None,
    update: Update | None = None,
    generator: Generator | None = None,
    policy: Policy | None = None,
    *,
    trial: bool = True,
) -> Prepared:
    """Resolve everything a recipe names and try it: rows, model, rewards on three real samples. Writes nothing.

    What has to be closed (reward workers) is entered on ``stack``.
    """
    _check_promises(recipe)
    recipe = with_task_rewards(recipe)
    runtime = make_runtime(recipe.runtime, recipe.seed, threads)
    opened = open_streams(recipe.data, recipe.seed, supervised=False)
    streams = opened.without_references() if recipe.label_free else opened
    own_parts = rewards is None and update is None and generator is None
    remote = endpoints.enter_endpoints(stack, recipe.endpoints)
    local = LocalGenerator(runtime)
    writer = recipe.generator or recipe.model.endpoint
    if generator is None:
        generator = RemoteGenerator(_endpoint(remote, writer)) if writer else local
    around = Surroundings(
        runtime=runtime,
        generator=local if recipe.model.endpoint is None else generator,
        endpoints=remote,
        seed=recipe.seed,
        samples=recipe.samples,
        label_free=recipe.label_free,
    )
    feedback, report = _judges(stack, recipe, rewards, streams.reference_columns, around)
    _check_refinement(recipe, feedback)
    base = policy or start_policy(recipe.model, runtime, lambda: texts_of(streams))
    encodings: dict[str, Encoding] = {}
    if recipe.gate.metric == "likelihood":
        streams, encodings = comparable(base, streams, rows_config(recipe.update))
    besides: Mapping[str, str] = {}
    if update is None:
        built = build_update(recipe, streams, base, runtime)
        update, besides, encodings = built.update, built.fingerprint, {**built.encodings, **encodings}
    loop.check_needs(update, generator.offers, reference=base.weights is not None)
    _check_rows(recipe, streams, base)
    if recipe.curriculum:
        check_curriculum(streams)
    if isinstance(generator, LocalGenerator):
        check_sampling(base, runtime)
    samples: tuple[Sample, ...] = ()
    judged = Feedback.empty(0)
    if trial:
        tried = list(streams.draw(1, TRIAL_PROBLEMS))[:TRIAL_PROBLEMS]
        samples, judged = try_rewards(recipe, base, generator, tried, feedback)
        if report is not None:
            run_async(report.asking(base).check(opened.draw(1, TRIAL_PROBLEMS)[:TRIAL_PROBLEMS], samples))
    return Prepared(
        recipe,
        runtime,
        streams,
        base,
        update,
        generator,
        feedback,
        report,
        samples,
        judged,
        own_parts,
        encodings,
        besides,
        remote,
    )


def _judges(
    stack: ExitStack,
    recipe: ImproveRecipe,
    rewards: Sequence[Callable[..., Any]] | None,
    columns: Sequence[str],
    around: Surroundings,
) -> tuple[RewardSum, RewardSum | None]:
    """What judges the samples, and what only reports on them; ``rewards`` take the place of the recipe's."""
    told = None
    if rewards:
        feedback = RewardSum.from_functions(rewards, reference_columns=columns, label_free=recipe.label_free)
    else:
        feedback = load_feedback(
            recipe.rewards,
            critics=recipe.critics,
            reference_columns=columns,
            label_free=recipe.label_free,
            surroundings=around,
        )
    stack.enter_context(feedback)
    if recipe.report_rewards:
        report = load_feedback(recipe.report_rewards, reference_columns=columns, label_free=False, surroundings=around)
        told = stack.enter_context(report)
    return feedback, told


def _endpoint(remote: endpoints.Endpoints, name: str) -> Endpoint:
    if name not in remote:
        raise ConfigError(f'"{name}" is none of the endpoints. {nearest(name, remote)} Name it under "endpoints:".')
    return remote[name]


def _check_refinement(recipe: ImproveRecipe, feedback: RewardSum) -> None:
    """Refuse a refinement of held-out answers that could not be measured, and keys of it that nothing reads."""
    refine = recipe.refine
    if refine is None:
        return
    mend = "Set refine.held_out: false, or leave refine out."
    if refine.held_out and recipe.gate.metric == "likelihood":
        raise ConfigError(f'key "refine": gate.metric: likelihood draws no held-out answers to revise. {mend}')
    if refine.held_out and feedback.compares:
        raise ConfigError(
            f'key "refine": {feedback.name} sets the samples of a problem beside each other, and held-out answers are '
            f"revised one by one. {mend}"
        )
    if not refine.held_out and refine.changed("revisions"):
        raise ConfigError(
            'key "refine.revisions": is of held-out answers, and does nothing with held_out: false; ilf draws '
            "update.revisions of each draft. Leave it out."
        )


def _check_promises(recipe: ImproveRecipe) -> None:
    told = [name for name in ("truth", "pass_at_k") if getattr(recipe.monitors, name).roll_back is not None]
    if recipe.label_free and recipe.report_rewards and told:
        raise ConfigError(
            f'key "monitors.{told[0]}.roll_back": report_rewards know the truth, which decides nothing in a label_free '
            "run. Leave it out; warn may stay."
        )
    if recipe.label_free and recipe.gate.metric == "likelihood":
        raise ConfigError('key "gate.metric": likelihood reads references, which a label_free run may not. Use reward.')
    if recipe.label_free and "gold" in recipe.controls:
        raise ConfigError('key "controls": gold trains on references, which a label_free run may not. Leave it out.')
    if recipe.label_free and uses_gold(recipe.update):
        key, mend = "method", "Take a method that learns from rewards alone, such as dpo."
        if isinstance(recipe.update, RFTConfig):
            key, mend = "keep", "Leave it out."
        raise ConfigError(f'key "update.{key}": it trains on references, which a label_free run may not. {mend}')
    if recipe.label_free and recipe.data.labelled:
        raise ConfigError(
            'key "data.labelled": a label_free run learns from no labelled rows. Leave it out, and give the model what '
            "labels there are with `loopwise tune` before."
        )
    if "labelled" in recipe.controls and not recipe.data.labelled:
        raise ConfigError('key "controls": labelled needs labelled rows. Name them with data.labelled.')


def _check_rows(recipe: ImproveRecipe, streams: Streams, base: Policy) -> None:
    """Refuse rows that the run would only stumble over later: prompts too long, completions that are not there."""
    train = streams.draw(1, streams.train_count) if streams.train_count else ()
    if base.weights is not None:
        for name, problems in {**streams.held_out, "train": train}.items():
            encode_fitting(base, problems, recipe.sampling.max_tokens, name)
    if uses_gold(recipe.update) or "gold" in recipe.controls:
        encode_labelled(base, train, list(map(streams.completion, train)), rows_config(recipe.update), "train")


def run_control(prepared: Prepared, workspace: Workspace, name: str, observer: Observer) -> Figures:
    """Run (or go on with) a control of a prepared recipe to its end; the figures of its result."""
    session, position = control(prepared, name).as_run(run_id(name)).go(workspace, observer)
    figures = session.stage(position.incumbent, position.incumbent_round, stage_name(name))
    workspace.store(lambda: workspace.journal.set_status(run_id(name), "finished"))
    return figures


def control(prepared: Prepared, name: str) -> Prepared:
    """What a control is made of: all the same but what it learns from."""
    recipe = control_recipe(prepared.recipe, name)
    built = build_update(recipe, prepared.streams, prepared.base, prepared.runtime)
    return replace(prepared, recipe=recipe, update=built.update, read_besides=built.fingerprint)


def _save_base(workspace: Workspace, prepared: Prepared) -> None:
    """Keep the base beside the result: to compare with, and for controls in processes of their own."""
    folder = workspace.out / BASE

    def write() -> None:
        if not folder.exists():
            write_policy(prepared.base, folder)

    if prepared.base.weights is not None:
        workspace.store(write)
