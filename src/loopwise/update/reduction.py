"""Gradients of work units that several ranks computed, added up in the order of the units.

The sum then has the same bits however many ranks there are, which an ordinary all-reduce does not give.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from loopwise.ranks import Ranks


class GradientSum:
    """Adds units up, one of each rank at a time. Each rank adds its share of all parameters, for all units.

    Two gradients' worth travel to and from a rank, as in a ring, and two lie in its memory beside the gradient. Raises
    ValueError where the parameters are of several types.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], ranks: Ranks) -> None:
        types = {parameter.dtype for parameter in parameters}
        if len(types) > 1:
            raise ValueError(f"parameters to train are of several types: {', '.join(sorted(map(str, types)))}")
        self._parameters = parameters
        self._ranks = ranks
        self._share: torch.Tensor | None = None

    def add(self, count: int) -> None:
        """Take each parameter's ``grad`` away as that of this rank's unit; the first ``count`` ranks have one.

        A ``grad`` of None (the unit does not reach the parameter) stays one where all units of a step agree.
        """
        rows = self._ranks.exchange(self._flat())
        for row in rows[:count]:
            if self._share is None:
                self._share = row.clone()
            else:
                self._share += row

    def finish(self) -> None:
        """Give every parameter its sum as ``grad``, on all ranks."""
        if self._share is None:
            return
        whole = self._ranks.assemble(self._share)
        *sums, reached, _ = torch.split(whole, self._sizes(len(whole)))
        for parameter, total, units in zip(self._parameters, sums, reached.tolist(), strict=True):
            # A copy of its own: as a part of something larger it would lie, and round, otherwise.
            parameter.grad = total.clone().view_as(parameter) if units else None

    def _flat(self) -> torch.Tensor:
        """All gradients in a row, with how many units each comes from (0 or 1) after them, as ``[world, N]``."""
        world = self._ranks.world
        length = -(-sum(self._sizes()) // world)
        flat = self._parameters[0].new_zeros(world * length)
        *places, reached, _ = torch.split(flat, self._sizes(len(flat)))
        for number, (parameter, place) in enumerate(zip(self._parameters, places, strict=True)):
            if parameter.grad is not None:
                place.copy_(parameter.grad.reshape(-1))
                reached[number] = 1.0
                parameter.grad = None
        return flat.view(world, length)

    def _sizes(self, total: int | None = None) -> list[int]:
        """Lengths of what lies in a row: each gradient, a number for each, and what fills up ``total``."""
        sizes = [*(parameter.numel() for parameter in self._parameters), len(self._parameters)]
        return sizes if total is None else [*sizes, total - sum(sizes)]
