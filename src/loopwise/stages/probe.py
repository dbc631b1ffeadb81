"""What a run's pieces cost, measured on a copy of the model: optimizer steps, a batch of each evaluation, a work unit
of samples. Nothing is kept and nothing is written."""

from __future__ import annotations

import asyncio
import copy
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from loopwise.config.blocks import OptimizerConfig
from loopwise.data.windows import HeldOut
from loopwise.errors import ConfigError
from loopwise.evaluate.likelihood import mean_logps
from loopwise.evaluate.perplexity import tokens_at_once
from loopwise.generate.local import LocalGenerator
from loopwise.models.logps import window_logps
from loopwise.models.policy import Policy, Weights
from loopwise.runtime import Runtime, run_async, seed_key
from loopwise.types import Completion, Problem, Request, Sample, Sampling
from loopwise.update.fitting import Batch
from loopwise.update.learner import Learner
from loopwise.update.rates import Sweep, sweep_rates

STEP_SECONDS, MOST_STEPS = 2.0, 20
"""How long ordinary steps are timed, and how many of them at most."""
SWEEP_SECONDS, SWEEP_STEPS = 20.0, (60, 40, 24)
"""A learning-rate sweep has the most of these steps that take no longer."""
UNIT_SECONDS = 5.0
"""When a work unit of samples is cut short."""
LIKELIHOOD_ROWS = 32


@dataclass(frozen=True)
class Training:
    """What is to be trained: ``ordinary(step)`` are batches like the run's, ``longest`` is the heaviest of them."""

    base: Policy
    runtime: Runtime
    optimizer: OptimizerConfig
    rounds: int
    ordinary: Callable[[int], Batch[Any]]
    longest: Batch[Any]


@dataclass(frozen=True)
class Steps:
    """Seconds of the ``first`` and of the ``second``, warm step on the longest batch; medians of ``seconds`` and
    ``tokens`` of ordinary ones. ``weights`` and ``moments`` are bytes."""

    first: float
    second: float
    seconds: float
    tokens: float
    weights: int
    moments: int

    @staticmethod
    def none(base: Policy | None) -> Steps:
        """Of an update that takes no optimizer step, and only keeps the weights it starts from."""
        module = base.weights.module if base is not None and base.weights is not None else None
        weights = sum(tensor.nbytes for tensor in module.parameters()) if module is not None else 0
        return Steps(0.0, 0.0, 0.0, 0.0, weights, 0)


@dataclass(frozen=True)
class Timed:
    """Seconds for ``count`` pieces. ``at_most``: drawing them was cut short, and reckoned to the last token allowed."""

    seconds: float
    count: int
    at_most: bool = False

    def scaled(self, count: int) -> Timed:
        """For another count of such pieces."""
        return Timed(self.seconds * count / self.count, count, self.at_most)


def take_steps(training: Training) -> tuple[Steps, tuple[Any, ...]]:
    """Take two steps, then ordinary ones; what they cost, and what a run in their place would be holding.

    Where the run has several rounds, the second step is in another one, because what the first ended with stays in
    memory beside it. Raises ConfigError where the steps do not fit into a GPU's memory.
    """
    assert training.base.weights is not None
    # A run reads its base back from its first checkpoint, and then has it twice.
    policy, state = replace(training.base, weights=Weights(copy.deepcopy(training.base.weights.module))), None
    held: list[Any] = [policy]
    seconds: list[float] = []
    tokens: list[int] = []
    try:
        module = policy.trainable_module()
        learner = Learner(module, training.optimizer, training.runtime, 2)
        batches = map(training.ordinary, itertools.count())
        for batch in itertools.chain([training.longest] * 2, batches):
            if len(seconds) == 1 and training.rounds > 1:
                policy, state = policy.with_module(module), learner.state()
                held += [policy, state]
                del learner, module
                module = policy.trainable_module()
                learner = Learner(module, training.optimizer, training.runtime, 2, state)
            seconds.append(_timed(training.runtime, learner.step, batch.micro_batches, batch.loss))
            tokens.append(batch.tokens)
            if len(seconds) > 2 and (sum(seconds[2:]) > STEP_SECONDS or len(seconds) == 2 + MOST_STEPS):
                break
        state = learner.state()
        held += [policy.with_module(module), state]
    except torch.OutOfMemoryError:
        raise out_of_memory(training.runtime) from None
    weights = sum(tensor.nbytes for tensor in training.base.weights.module.parameters())
    moments = sum(tensor.nbytes for entry in state["moments"].values() for tensor in entry.values())
    ordinary = statistics.median(seconds[2:]), statistics.median(tokens[2:])
    return Steps(seconds[0], seconds[1], *ordinary, weights, moments), tuple(held)


