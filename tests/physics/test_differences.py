"""Finite differences against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from snrecon.physics.differences import Gradient
from snrecon.physics.operators import dense
from support import check_linear_operator, check_transforms, random_complex


@pytest.mark.parametrize("shape", [(7, 6), (5, 4, 3), (1, 9)])
def test_gradient_is_a_linear_operator_with_its_adjoint(shape: tuple[int, ...]) -> None:
    check_linear_operator(Gradient(shape))
    check_transforms(Gradient(shape))


def test_gradient_agrees_with_numpy() -> None:
    x = random_complex(5, 4, 3)
    wanted = np.stack([np.roll(x.numpy(), -1, axis) - x.numpy() for axis in range(3)])
    np.testing.assert_allclose(Gradient((5, 4, 3))(x).numpy(), wanted, atol=1e-14)


def test_gradient_agrees_with_sigpy() -> None:
    sigpy = pytest.importorskip("sigpy")
    x = random_complex(8, 6).numpy()
    # sigpy takes the difference to the sample before.
    backward = sigpy.linop.FiniteDifference((8, 6)) * x
    theirs = np.stack([np.roll(part, -1, axis) for axis, part in enumerate(backward)])
    np.testing.assert_allclose(Gradient((8, 6))(torch.from_numpy(x)).numpy(), theirs, atol=1e-14)


@pytest.mark.parametrize("shape", [(6, 8), (1, 8), (4, 4, 6)])
def test_norm_bound_is_reached_on_even_grids(shape: tuple[int, ...]) -> None:
    largest = torch.linalg.matrix_norm(dense(Gradient(shape)), 2) ** 2
    assert float(largest) == pytest.approx(Gradient(shape).norm_squared)
