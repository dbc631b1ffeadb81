"""Muon with its iteration in float32.

torch.optim.Muon iterates in bfloat16, which processors without bfloat16 matrix instructions emulate about 60 times
slower than the rest of the step (see docs/decisions/). The rule and its constants are the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch

from loopwise.update.sharding import gathered, scattered

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_EPSILON = 1e-7


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """Newton-Schulz iteration towards the nearest semi-orthogonal matrix of each: fp32 ``[N, A, B]`` to the same shape.

    Five quintic steps as in Jordan et al. 2024 (Muon); singular values end between about 0.7 and 1.2.
    """
    a, b, c = _COEFFICIENTS
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else matrices.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=_EPSILON)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(gram, gram, gram, beta=b, alpha=c) @ x
    result: torch.Tensor = x if wide else x.mT
    return result


class Muon(torch.optim.Optimizer):  # type: ignore[misc]  # mypy skips torch.optim
    """Momentum, Nesterov look-ahead, orthogonalised update scaled by ``sqrt(max(1, rows / columns))``.

    For two-dimensional parameters only. Matrices of one shape are orthogonalised in one batch; sharded ones are made
    whole for it on every rank, because the orthogonal factor of a shard is not a shard of the matrix's. Weight decay is
    decoupled. State per parameter: ``momentum``, of its type and shape, sharded as it is.
    """

    def __init__(
        self, params: Iterable[torch.Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(list(params), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.dim() != 2:
                    raise ValueError(f"Muon takes matrices, found a parameter of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One update of all parameters that have a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                updates = []
                for parameter in parameters:
                    assert parameter.grad is not None
                    state = self.state[parameter]
                    if "momentum" not in state:
                        state["momentum"] = torch.zeros_like(parameter)
                    state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                    updates.append(gathered(parameter.grad.lerp(state["momentum"], group["momentum"])))
                scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for parameter, update in zip(parameters, orthogonalise(torch.stack(updates)), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(scattered(update, parameter), alpha=-scale)