def out_of_memory(runtime: Runtime) -> ConfigError:
    """The error where steps do not fit."""
    return ConfigError(
        f'key "update.tokens_per_pass": two optimizer steps do not fit into the memory of {runtime.device}. '
        "Lower it, or the length of the rows."
    )


def find_rate(training: Training, seconds: float) -> Sweep | None:
    """A learning-rate sweep; None where steps of so many seconds are too slow for one."""
    steps = next((count for count in SWEEP_STEPS if count * seconds <= SWEEP_SECONDS), None)
    if steps is None:
        return None
    return sweep_rates(training.base.trainable_module(), training.optimizer, training.runtime, training.ordinary, steps)


def time_windows(policy: Policy, held_out: HeldOut, runtime: Runtime) -> Timed:
    """Held-out text, from its first batch of windows."""
    assert policy.weights is not None
    module = policy.weights.module
    windows, _ = next(held_out.batches(max(1, tokens_at_once(policy) // held_out.window)))
    with torch.inference_mode(), runtime.autocast():
        seconds = _timed(runtime, window_logps, module, windows)
    return Timed(seconds, windows.input_ids.size).scaled(held_out.tokens)


def time_likelihood(
    policy: Policy, problems: Sequence[Problem], completions: Sequence[Completion], runtime: Runtime
) -> Timed:
    """Likelihoods of completions, from a batch of all lengths. The longest are read too, for the peak of memory."""
    pairs = sorted(zip(problems, completions, strict=True), key=lambda pair: len(f"{pair[0].prompt}{pair[1]}"))
    spread = pairs[:: max(1, len(pairs) // LIKELIHOOD_ROWS)][:LIKELIHOOD_ROWS]
    seconds = [
        _timed(runtime, mean_logps, policy, *zip(*some, strict=True), runtime, LIKELIHOOD_ROWS)
        for some in (pairs[-LIKELIHOOD_ROWS:], spread)
    ]
    return Timed(seconds[1], len(spread)).scaled(len(pairs))


@dataclass(frozen=True)
class Drawn:
    """A work unit's samples, none where drawing them was cut short, and how long it takes to draw all."""

    problems: tuple[Problem, ...]
    samples: tuple[Sample, ...]
    timed: Timed


def time_samples(
    policy: Policy, problems: Sequence[Problem], each: int, sampling: Sampling, runtime: Runtime, unit: int
) -> Timed:
    """``each`` samples of every problem, from one work unit of at most ``unit`` samples."""
    return draw_samples(policy, problems, each, sampling, runtime, unit).timed


def draw_samples(
    policy: Policy, problems: Sequence[Problem], each: int, sampling: Sampling, runtime: Runtime, unit: int
) -> Drawn:
    """A work unit of at most ``unit`` samples, ``each`` of a problem; the time of all problems' is reckoned from it."""
    chosen = tuple(problems[: max(1, unit // each)])
    requests = [
        Request(f"probe/{group}/{index}", problem, group, index, seed_key(runtime.seed, "probe", group, index))
        for group, problem in enumerate(chosen)
        for index in range(each)
    ]
    reached = 1
    samples: list[Sample] = []

    def drawn(request: Request, token_ids: Sequence[int]) -> None:
        nonlocal reached
        reached = max(reached, len(token_ids))

    async def draw() -> None:
        async with asyncio.timeout(UNIT_SECONDS):
            samples.extend(await LocalGenerator(runtime, drawn).generate(policy, requests, sampling))

    began, at_most = time.perf_counter(), False
    try:
        run_async(draw())
    except TimeoutError:
        at_most = True
    seconds = (time.perf_counter() - began) * (sampling.max_tokens / reached if at_most else 1)
    timed = Timed(seconds, len(requests), at_most).scaled(len(problems) * each)
    return Drawn(chosen, tuple(samples), timed)


def synchronise(runtime: Runtime) -> None:
    """Wait until a GPU has done what it was given."""
    if runtime.torch_device.type == "cuda":
        torch.cuda.synchronize(runtime.torch_device)


def _timed(runtime: Runtime, work: Callable[..., object], *arguments: Any) -> float:
    began = time.perf_counter()
    work(*arguments)
    synchronise(runtime)
    return time.perf_counter() - began
