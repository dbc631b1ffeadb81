"""Self-certainty: how far from indifferent the policy was while it wrote."""

from __future__ import annotations

from collections.abc import Sequence

from loopwise.evaluate.parts import Judged
from loopwise.types import Problem, Sample

STATISTIC = "self_certainty"


class SelfCertainty:
    """Mean over a sample's tokens of KL(uniform, p) = -log V - mean_j log p_j, in nats (Intuitor, Zhao et al. 2025).

    p is the distribution that the token was drawn from, before top-k and top-p. The generator measures it.
    """

    async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Judged:
        """Read the statistic off the samples; one without it cannot be judged."""
        judged = Judged.nothing(len(samples))
        for place, sample in enumerate(samples):
            if STATISTIC in sample.stats:
                judged.rewards[place] = sample.stats[STATISTIC]
            else:
                judged.errors[place] = "its generator does not say how certain it was: only a model read here can"
        return judged

    def close(self) -> None:
        """Nothing to end."""
