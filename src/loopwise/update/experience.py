"""What a rollout leaves to learn from, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from loopwise.models.logps import TokenRow


@dataclass(frozen=True)
class Experience:
    """Samples with what is known of their tokens: S entries each, arrays of a row's tokens fp64 ``[T]``.

    ``places`` are positions in the rollout, ``groups`` the numbers of their problems. ``old`` are log-probabilities
    under the policy that drew them, empty where no ratio is taken. ``counted``: whether a sample counts in means.
    ``values`` and ``returns`` are a value head's, empty without one.
    """

    places: tuple[int, ...]
    rows: tuple[TokenRow, ...]
    advantages: tuple[np.ndarray, ...]
    old: tuple[np.ndarray, ...]
    groups: tuple[int, ...]
    counted: tuple[bool, ...]
    values: tuple[np.ndarray, ...] = ()
    returns: tuple[np.ndarray, ...] = ()

    def of(self, chosen: Sequence[int]) -> Experience:
        """Some of them, in this order."""
        return Experience(
            tuple(self.places[n] for n in chosen),
            tuple(self.rows[n] for n in chosen),
            tuple(self.advantages[n] for n in chosen),
            tuple(self.old[n] for n in chosen),
            tuple(self.groups[n] for n in chosen),
            tuple(self.counted[n] for n in chosen),
            tuple(self.values[n] for n in chosen) if self.values else (),
            tuple(self.returns[n] for n in chosen) if self.returns else (),
        )


def padded(rows: Sequence[np.ndarray], like: torch.Tensor) -> torch.Tensor:
    """Rows of numbers as ``[S, C]`` of the type, place and width of another tensor, 0 beyond their ends."""
    filled = np.zeros(tuple(like.shape))
    for place, row in enumerate(rows):
        filled[place, : len(row)] = row
    return torch.tensor(filled, dtype=like.dtype, device=like.device)
