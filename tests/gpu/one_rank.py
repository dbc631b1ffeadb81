"""What ranks do to gradients, done by one, which ``torchrun`` started: ``-m tests.gpu.one_rank DEVICE``."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from tests.ranks.scenarios import LENGTH, ROWS, VOCABULARY, loss, make

from loopwise.config.blocks import RuntimeConfig
from loopwise.ranks import Ranks
from loopwise.runtime import make_runtime
from loopwise.update.reduction import GradientSum
from loopwise.update.sharding import Sharded, gathered


def main(device: str) -> None:
    """Say that all is the same, or raise."""
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")
    runtime = make_runtime(RuntimeConfig(device=device, threads=1), seed=0)
    batch = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0)).to(device)

    def gradients(way: str) -> list[torch.Tensor]:
        module = make("llama", torch.float32).to(device)
        shards = Sharded(module, runtime) if way == "shards" else None
        value, _ = shards(lambda module: loss(module, batch)) if shards else loss(module, batch)
        value.backward()
        trained = [parameter for name, parameter in module.named_parameters() if name != "idle"]
        if way == "ranks":
            reduction = GradientSum(trained, Ranks())
            reduction.add(1)
            reduction.finish()
        return [gathered(parameter.grad) for parameter in trained if parameter.grad is not None]

    alone = gradients("alone")
    assert alone
    for way in ("ranks", "shards"):
        for found, expected in zip(gradients(way), alone, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert Ranks().gather(device) == [device]
    dist.destroy_process_group()
    print("the same")


if __name__ == "__main__":
    main(sys.argv[1])
