"""KDSVD: against RepDistiller, against a case by hand, and a gradient where PyTorch has none."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bevkd_deploy.distill.losses.classic import SingularVectorLoss
from bevkd_deploy.distill.losses.classic.singular_vector import _RightSingularVectors


def wave(rate: float, *shape: int) -> Tensor:
    """Positive maps of full rank: all leading vectors have one sign, as those of rectified features."""
    index = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(rate * index + 0.003 * index * index).abs().reshape(shape)


@pytest.mark.parametrize(
    ("k", "published"),
    [
        # HobbitLong/RepDistiller, commit b84f547, KDSVD(k) on these maps in float64.
        (1, (2.13714672529e-05, 1.80410548266e-05)),
        (2, (0.000201960589154, 0.000383872152099)),
    ],
)
def test_the_value_is_repdistillers(k: int, published: tuple[float, float]) -> None:
    student = [wave(0.13, 2, 4, 6, 6), wave(0.29, 2, 6, 3, 3), wave(0.41, 2, 5, 3, 3)]
    teacher = [wave(0.17, 2, 4, 6, 6), wave(0.31, 2, 6, 6, 6), wave(0.47, 2, 5, 3, 3)]
    assert SingularVectorLoss(k)(student, teacher).tolist() == [pytest.approx(value, rel=1e-9) for value in published]


def rank_one(direction: tuple[float, float], cells: int) -> Tensor:
    """A map [1, 2, 1, cells] whose leading direction is that one; the other one is all but empty."""
    across = torch.tensor([-direction[1], direction[0]])
    pattern = torch.linspace(1, 2, cells)
    noise = 0.01 * torch.linspace(-1, 1, cells)
    rows = (
        pattern[:, None] * torch.tensor(direction)
        + (noise - noise @ pattern / (pattern @ pattern) * pattern)[:, None] * across
    )
    return rows.T.reshape(1, 2, 1, cells)


def test_two_maps_with_known_directions() -> None:
    student = [rank_one((0.8, 0.6), 5), rank_one((1.0, 0.0), 7)]
    teacher = [rank_one((0.6, 0.8), 6), rank_one((0.96, 0.28), 4)]

    def expected(sign: float) -> float:
        """`sign` of the second map's vectors relative to the first's, which no SVD promises."""
        total = 0.0
        for later, target_later in zip((1.0, 0.0), (0.96, 0.28), strict=True):
            for earlier, target_earlier in zip((0.8, 0.6), (0.6, 0.8), strict=True):
                own = math.exp(-((sign * later - earlier) ** 2) / 8)
                total += (own - math.exp(-((sign * target_later - target_earlier) ** 2) / 8)) ** 2
        return total

    (value,) = SingularVectorLoss()(student, teacher).tolist()
    assert any(value == pytest.approx(expected(sign), rel=1e-4) for sign in (1, -1))


@pytest.mark.parametrize("shape", [(2, 7, 4), (2, 4, 7), (1, 5, 5)], ids=["tall", "wide", "square"])
def test_the_gradient_is_pytorchs_where_that_exists(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ours = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    weight = torch.randn(shape[0], shape[2], 3, dtype=torch.float64)
    for vectors in (
        _RightSingularVectors.apply(ours)[:, :, :3],
        torch.linalg.svd(theirs, full_matrices=False)[2][:, :3].mT,
    ):
        (vectors.pow(2) * weight).sum().backward()  # squared, so that it does not depend on the signs
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_maps_of_low_rank_have_finite_gradients(dtype: torch.dtype) -> None:
    # Sines of a running index have rank 2; a dead channel and a blank map lose more.
    index = torch.arange(2 * 8 * 6 * 6, dtype=torch.float64)
    sines = torch.sin(0.37 * index).reshape(2, 8, 6, 6)
    dead = sines.clone()
    dead[:, 1:] = 0
    for first in (sines, dead, torch.zeros_like(sines)):
        student = [first.clone().to(dtype).requires_grad_(), (first[:, :5] * 0.5).to(dtype).requires_grad_()]
        teacher = [wave(0.31, 2, 8, 6, 6).to(dtype), wave(0.43, 2, 5, 3, 3).to(dtype)]
        with torch.autocast("cpu", dtype=torch.float16):
            value = SingularVectorLoss()(student, teacher)
        value.sum().backward()
        assert value.isfinite().all()
        assert all(tensor.grad.isfinite().all() for tensor in student)
