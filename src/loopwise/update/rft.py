"""Rejection-sampling fine-tuning: imitate one's own samples that passed.

RAFT (Dong et al. 2023), RFT (Yuan et al. 2023); with ``restart`` STaR (Zelikman et al. 2022) and ReST-EM (Singh et
al. 2023). Left out of those papers: reward-weighted imitation, and STaR's rationalisation from the gold answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from loopwise.config.methods import RFTConfig
from loopwise.models.logps import TokenRow
from loopwise.models.policy import Policy
from loopwise.types import REWARD_ROUNDING, Completion, Context, Problem, Rollout, Scored, Updated
from loopwise.update.imitation import add_rows, add_samples, learn_pool, open_pool
from loopwise.update.rows import Pool, encode_fitting_rows


@dataclass(frozen=True)
class RFT:
    """Keep what passes, add it to the pool, train on labelled rows and pool; ``config.pool`` says whether it outlives
    the round.

    ``samples`` are drawn of each problem. ``base`` is where ``config.restart`` starts every round. ``gold`` gives a
    problem's reference completion for the ceiling control (``config.keep == "gold"``), which draws no samples; nor does
    ``"none"``, the control that goes on with the labelled rows alone.
    """

    config: RFTConfig
    labelled: tuple[TokenRow, ...]
    samples: int
    rounds: int
    base: Policy | None = None
    gold: Callable[[Problem], Completion] | None = None
    needs = frozenset({"weights", "text"})

    def __call__(
        self, policy: Policy, state: Any, problems: Sequence[Problem], rollout: Rollout, context: Context
    ) -> Updated:
        cap = None if self.config.keep == "gold" else self.config.per_problem
        pool = open_pool(state if self.config.pool == "all" else None, cap)
        kept = 0
        if self.config.keep == "gold":
            assert self.gold is not None
            gold, _ = encode_fitting_rows(policy, problems, [self.gold(problem) for problem in problems], self.config)
            kept = add_rows(pool, gold).count(True)
        elif self.config.keep != "none":
            kept = self._keep(policy, rollout(policy, problems, self.samples), pool, context)
        restart_from = (self.base or policy) if self.config.restart else None
        return learn_pool(
            policy,
            state,
            context,
            config=self.config,
            labelled=self.labelled,
            pool=pool,
            rounds=self.rounds,
            restart_from=restart_from,
            metrics={"kept": float(kept)},
        )

    def _keep(self, policy: Policy, scored: Scored, pool: Pool, context: Context) -> int:
        """Pool what passes; report and count the samples that are in the pool now, which a full prompt's are not."""
        samples = [scored.samples[place] for place in select(scored, self.config)]
        return add_samples(pool, policy, samples, [scored.problems[sample.group] for sample in samples], context)


def select(scored: Scored, config: RFTConfig) -> list[int]:
    """Positions of the samples to keep: judged, passing (unless all are kept), distinct, at most so many a problem.

    Masked samples never pass.
    """
    totals = scored.feedback.totals
    places: list[int] = []
    for _, members in scored.groups():
        seen: set[tuple[int, ...] | str] = set()
        for place in members:
            sample = scored.samples[place]
            passes = totals[place] >= config.threshold - REWARD_ROUNDING
            key = sample.token_ids or sample.text
            if (passes or config.keep == "all") and key not in seen and len(seen) < config.per_problem:
                seen.add(key)
                places.append(place)
    return places
