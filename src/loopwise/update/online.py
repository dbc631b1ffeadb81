"""Learning from fresh samples: each step rolls out a few of the round's problems and learns from them at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from torch import nn

from loopwise.config.methods import OnlineConfig
from loopwise.data.batches import permutation
from loopwise.models.logps import TokenRow
from loopwise.models.policy import Policy
from loopwise.runtime import Runtime
from loopwise.types import Budget, Context, Problem, Rollout, Scored, Updated
from loopwise.update.fitting import Means, flops_per_token
from loopwise.update.learner import Learner

T = TypeVar("T")


@dataclass(frozen=True)
class Learned:
    """What a step did: its metrics, and ``tokens`` read by forward passes that went backward too.

    ``flops`` were spent on passes without a gradient. ``used`` are the samples that were learned from (positions).
    """

    metrics: Mapping[str, float]
    tokens: int
    flops: float = 0.0
    used: Sequence[int] = ()


Learn = Callable[[Learner, Scored, int], Learned]
"""Learn from a rollout, given the step's number: one optimizer step or several."""


@dataclass
class Online:
    """A round of rollouts and steps; ``module`` is what is trained and ``inner`` the language model in it.

    ``memory`` is what the method remembers besides weights and moments, and goes into the state with what
    ``remember()`` adds when it is written.
    """

    policy: Policy
    config: OnlineConfig
    samples: int
    rounds: int
    context: Context
    module: nn.Module
    inner: nn.Module
    learner: Learner
    memory: dict[str, Any]
    means: Means
    kept: list[str]
    started: int
    remember: Callable[[], Mapping[str, Any]]

    def run(self, problems: Sequence[Problem], rollout: Rollout, learn: Learn) -> Updated:
        """The steps that are left of the round."""
        hands = dealt(problems, self.config.problems_per_step)
        flops = flops_per_token(self.module)
        for step in range(self.started):
            # Read again, not drawn, so that the round's figures cover what came before the interruption.
            rollout(self.policy, hands[step], self.samples, step=step)
        self.context.keep(self.kept)
        for step in range(self.started, len(hands)):
            scored = self._roll(rollout, hands[step], step)
            learned = learn(self.learner, scored, step)
            self.context.spend(Budget(tokens_trained=learned.tokens, flops=flops * learned.tokens + learned.flops))
            used = [scored.samples[place].id for place in learned.used]
            self.kept += used
            self.context.keep(used)
            self.means.add(learned.metrics)
            self.context.record(step + 1, learned.metrics)
            self.context.checkpoint(step + 1, lambda: (self._snapshot(), self._state(partial=True)))
        metrics = {**self.means.found(), "steps": float(len(hands))}
        return Updated(self._snapshot(), self._state(partial=False), metrics)

    def _roll(self, rollout: Rollout, problems: Sequence[Problem], step: int) -> Scored:
        """Samples of the model as it is now: no copy is made, and it is not trained before they are judged."""
        model = self.learner.whole(self.inner)
        model.eval()
        try:
            live = self.policy.live(model, f"round {self.context.round}, step {step}")
            return rollout(live, problems, self.samples, step=step)
        finally:
            model.train()

    def _snapshot(self) -> Policy:
        return self.policy.with_module(self.learner.whole(self.inner))

    def _state(self, *, partial: bool) -> dict[str, Any]:
        state = {"learner": self.learner.state(), "memory": {**self.memory, **self.remember()}}
        return {**state, "means": asdict(self.means), "kept": list(self.kept)} if partial else state


def begin(
    policy: Policy,
    state: Any,
    problems: Sequence[Problem],
    context: Context,
    config: OnlineConfig,
    samples: int,
    rounds: int,
    wrap: Callable[[nn.Module, Mapping[str, Any]], tuple[nn.Module, Callable[[], Mapping[str, Any]]]] | None = None,
) -> Online:
    """A round at its beginning, or where it was interrupted.

    ``wrap(module, memory)`` puts the language model into a module that has more to train, and says how that is
    remembered.
    """
    partial = context.partial
    source, carried = (partial.policy, partial.state) if partial else (policy, state)
    memory = dict(carried["memory"]) if carried else {}
    inner = source.trainable_module()
    module, remember = wrap(inner, memory) if wrap else (inner, dict)
    steps = len(dealt(problems, config.problems_per_step)) * config.updates_per_rollout
    moments = carried["learner"] if carried else None
    learner = Learner(module, config.optimizer, context.runtime, steps * rounds, moments, round=context.round)
    return Online(
        policy,
        config,
        samples,
        rounds,
        context,
        module,
        inner,
        learner,
        memory,
        means=Means(**carried["means"]) if partial else Means(),
        kept=list(carried["kept"]) if partial else [],
        started=partial.step if partial else 0,
        remember=remember,
    )


def dealt(items: Sequence[T], count: int) -> list[Sequence[T]]:
    """Items in turn, ``count`` at a time; the last hand may be smaller."""
    return [items[start : start + count] for start in range(0, len(items), count)]


def minibatches(groups: Sequence[T], count: int, runtime: Runtime, *where: int) -> list[list[T]]:
    """Whole groups in ``count`` shares of nearly equal size, shuffled by seed and place; fewer where there are fewer.

    No share is empty: without a group there is none.
    """
    if not groups:
        return []
    places = permutation(len(groups), "minibatches", runtime.seed, *where)
    shares = np.array_split(places, min(count, len(groups)))
    return [[groups[place] for place in sorted(share.tolist())] for share in shares]


def teaches(scored: Scored, place: int, config: OnlineConfig) -> bool:
    """Whether something may be learned from the sample at a place: it has tokens of its own, and all that it may."""
    cut = config.mask_truncated and scored.samples[place].finish_reason == "length"
    return not cut and row_of(scored, place).trained_tokens > 0


def row_of(scored: Scored, place: int) -> TokenRow:
    """The sample at a place of a rollout as a row to read."""
    sample = scored.samples[place]
    return TokenRow(sample.prompt_ids, sample.token_ids, sample.loss_mask)
