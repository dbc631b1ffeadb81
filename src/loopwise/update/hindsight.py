"""Chain of Hindsight (Liu et al. 2023): read a worse answer and a better one under their names, learn the better one,
and from then on be asked for a good one.

Left out of the paper: learning the worse answer too, feedback in whole sentences, masks inside the answers (tokens of
the worse one are left out instead), and the share of pretraining text, for which labelled rows stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from loopwise.config.methods import HindsightConfig, PairsConfig
from loopwise.models.logps import TokenRow
from loopwise.models.policy import Policy
from loopwise.models.tokens import decode, encode_prompts
from loopwise.runtime import seed_key, uniforms
from loopwise.types import Context, Problem, Prompt, Rollout, Scored, Updated
from loopwise.update.imitation import add_rows, learn_pool, open_pool
from loopwise.update.pairs import picked
from loopwise.update.rows import row_limit, sample_rows


@dataclass(frozen=True)
class Hindsight:
    """A round pairs the best with the worst of a problem's ``samples`` samples and takes ``config.steps`` steps.

    Batches are of the pairs of all rounds so far and of ``labelled``, which is encoded for ``asked(base, config)``. The
    candidate asks for a good answer with its prompt state's suffix. ``rounds`` is the run's number of rounds: the
    schedule spans them all. Where there is nothing to learn from, the round changes nothing.
    """

    config: HindsightConfig
    labelled: tuple[TokenRow, ...]
    samples: int
    rounds: int
    needs = frozenset({"weights", "text"})

    def __call__(
        self, policy: Policy, state: Any, problems: Sequence[Problem], rollout: Rollout, context: Context
    ) -> Updated:
        pool = open_pool(state)
        found = hindsight(policy, rollout(policy, problems, self.samples), self.config, context.seed)
        add_rows(pool, found.rows)
        context.keep(found.better)
        metrics = {"pairs": float(found.pairs), "left_out": float(found.left_out)}
        if not len(pool) and not self.labelled:
            return Updated(policy, state, {**metrics, "new": 0.0, "pool": 0.0})
        taught = asked(policy, self.config)
        return learn_pool(
            taught,
            state,
            context,
            config=self.config,
            labelled=self.labelled,
            pool=pool,
            rounds=self.rounds,
            metrics=metrics,
        )


@dataclass(frozen=True)
class Found:
    """Rows of so many ``pairs``, the ids of their ``better`` samples, and how many rows were ``left_out``, too long."""

    rows: tuple[TokenRow, ...]
    better: tuple[str, ...]
    pairs: int
    left_out: int


def asked(policy: Policy, config: HindsightConfig) -> Policy:
    """The policy as it is asked for a good answer."""
    return _ending(policy, config.good)


def hindsight(policy: Policy, scored: Scored, config: HindsightConfig, seed: int) -> Found:
    """Two rows of each pair, and the loss on the better answer ``y+`` and its end alone.

    One follows the prompt with ``bad y- good``, the other with ``good``. The second is the paper's chain turned round,
    ``good y+ bad y-``, as far as it is learned: without it, what sampling asks for would never be read in training.
    Of ``y-`` each token is left out with probability ``config.dropped``, so that copying it does not pay. In a
    conversation the words follow the last message. Rows over ``config.max_length`` or the model's context are left out.
    """
    pairs = [pick.places for pick in picked(scored, PairsConfig())]
    if not pairs:
        return Found((), (), 0, 0)
    problems = [scored.problems[scored.samples[better].group] for better, _ in pairs]
    better = [scored.samples[place] for place, _ in pairs]
    learned = sample_rows(policy, better, problems)
    shown = [
        replace(problem, shown=_followed(problem, f"{config.bad}{worse}{config.good}"))
        for problem, worse in zip(problems, _worse(policy, scored, pairs, config.dropped, seed), strict=True)
    ]
    prompts = [*encode_prompts(_ending(policy, ""), shown), *encode_prompts(asked(policy, config), problems)]
    rows = [
        TokenRow(tuple(prompt), row.token_ids, row.loss_mask)
        for prompt, row in zip(prompts, [*learned, *learned], strict=True)
    ]
    limit = row_limit(policy, config)
    fitting = tuple(row for row in rows if limit is None or row.total_tokens <= limit)
    ids = tuple(dict.fromkeys(sample.id for sample in better))
    return Found(fitting, ids, len(pairs), len(rows) - len(fitting))


def _worse(policy: Policy, scored: Scored, pairs: Sequence[tuple[int, ...]], dropped: float, seed: int) -> list[str]:
    """The worse answer of each pair as text, less the tokens that are left out; which ones follows from its id."""
    samples = [scored.samples[pair[-1]] for pair in pairs]
    rows = sample_rows(policy, samples, [scored.problems[sample.group] for sample in samples])
    keys = np.array([seed_key("hindsight", seed, sample.id) for sample in samples], dtype=np.uint64)
    kept: list[list[int]] = [[] for _ in rows]
    for position in range(max(len(row.token_ids) for row in rows)):
        for ids, row, uniform in zip(kept, rows, uniforms(keys, position).tolist(), strict=True):
            if uniform >= dropped:
                ids += row.token_ids[position : position + 1]
    return decode(policy, kept)


def _followed(problem: Problem, text: str) -> Prompt:
    """What is shown of a problem, with ``text`` after it: where a prompt state's suffix would stand."""
    shown = problem.prompt if problem.shown is None else problem.shown
    if isinstance(shown, str):
        return shown + text
    return (*shown[:-1], {**shown[-1], "content": shown[-1]["content"] + text})


def _ending(policy: Policy, suffix: str) -> Policy:
    return replace(policy, prompt_state=replace(policy.prompt_state, suffix=suffix), name=None)
