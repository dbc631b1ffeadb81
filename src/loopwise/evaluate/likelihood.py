"""How likely a policy finds given completions: the score of supervised runs without a reward."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from loopwise.models.logps import TokenRow, token_logps
from loopwise.models.policy import Policy
from loopwise.models.tokens import encode_rows
from loopwise.runtime import Runtime
from loopwise.types import Completion, Problem


def mean_logps(
    policy: Policy,
    problems: Sequence[Problem],
    completions: Sequence[Completion],
    runtime: Runtime,
    batch: int = 32,
    *,
    end_of_text: bool = True,
) -> np.ndarray:
    """Mean log-probability per learned token (nats) of each problem: float64 ``[P]``.

    ``end_of_text``: whether the token that closes a completion is one of them, as it is in training.
    """
    rows = encode_rows(policy, problems, completions, end_of_text=end_of_text)
    lengths = np.array([row.trained_tokens for row in rows])
    return np.asarray(sum_logps(policy, rows, runtime, batch) / lengths.clip(min=1))


def sum_logps(policy: Policy, rows: Sequence[TokenRow], runtime: Runtime, batch: int = 32) -> np.ndarray:
    """Log-probability (nats) of all that is learned of each row: float64 ``[N]``."""
    assert policy.weights is not None
    order = sorted(range(len(rows)), key=lambda place: rows[place].total_tokens)
    scores = np.zeros(len(rows))
    with torch.inference_mode(), runtime.autocast():
        for start in range(0, len(order), batch):
            places = order[start : start + batch]
            logps, mask = token_logps(policy.weights.module, [rows[place] for place in places])
            scores[places] = (logps * mask).sum(-1).double().cpu().numpy()
    return scores
