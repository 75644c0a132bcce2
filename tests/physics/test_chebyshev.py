"""Shifted systems by Chebyshev steps, against dense solves and the stated rate."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from derivatives import check_derivatives
from snrecon.physics.chebyshev import chebyshev_solve
from support import random_complex


def projection_like(n: int = 24) -> Tensor:
    """Hermitian, eigenvalues from 0 to 1 with both ends."""
    basis = torch.linalg.qr(random_complex(n, n)).Q
    return (basis * torch.linspace(0, 1, n, dtype=torch.float64)) @ basis.mH


@pytest.mark.parametrize("shift", [0.01, 0.1, 3.0])
@pytest.mark.parametrize("steps", [1, 5, 20])
def test_the_error_falls_at_the_stated_rate(shift: float, steps: int) -> None:
    matrix, b = projection_like(), random_complex(24, seed=1)
    exact = torch.linalg.solve(matrix + shift * torch.eye(24), b)
    root = ((1 + shift) / shift) ** 0.5
    q = (root - 1) / (root + 1)
    rate = 2 * q**steps / (1 + q ** (2 * steps))
    level = torch.tensor(shift, dtype=torch.float64)
    for start in (None, b):
        found = chebyshev_solve(lambda x: x @ matrix.T, b, level, steps, start)
        begun = exact if start is None else exact - start
        assert float((found - exact).norm()) < (rate + 1e-14) * float(begun.norm())


def test_every_item_has_its_own_shift_and_derivatives_are_exact() -> None:
    matrix, b = projection_like(), random_complex(2, 24, seed=2)
    shift = torch.tensor([[0.2], [1.5]], dtype=torch.float64)
    found = chebyshev_solve(lambda x: x @ matrix.T, b, shift, 40)
    for one, right, level in zip(found, b, shift):
        wanted = torch.linalg.solve(matrix + level * torch.eye(24), right)
        torch.testing.assert_close(one, wanted)

    def function(x: Tensor) -> Tensor:
        level = x.abs().square().mean(dim=-1, keepdim=True)
        return chebyshev_solve(lambda v: v @ matrix.T, x, level, 10)

    check_derivatives(function, b[0])
