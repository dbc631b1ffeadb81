"""On-policy distillation (GKD, Agarwal et al. 2024): a teacher's distribution of every token, on one's own samples.

Left out: the mix with a fixed set of completions (their lambda is 1 here), and a reward beside the divergence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from loopwise.config.methods import DistillConfig
from loopwise.errors import ConfigError
from loopwise.models.folders import load_policy
from loopwise.models.heads import logits_of
from loopwise.models.logps import TokenRow, in_parts, read_states
from loopwise.models.policy import Policy
from loopwise.models.trees import vocabulary_size
from loopwise.runtime import Runtime
from loopwise.types import Context, Problem, Rollout, Sampling, Scored, Updated
from loopwise.update.fitting import Means, flops_without_gradient, tokens_read
from loopwise.update.learner import Learner
from loopwise.update.losses import generalised_jsd
from loopwise.update.online import Learned, begin, minibatches, row_of, teaches
from loopwise.update.units import work_units


@dataclass(frozen=True)
class Distill:
    """``samples`` are drawn of each problem; the mean over the step's tokens is taken of their divergence."""

    config: DistillConfig
    samples: int
    rounds: int
    sampling: Sampling
    teacher: Policy
    needs = frozenset({"weights", "token_ids"})

    def __call__(
        self, policy: Policy, state: Any, problems: Sequence[Problem], rollout: Rollout, context: Context
    ) -> Updated:
        online = begin(policy, state, problems, context, self.config, self.samples, self.rounds)

        def learn(learner: Learner, scored: Scored, step: int) -> Learned:
            return self._learn(learner, scored, (context.round, step))

        return online.run(problems, rollout, learn)

    def _learn(self, learner: Learner, scored: Scored, where: tuple[int, int]) -> Learned:
        config, teacher = self.config, self._teacher
        known: int = teacher.get_input_embeddings().num_embeddings
        used = [
            place
            for place, sample in enumerate(scored.samples)
            if teaches(scored, place, config)
            # An embedding table padded beyond the tokenizer's vocabulary has ids that the teacher's may not have.
            and max(sample.token_ids) < known
        ]
        groups = list(dict.fromkeys(scored.samples[place].group for place in used))
        means = Means()
        read = 0
        for turn in range(config.passes):
            for share in minibatches(groups, config.minibatches, learner.runtime, *where, turn):
                chosen = set(share)
                rows = [row_of(scored, place) for place in used if scored.samples[place].group in chosen]
                means.add(self._step(learner, rows))
                read += tokens_read(rows)
        return Learned(means.found(), read, flops_without_gradient(teacher, read), used)

    @property
    def _teacher(self) -> Any:
        assert self.teacher.weights is not None
        return self.teacher.weights.module

    def _step(self, learner: Learner, rows: Sequence[TokenRow]) -> dict[str, float]:
        tokens = max(1, sum(row.trained_tokens for row in rows))

        def loss(module: nn.Module, unit: Sequence[int]) -> tuple[torch.Tensor, Mapping[str, torch.Tensor | float]]:
            return self._divergence(module, [rows[n] for n in unit]) / tokens, {}

        return learner.step(work_units(rows, self.config.tokens_per_pass), loss)

    def _divergence(self, student: nn.Module, rows: Sequence[TokenRow]) -> torch.Tensor:
        """Sum over the rows' tokens; no more than ``LOGITS_AT_ONCE`` logits of either model exist at a time."""
        teacher = self._teacher
        own = read_states(student, rows)
        with torch.no_grad():
            theirs = read_states(teacher, rows)
        counted = own.mask != 0

        def part(own_states: torch.Tensor, their_states: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                wanted = logits_of(teacher, their_states)
            logits = logits_of(student, own_states)
            # Models of a family pad their tables to different sizes: what one of them lacks means nothing.
            shared = min(logits.shape[-1], wanted.shape[-1])
            logits, wanted = logits[:, :shared], wanted[:, :shared]
            return generalised_jsd(logits, wanted, self.config.divergence, self.sampling.temperature).sum()

        states, wanted = own.values[counted], theirs.values[counted]
        largest = max(vocabulary_size(student), vocabulary_size(teacher))
        return torch.stack(in_parts(part, largest, states, wanted)).sum()


def load_teacher(config: DistillConfig, base: Policy, runtime: Runtime) -> Policy:
    """The teacher of a recipe. Raises ConfigError where it could not read all that the model ``base`` may write."""
    teacher = load_policy(config.teacher, runtime)
    if teacher.weights is None or base.weights is None:
        whose = f"{config.teacher} has" if teacher.weights is None else "the model has"
        raise ConfigError(
            f'key "update.teacher": {whose} no weights, and distill compares distributions. Name a model.'
        )
    if not teacher.shares_tokenizer(base):
        raise ConfigError(
            f'key "update.teacher": {config.teacher} has another tokenizer than the model, and their distributions '
            "cannot be compared. Take a teacher of the same family, or start from a model with its tokenizer."
        )
    limit, length = teacher.weights.context_length, base.weights.window
    if limit is not None and length is not None and limit < length:
        raise ConfigError(
            f'key "update.teacher": {config.teacher} reads {limit} tokens at most, and what the model writes may have '
            f"{length}. Take a teacher with as long a context."
        )
    return teacher
