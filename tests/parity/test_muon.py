"""Our Muon, which iterates in float32, against PyTorch's, which iterates in bfloat16."""

from __future__ import annotations

import pytest
import torch

from loopwise.update.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(16, 16), (8, 32), (48, 12), (1, 8)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_singular_values_end_near_one(shape: tuple[int, int], scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(4, *shape, generator=generator), full_matrices=False)
    spread = torch.logspace(-2, 0, min(shape)) * scale
    values = torch.linalg.svdvals(orthogonalise(left * spread @ right))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_orthogonalising_keeps_the_singular_vectors() -> None:
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(12, 20, generator=generator)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    turned = left.mT @ orthogonalise(matrix[None])[0] @ right.mT
    off_diagonal = turned - torch.diag(turned.diagonal())
    assert off_diagonal.abs().max() < 1e-4
    assert (turned.diagonal() > 0.6).all()


def test_a_matrix_of_zeros_stays_one() -> None:
    assert not orthogonalise(torch.zeros(2, 4, 6)).any()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_several_steps_equal_pytorchs(weight_decay: float) -> None:
    generator = torch.Generator().manual_seed(2)
    shapes = [(16, 16), (16, 16), (8, 24), (24, 8)]
    starts = [torch.randn(shape, generator=generator) for shape in shapes]
    ours, theirs = ([torch.nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    settings = {"lr": 0.02, "momentum": 0.95, "weight_decay": weight_decay}
    optimizers = Muon(ours, **settings), torch.optim.Muon(theirs, **settings)
    for _ in range(5):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for start, mine, other in zip(starts, ours, theirs, strict=True):
        moved = (other - start).norm()
        assert moved > 0.1
        # bfloat16 keeps 8 bits, and five quintic steps multiply its rounding.
        assert (mine - other).norm() < 0.02 * moved


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Muon takes matrices, found a parameter of shape \(3,\)"):
        Muon([torch.nn.Parameter(torch.zeros(3))], lr=0.1)
