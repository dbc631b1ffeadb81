"""``loopwise improve``: a model, prompts and feedback in; a better model and an honest report out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from loopwise import loop
from loopwise.config.methods import rows_config
from loopwise.config.recipes import ImproveRecipe
from loopwise.errors import LoopwiseError
from loopwise.evaluate.loading import load_feedback
from loopwise.evaluate.rewards import RewardSum
from loopwise.evaluate.sources import Surroundings
from loopwise.generate.check import check_sampling
from loopwise.generate.local import LocalGenerator
from loopwise.loop import Position
from loopwise.measuring import Parts
from loopwise.models.policy import Policy
from loopwise.observer import Observer
from loopwise.remote.client import find_endpoint
from loopwise.remote.generator import RemoteGenerator
from loopwise.results import Result, conclude, write_policy
from loopwise.runtime import Runtime, make_runtime, run_async
from loopwise.session import Run, Stages
from loopwise.stages import endpoints
from loopwise.stages.beginning import beginning
from loopwise.stages.controls import Figures, OneAtATime, SideRuns, control_recipe, failure_of, run_id, stage_name
from loopwise.stages.promises import check_promises, check_refinement, check_rows
from loopwise.stages.updates import Built, build_update
from loopwise.starting import (
    TRIAL_PROBLEMS,
    comparable,
    reward_fingerprint,
    row_counts,
    start_policy,
    tell_rows,
    texts_of,
    try_rewards,
)
from loopwise.tasks.base import Streams
from loopwise.tasks.curriculum import check_curriculum
from loopwise.tasks.rewards import with_task_rewards
from loopwise.tasks.streams import open_streams
from loopwise.types import Feedback, FeedbackSource, Generator, Problem, Sample, Update
from loopwise.update.rows import Encoding
from loopwise.workspace import BASE, Workspace

RUN_ID = "improve"


@dataclass(frozen=True)
class Given:
    """What Python puts in the place of a recipe's own parts; None leaves the recipe's."""

    rewards: Sequence[Callable[..., Any]] | None = None
    update: Update | None = None
    generator: Generator | None = None
    policy: Policy | None = None

    @property
    def own_parts(self) -> bool:
        """Whether update, generator and rewards are those of the recipe."""
        return self.rewards is None and self.update is None and self.generator is None


NOTHING = Given()


@dataclass(frozen=True)
class Trial:
    """Real samples of a few problems, drawn before the run, and what the rewards said of them."""

    samples: tuple[Sample, ...]
    feedback: Feedback


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
    trial: Trial
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
            recipe=self.recipe,
            streams=self.streams,
            runtime=self.runtime,
            update=self.update,
            generator=self.generator,
            feedback=self.feedback,
            report=self.report,
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
    given = Given(rewards=rewards, update=update, generator=generator, policy=policy)
    with beginning(ImproveRecipe, recipe, out, RUN_ID, resume=resume, observer=observer) as start:
        prepared = prepare(start.stack, start.recipe, start.threads, given, trial=not resume)
        workspace = start.open_workspace()
        return finish(workspace, start.recipe, improve_in(workspace, prepared, start.observer), start.began)


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
    given: Given = NOTHING,
    *,
    trial: bool = True,
) -> Prepared:
    """Resolve everything a recipe names and try it: rows, model, rewards on three real samples. Writes nothing.

    What has to be closed (reward workers, endpoints) is entered on ``stack``. Without ``trial`` no samples are drawn.
    Raises LoopwiseError for anything a person can mend.
    """
    check_promises(recipe)
    recipe = with_task_rewards(recipe)
    runtime = make_runtime(recipe.runtime, recipe.seed, threads)
    opened = open_streams(recipe.data, recipe.seed, supervised=False)
    streams = opened.without_references() if recipe.label_free else opened
    remote = endpoints.enter_endpoints(stack, recipe.endpoints)
    generator, around = _generators(recipe, remote, runtime, given.generator)
    feedback, report = _judges(stack, recipe, given.rewards, streams.reference_columns, around)
    check_refinement(recipe, feedback)
    base = given.policy or start_policy(recipe.model, runtime, lambda: texts_of(streams))
    compared: Mapping[str, Encoding] = {}
    if recipe.gate.metric == "likelihood":
        streams, compared = comparable(base, streams, rows_config(recipe.update))
    built = Built(given.update) if given.update is not None else build_update(recipe, streams, base, runtime)
    loop.check_needs(built.update, generator.offers, reference=base.weights is not None)
    check_rows(recipe, streams, base)
    if recipe.curriculum:
        check_curriculum(streams)
    if isinstance(generator, LocalGenerator):
        check_sampling(base, runtime)
    tried = Trial((), Feedback.empty(0))
    if trial:
        samples, judged = try_rewards(recipe, base, generator, _first(streams), feedback)
        tried = Trial(samples, judged)
        if report is not None:
            run_async(report.asking(base).check(_first(opened), samples))
    return Prepared(
        recipe=recipe,
        runtime=runtime,
        streams=streams,
        base=base,
        update=built.update,
        generator=generator,
        feedback=feedback,
        report=report,
        trial=tried,
        own_parts=given.own_parts,
        encodings={**built.encodings, **compared},
        read_besides=built.fingerprint,
        remote=remote,
    )


def _generators(
    recipe: ImproveRecipe, remote: endpoints.Endpoints, runtime: Runtime, given: Generator | None
) -> tuple[Generator, Surroundings]:
    """Who draws the samples, and what judges may use; ``given`` takes the place of the recipe's generator."""
    local = LocalGenerator(runtime)
    generator: Generator = local
    if given is not None:
        generator = given
    elif recipe.generator:
        generator = RemoteGenerator(find_endpoint(remote, recipe.generator, 'key "generator"'))
    elif recipe.model.endpoint:
        generator = RemoteGenerator(find_endpoint(remote, recipe.model.endpoint, 'key "model.endpoint"'))
    around = Surroundings(
        runtime=runtime,
        # A judge that asks the policy asks the model itself, whoever writes the samples for it.
        writer=local if recipe.model.endpoint is None else generator,
        local=local,
        endpoints=remote,
        seed=recipe.seed,
        samples=recipe.samples,
    )
    return generator, around


def _first(streams: Streams) -> Sequence[Problem]:
    """The problems that rewards are tried on."""
    return streams.draw(1, TRIAL_PROBLEMS)[:TRIAL_PROBLEMS]


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
