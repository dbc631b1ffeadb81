"""What every stage does before its first round: the thread count, the policy, rewards tried on real samples."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from loopwise.blocks import ModelConfig, RewardConfig
from loopwise.config import ImproveRecipe, Recipe, TuneRecipe
from loopwise.data.formats import fingerprint
from loopwise.errors import ResumeError
from loopwise.evaluate.rewards import RewardSum
from loopwise.models.folders import load_policy
from loopwise.models.lora import with_lora
from loopwise.models.policy import Policy
from loopwise.models.presets import create_policy
from loopwise.runs.journal import Journal
from loopwise.runtime import Runtime, run_async, seed_key
from loopwise.tasks.base import Streams
from loopwise.types import Feedback, Generator, Message, Problem, Request, Sample, Sampling
from loopwise.workspace import JOURNAL, check_out

TRIAL_PROBLEMS = 3
TEXTS = 1000
"""Problems of a first round that a tokenizer is trained on, beside the labelled rows."""


def sampling_of(recipe: Recipe) -> Sampling:
    """The recipe's sampling block as the generators' type."""
    return Sampling(**recipe.sampling.model_dump())


def start_policy(model: ModelConfig, runtime: Runtime, texts: Callable[[], Iterable[str]]) -> Policy:
    """The policy a recipe starts from: loaded, or created its tokenizer trained on ``texts()``."""
    policy = create_policy(model, runtime, texts) if model.create else load_policy(str(model.path), runtime)
    return with_lora(policy, model.lora, runtime) if model.lora else policy


def texts_of(streams: Streams) -> Iterator[str]:
    """What a tokenizer is trained on: labelled prompts and completions, and some of the problems to come."""
    for problem in streams.labelled:
        yield from _texts(problem.prompt)
        yield from _texts(streams.completion(problem))
    for problem in streams.draw(1, TEXTS):
        yield from _texts(problem.prompt)


def _texts(content: str | Sequence[Message]) -> Iterator[str]:
    yield from [content] if isinstance(content, str) else (message["content"] for message in content)


def recorded_threads(out: Path, run_id: str, *, resume: bool) -> int | None:
    """Check ``out`` before anything is loaded; the thread count a resumed run was started with, None for a new one.

    Another count would round differently. Raises OutputExistsError, ResumeError.
    """
    check_out(out, resume=resume)
    if not resume:
        return None
    # For writing: a journal whose making was cut short has no tables yet, and gets them now.
    with contextlib.closing(Journal.open(out / JOURNAL)) as journal:
        row = journal.run(run_id)
        others = [run.run_id for run in journal.runs()]
    if row is None and others:
        raise ResumeError(f"{out}: holds the run {others[0]}, not {run_id}. Go on with `loopwise runs resume {out}`.")
    return row.threads if row else None


def try_rewards(
    recipe: ImproveRecipe | TuneRecipe,
    base: Policy,
    generator: Generator,
    problems: Sequence[Problem],
    feedback: RewardSum,
) -> tuple[tuple[Sample, ...], Feedback]:
    """A real sample of each problem, judged. Raises RewardError when a reward breaks its contract on them."""
    requests = [
        Request(f"trial/{place}", problem, place, 0, seed_key(recipe.seed, "trial", place))
        for place, problem in enumerate(problems)
    ]
    samples = run_async(generator.generate(base, requests, sampling_of(recipe)))
    return tuple(samples), run_async(feedback.check(problems, samples))


def reward_fingerprint(rewards: Sequence[RewardConfig]) -> dict[str, str]:
    """The content of every reward file a recipe names."""
    files = [reward.use.rpartition(":")[0] for reward in rewards if ":" in reward.use]
    return {f"reward file {file}": fingerprint(file) for file in files}
