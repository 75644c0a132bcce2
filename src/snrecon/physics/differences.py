"""Finite differences, the sparsifying operator of total variation."""

from __future__ import annotations

import torch
from torch import Tensor

from snrecon.physics.operators import LinearOperator, Shape


class Gradient(LinearOperator):
    """Forward differences ``x[i + 1] - x[i]`` along every axis, ``(*grid)`` to ``(ndim, *grid)``.

    The boundary is periodic: an image that comes out of a discrete Fourier transform has no edge,
    its field of view repeats, and with this choice the operator is a convolution, as in sigpy and
    BART. Differences are per grid step, not per metre.
    """

    def __init__(self, shape: Shape) -> None:
        self.domain = tuple(shape)
        self.range = (len(shape), *shape)

    @property
    def norm_squared(self) -> float:
        """A bound on the largest eigenvalue of ``G^H G``: 4 for each axis that has differences."""
        return 4.0 * sum(n > 1 for n in self.domain)

    def _forward(self, x: Tensor) -> Tensor:
        axes = range(-len(self.domain), 0)
        return torch.stack([x.roll(-1, a) - x for a in axes], dim=-1 - len(self.domain))

    def _adjoint(self, y: Tensor) -> Tensor:
        parts = y.unbind(dim=-1 - len(self.domain))
        axes = range(-len(self.domain), 0)
        terms = [part.roll(1, axis) - part for part, axis in zip(parts, axes)]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total
