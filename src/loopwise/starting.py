"""What every stage does before its first round: the thread count, the policy, rewards tried on real samples."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from loopwise.config.blocks import ModelConfig, RewardConfig
from loopwise.config.methods import OnlineConfig, SFTConfig
from loopwise.config.paths import PATH_OPTIONS
from loopwise.config.recipes import ImproveRecipe, RunRecipe, TuneRecipe
from loopwise.data.formats import fingerprint
from loopwise.errors import ResumeError
from loopwise.evaluate.rewards import RewardSum
from loopwise.generate.check import why_not_shared_prefix
from loopwise.models.encoders import PACKAGE, encoder_folder
from loopwise.models.folders import SHORT_CONTEXT, load_policy
from loopwise.models.lora import with_lora
from loopwise.models.policy import Policy
from loopwise.models.presets import create_policy
from loopwise.models.trees import why_not_shared
from loopwise.observer import Observer
from loopwise.ranks import current_ranks, joined_ranks
from loopwise.runs.journal import Journal
from loopwise.runtime import Runtime, run_async, seed_key
from loopwise.tasks.base import Streams
from loopwise.types import Feedback, Generator, Message, Problem, Request, Sample, Sampling
from loopwise.update.rows import Encoding, encode_labelled
from loopwise.update.sharding import check_shards
from loopwise.workspace import JOURNAL, check_out

TRIAL_PROBLEMS = 3
MODEL_FILES = (".json", ".safetensors", ".txt", ".model", ".jinja")
"""Endings of what a model folder is read from. Pickled weights never are."""
TEXTS = 1000
"""Prompts of a first round that a tokenizer is trained on, beside the labelled rows; at most."""


def take_place(stack: contextlib.ExitStack, observer: Observer | None) -> Observer:
    """Join the ranks that were started together, if any, for as long as ``stack`` is open.

    Returns who is told of the run: ``observer`` on the first rank, nobody on the others.
    """
    ranks = stack.enter_context(joined_ranks())
    return observer if observer is not None and ranks.first else Observer()


def sharing_in_words(policy: Policy) -> Iterator[str]:
    """Why completions of one prompt do not share it, in sampling and in training; nothing where they do."""
    if policy.weights is None:
        return
    module, context = policy.weights.module, policy.weights.context_length
    training = why_not_shared(module)
    implementation = getattr(module.config, "_attn_implementation", None)
    plain = implementation == "eager" and next(module.parameters()).device.type == "cpu"
    if plain and context is not None and context <= SHORT_CONTEXT:
        training = f"its context of {context} tokens is too short for sharing to pay"
    for what, reason in (("sampling", why_not_shared_prefix(module)), ("training", training)):
        if reason is not None:
            yield f"{what} reads prompts once for each completion, in padded batches: {reason}"


def ranks_in_words(recipe: RunRecipe, runtime: Runtime) -> Iterator[tuple[str, str]]:
    """Level and message of what there is to say of a run on several ranks."""
    world = runtime.ranks.world
    if world == 1:
        return
    yield "info", f"{world} ranks, with {runtime.threads} threads each"
    if not isinstance(recipe, ImproveRecipe):
        return
    update, unit = recipe.update, recipe.runtime.generate_batch
    problems = min(recipe.problems, update.problems_per_step) if isinstance(update, OnlineConfig) else recipe.problems
    units = math.ceil(problems / max(1, unit // recipe.samples))
    if units < world:
        shared = math.ceil(problems / world) * recipe.samples
        mend = (
            f"set runtime.generate_batch: {shared}" if problems >= world else "draw more problems, or start fewer ranks"
        )
        yield (
            "warning",
            f"a rollout is {units} work units of up to {unit} samples, and a rank draws whole ones: "
            f"{world - units} of {world} ranks have nothing to do. In the next run, {mend}.",
        )


def sampling_of(recipe: RunRecipe) -> Sampling:
    """The recipe's sampling block as the generators' type."""
    return Sampling(**recipe.sampling.model_dump())


def start_policy(model: ModelConfig, runtime: Runtime, texts: Callable[[], Iterable[str]]) -> Policy:
    """The policy a recipe starts from: loaded, or created with its tokenizer trained on ``texts()``."""
    if model.endpoint is not None:
        return Policy()
    policy = create_policy(model, runtime, texts) if model.create else load_policy(str(model.path), runtime)
    if runtime.sharded and policy.weights is not None:
        check_shards(policy.weights.module)
    return with_lora(policy, model.lora, runtime) if model.lora else policy


def texts_of(streams: Streams) -> Iterator[str]:
    """What a tokenizer is trained on: labelled prompts and completions, and some of the prompts to come."""
    for problem in streams.labelled:
        yield from _texts(problem.prompt)
        yield from _texts(streams.completion(problem))
    for prompt in streams.prompts(TEXTS):
        yield from _texts(prompt)


def _texts(content: str | Sequence[Message]) -> Iterator[str]:
    yield from [content] if isinstance(content, str) else (message["content"] for message in content)


def recorded_threads(out: Path, run_id: str, *, resume: bool) -> int | None:
    """Check ``out`` before anything is loaded; the thread count a resumed run was started with, None for a new one.

    Another count would round differently. Raises OutputExistsError, ResumeError.
    """
    return current_ranks().lead(lambda: _recorded_threads(out, run_id, resume))


def _recorded_threads(out: Path, run_id: str, resume: bool) -> int | None:
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
    """Real samples of each problem, judged: one, or two where they are set beside each other.

    Raises RewardError when a reward breaks its contract on them.
    """
    requests = [
        Request(f"trial/{place}/{index}", problem, place, index, seed_key(recipe.seed, "trial", place, index))
        for place, problem in enumerate(problems)
        for index in range(1 + feedback.compares)
    ]
    samples = run_async(generator.generate(base, requests, sampling_of(recipe)))
    return tuple(samples), run_async(feedback.asking(base).check(problems, samples))


def comparable(base: Policy, streams: Streams, config: SFTConfig) -> tuple[Streams, dict[str, Encoding]]:
    """The streams with those held-out rows whose completions can be compared by likelihood, and what became of others.

    Held-out rows are never cut, and ``config.max_length`` is for training: one over the model's context is an error, or
    left out where ``config.too_long`` is drop or truncate. Raises DataError, too, where a split has no row left.
    """
    too_long = "error" if config.too_long == "error" else "drop"
    config = config.model_copy(update={"max_length": None, "too_long": too_long})
    held_out: dict[str, Sequence[Problem]] = {}
    encodings = {}
    for name, problems in streams.held_out.items():
        completions = list(map(streams.completion, problems))
        _, encodings[name] = encode_labelled(base, problems, completions, config, name)
        held_out[name] = [problems[place] for place in encodings[name].places]
    return replace(streams, held_out=held_out), encodings


def row_counts(encodings: Mapping[str, Encoding]) -> dict[str, dict[str, int]]:
    """What became of rows, for ``summary.json``."""
    return {
        name: {key: value for key, value in asdict(encoding).items() if key != "places"}
        for name, encoding in encodings.items()
    }


def tell_rows(observer: Observer, encodings: Mapping[str, Encoding]) -> None:
    """Say what became of rows that were not taken whole."""
    for name, encoding in encodings.items():
        found = {"left out, too long or empty": encoding.dropped, "cut at the limit": encoding.truncated}
        for what, count in found.items():
            if count:
                observer.note("warning", f"{name}: {count:,} of {encoding.rows + encoding.dropped:,} rows {what}")


def reward_fingerprint(rewards: Sequence[RewardConfig]) -> dict[str, str]:
    """The content of every file a reward is made of, and of every model that it asks."""
    files = [reward.use.rpartition(":")[0] for reward in rewards if ":" in reward.use]
    found = {f"reward file {file}": fingerprint(file) for file in files}
    for reward in rewards:
        named = [value for name, value in reward.options.items() if name in PATH_OPTIONS and isinstance(value, str)]
        for value in named:
            if value.startswith(PACKAGE):
                found[f"model of {reward.use} {value}"] = _model_fingerprint(encoder_folder(value))
                continue
            file = Path(value.rpartition(":")[0] if value.rpartition(":")[0].endswith(".py") else value)
            if file.is_file():
                found[f"reward file {file}"] = fingerprint(file)
            elif file.is_dir():
                found[f"model of {reward.use} {file}"] = _model_fingerprint(file)
    return found


def _model_fingerprint(folder: Path) -> str:
    """SHA-256 over configuration, weights, tokenizer and templates of a model folder, or of a run's model."""
    folder = folder / "model" if (folder / "model").is_dir() else folder
    files = sorted(file for file in folder.rglob("*") if file.suffix in MODEL_FILES and file.is_file())
    parts = [f"{file.relative_to(folder).as_posix()} {fingerprint(file)}\n" for file in files]
    return hashlib.sha256("".join(parts).encode()).hexdigest()
