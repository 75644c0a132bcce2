"""Exact SENSE for masks that vary along one axis: one dense inverse for every line of voxels."""

from __future__ import annotations

import torch
from torch import Tensor

from snrecon.physics.constant_matmul import constant_matmul
from snrecon.physics.gram import LineGram, from_lines, to_lines
from snrecon.recon.dense import support_inverse

CHUNK = 2**27
"""Bytes of double-precision matrices factorised at a time."""
SINGLE_PRECISION_CONDITION = 1e4
"""Above this condition number the normal equations are solved in double precision throughout:
rounding of the right-hand side, amplified, must stay far below the noise."""


class LineInverse:
    """``(A^H A + lamda)^-1`` (pseudo-inverse on the maps' support), ``(..., *grid)`` to the same.

    Args:
        maps: Whitened maps ``(coil, *grid)``.
        mask: Boolean ``(*grid)`` that varies along ``axis`` alone.
        axis: Negative.
        lamda: Weight of ``|x|^2``.
    """

    def __init__(self, maps: Tensor, mask: Tensor, axis: int, lamda: float = 0.0) -> None:
        self.grid, self.axis = tuple(mask.shape), axis
        coils, n = maps.shape[0], mask.shape[axis]
        profile = mask.movedim(axis, -1).reshape(-1, n)[:1]
        lines = maps.movedim(axis, -1).reshape(coils, -1, n)
        step = max(1, CHUNK // (16 * n * n))
        parts, self.condition = [], 1.0
        for start in range(0, lines.shape[1], step):
            some = lines[:, start : start + step].to(torch.complex128)
            gram = LineGram(some, profile.expand(some.shape[1], n), -1)
            part, worst = support_inverse(gram.matrix, (some != 0).any(dim=0), lamda)
            self.condition = max(self.condition, worst)
            if worst <= SINGLE_PRECISION_CONDITION:
                part = part.to(maps.dtype)
            parts.append(part)
        double = self.condition > SINGLE_PRECISION_CONDITION
        self.dtype = torch.complex128 if double else maps.dtype
        self.matrix = torch.cat([part.to(self.dtype) for part in parts])

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to the right-hand side ``A^H y``, ``(..., *grid)``, in the precision of ``x``."""
        lines = constant_matmul(self.matrix.to(x.dtype), to_lines(x, self.axis, self.grid))
        return from_lines(lines, x, self.axis, self.grid)
