"""A module under training in shards over the ranks, by FSDP2 (``torch.distributed.fsdp.fully_shard``).

Each rank holds its part of the trained weights, and so of gradients and moments; a block's weights are whole only while
it computes. Sampling and checkpoints take whole copies.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from loopwise.errors import ConfigError
from loopwise.models.heads import keep_in_step
from loopwise.runtime import Runtime

T = TypeVar("T")


class Sharded(nn.Module):
    """Shards ``model`` in place: its blocks one by one, then the rest; frozen parameters stay whole.

    It is what FSDP takes for the root, so that work on the model may use its parts as it likes: all parameters outside
    the blocks are whole while ``forward`` runs. Every forward and backward pass is one of all ranks together, so that
    ``work`` has to run the blocks as often on each of them, however large its unit.
    """

    def __init__(self, model: nn.Module, runtime: Runtime) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        super().__init__()
        check_shards(model)
        keep_in_step(model)
        self.model = model
        # Kept out of the submodules: whatever holds parameters below would be sharded, too.
        self._empty = (_emptied(model),)
        mesh = init_device_mesh(runtime.torch_device.type, (runtime.ranks.world,))
        frozen = {parameter for parameter in model.parameters() if not parameter.requires_grad}
        for part in (*_blocks(model), self):
            fully_shard(part, mesh=mesh, ignored_params=frozen)
        for part in self.modules():
            if isinstance(part, FSDPModule):
                # The units' losses add up, so that their gradients are no mean. Not every backend can scale a sum.
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)

    def forward(self, work: Callable[[nn.Module], T]) -> T:
        """``work(model)``, with the weights where it finds them."""
        return work(self.model)

    def whole(self, part: nn.Module) -> nn.Module:
        """A whole copy of the model or a part of it, on every rank, in the same mode."""
        [name] = [name for name, module in self.model.named_modules() if module is part]
        empty = self._empty[0].get_submodule(name)
        memo: dict[int, Any] = {}
        for (_, parameter), (_, hollow) in zip(part.named_parameters(), empty.named_parameters(), strict=True):
            memo[id(hollow)] = nn.Parameter(gathered(parameter.detach())) if hollow.is_meta else hollow
        return copy.deepcopy(empty, memo).train(part.training)


def check_shards(model: nn.Module) -> None:
    """Raise ConfigError for a model whose layers FSDP2 does not reach."""
    # They compute with a list of their own, in which the weights stay as they were.
    if any(isinstance(part, nn.RNNBase) for part in model.modules()):
        raise ConfigError('key "runtime.shard": recurrent layers cannot be sharded. Leave it out.')


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a sharded tensor, on every rank; any other as it is."""
    # Asked by name: importing the class takes a second, which runs without shards need not spend.
    whole: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def scattered(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor, the same on every rank, in shards as ``like`` is; as it is where that is not sharded."""
    if not hasattr(like, "full_tensor"):
        return whole
    from torch.distributed.tensor import DTensor, Replicate

    assert isinstance(like, DTensor)
    replicas = DTensor.from_local(whole.to(like.device), like.device_mesh, [Replicate()], run_check=False)
    return replicas.redistribute(placements=like.placements)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost lists of layers: a decoder's blocks."""
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else _blocks(child)


def _emptied(module: nn.Module) -> nn.Module:
    """A copy without the trained weights, whose shapes it keeps; frozen ones are shared with it."""
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"))
        if parameter.requires_grad
        else parameter
        for parameter in module.parameters()
    }
    return copy.deepcopy(module, memo)
