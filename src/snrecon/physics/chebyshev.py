"""Shifted systems by a polynomial of the operator: linear in the right-hand side, smooth in the
shift, and the same number of steps for all."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def chebyshev_solve(
    operator: Callable[[Tensor], Tensor],
    b: Tensor,
    shift: Tensor,
    steps: int,
    x0: Tensor | None = None,
) -> Tensor:
    """``(A + shift)^-1 b`` for Hermitian A with eigenvalues in [0, 1], approximately.

    The error falls by ``2 q^steps / (1 + q^(2 steps))``, ``q = (r - 1) / (r + 1)``,
    ``r = sqrt((1 + shift) / shift)``: for a shift of 0.1 to 4e-6 in 20 steps, for 0.01 to 4 % of
    the error of ``x0``. No inner product is taken, so that torch.func differentiates it step by
    step without the quotients of vanishing residuals that conjugate gradients have.

    Args:
        operator: A, on ``(..., *grid)``.
        b: ``(..., *grid)``.
        shift: Real and positive, broadcast against b: another one for every item of a batch.
        steps: Products with A.
        x0: Start, as b; zero when None.

    Source: Y. Saad, Iterative Methods for Sparse Linear Systems, 2nd ed. 2003, algorithm 12.1.
    """
    x = torch.zeros_like(b) if x0 is None else x0
    residual = b if x0 is None else b - operator(x0) - shift * x0
    centre = shift + 0.5
    ratio = 1 / (2 * centre)
    direction = residual / centre
    for _ in range(steps):
        x = x + direction
        residual = residual - operator(direction) - shift * direction
        following = 1 / (4 * centre - ratio)
        direction = following * ratio * direction + 4 * following * residual
        ratio = following
    return x
