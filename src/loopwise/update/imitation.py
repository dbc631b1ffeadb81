"""A round of imitation: what was worth keeping goes into a pool, and batches are of labelled rows and pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from loopwise.config.methods import HindsightConfig, ILFConfig, RFTConfig
from loopwise.data.batches import mixed_batch
from loopwise.models.logps import TokenRow
from loopwise.models.policy import Policy
from loopwise.types import Context, Problem, Sample, Updated
from loopwise.update.fitting import Batch, fit, supervised
from loopwise.update.learner import Learner
from loopwise.update.rows import Pool, sample_rows


def open_pool(state: Any, per_prompt: int | None = None) -> Pool:
    """The pool of an update's ``state``, to go on with; an empty one where there is no state."""
    return Pool.from_state(state["pool"], per_prompt) if state else Pool(per_prompt=per_prompt)


def add_rows(pool: Pool, rows: Sequence[TokenRow]) -> list[bool]:
    """Add rows; whether each is in the pool then, which a full prompt's are not."""
    return [pool.add(row) or row in pool for row in rows]


def add_samples(
    pool: Pool, policy: Policy, samples: Sequence[Sample], problems: Sequence[Problem], context: Context
) -> int:
    """Pool samples, one of each problem; report and count those that are in the pool then."""
    pooled = add_rows(pool, sample_rows(policy, samples, problems))
    context.keep([sample.id for sample, is_in in zip(samples, pooled, strict=True) if is_in])
    return pooled.count(True)


def learn_pool(
    policy: Policy,
    state: Any,
    context: Context,
    *,
    config: RFTConfig | ILFConfig | HindsightConfig,
    labelled: Sequence[TokenRow],
    pool: Pool,
    rounds: int,
    restart_from: Policy | None = None,
    metrics: Mapping[str, float] = MappingProxyType({}),
) -> Updated:
    """A round of ``config.steps`` optimizer steps on labelled rows and pool, from where it was interrupted.

    It goes on from ``policy`` on a schedule that spans ``rounds``; or it begins at ``restart_from`` with fresh moments
    and a schedule of its own. The state is the learner's and the pool's. Without any row nothing is learned.
    ``metrics`` are those of what was pooled; the pool's size and what is new in it are added.
    """
    partial = context.partial
    source = partial.policy if partial else restart_from or policy
    goes_on = state and restart_from is None
    moments = partial.state["learner"] if partial else state["learner"] if goes_on else None
    module = source.trainable_module()
    total = config.steps * (rounds if restart_from is None else 1)
    learner = Learner(module, config.optimizer, context.runtime, total, moments, round=context.round)

    def snapshot() -> Policy:
        return policy.with_module(learner.whole(module))

    def batch(step: int) -> Batch[Sequence[TokenRow]]:
        is_labelled, places = mixed_batch(
            len(labelled), len(pool), config.labelled_share, config.batch_size, context.seed, context.round, step
        )
        pairs = zip(is_labelled.tolist(), places.tolist(), strict=True)
        rows = [labelled[place] if from_labels else pool[place] for from_labels, place in pairs]
        return supervised(rows, config.tokens_per_pass)

    fitted = fit(learner, config.steps, batch, context, snapshot) if len(pool) or labelled else {}
    sizes = {"new": float(pool.new), "pool": float(len(pool))}
    return Updated(snapshot(), {"learner": learner.state(), "pool": pool.state()}, {**metrics, **sizes, **fitted})
