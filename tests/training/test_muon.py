"""Muon's update: nearly orthogonal, the same alone and among others, and independent of the gradient's size."""

from __future__ import annotations

import pytest
import torch
from mini_r1.training.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 192, 64), (2, 64, 192), (1, 1, 5)])
def test_nearly_all_singular_values_are_near_one(shape: tuple[int, int, int]) -> None:
    found = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
    assert found.max() < 1.3
    assert found.quantile(0.05) > 0.6  # the smallest of a square random matrix begin near 0 and stay small


def test_the_update_has_the_gradients_directions() -> None:
    gradient = torch.randn(1, 8, 20, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    update = left.transpose(1, 2) @ orthogonal(gradient) @ right.transpose(1, 2)
    assert torch.allclose(update, torch.diag_embed(torch.diagonal(update, dim1=1, dim2=2)), atol=1e-4)


def parameters(count: int, scale: float = 1.0) -> list[torch.nn.Parameter]:
    """Return `count` matrices of one shape and one of another, with gradients."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.nn.Parameter(torch.zeros(4, 6)) for _ in range(count)] + [torch.nn.Parameter(torch.zeros(6, 4))]
    for parameter in made:
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    return made


def test_matrices_of_a_shape_do_not_mix_and_the_gradients_size_has_no_effect() -> None:
    together, alone, larger = parameters(3), parameters(3), parameters(3, scale=100.0)
    for step in (0.1, 0.05):
        optimizers = [Muon(together), Muon(larger), *(Muon([parameter]) for parameter in alone)]
        for optimizer in optimizers:
            optimizer.step(step)
    for one, other, big in zip(together, alone, larger, strict=True):
        assert one.detach().norm() > 0.1
        assert torch.allclose(one, other, atol=1e-5)
        assert torch.allclose(one, big, atol=1e-4)
