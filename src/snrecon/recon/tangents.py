"""Derivatives of the iterative methods with the image and its tangents side by side.

The iterations are linear but for one thresholding step. Running them on a batch whose first item is
the image and whose other items are tangents, with that step replaced by a version that treats the
two differently, differentiates them exactly: every matrix product serves the whole batch, the image
is computed once, and no step has to be remembered.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Solve = Callable[[Tensor, bool], Tensor]


def side_by_side(
    prepare: Callable[[Tensor], Tensor], solve: Solve
) -> Callable[[Tensor], tuple[Tensor, Callable[[Tensor], Tensor]]]:
    """The ``linearize`` of a :class:`~snrecon.recon.base.Bound`.

    Args:
        prepare: Linear; k-space ``(..., coil, *grid)`` to the right-hand side ``(..., *grid)``.
        solve: Right-hand side to image. With True the first axis holds one right-hand side and
            its tangents, and so does that of the result.
    """

    def linearize(y: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        rhs = prepare(y)

        def product(tangents: Tensor) -> Tensor:
            return solve(torch.cat([rhs.unsqueeze(0), prepare(tangents)]), True)[1:]

        return solve(rhs, False), product

    return linearize


def soft_threshold_tangents(x: Tensor, threshold: float | Tensor) -> Tensor:
    """Soft threshold of ``x[0]`` and its derivative applied to ``x[1:]``.

    With ``u = x / |x|``: ``dx - (t / |x|) (dx - u Re(conj(u) dx))`` where ``|x| > t``, else zero.
    """
    point, tangents = x[:1], x[1:]
    size = point.abs()
    kept = size >= threshold
    divisor = torch.where(kept & (size > 0), size, 1)
    shrink = torch.where(kept, 1 - threshold / divisor, 0)
    unit = point / divisor
    # (1 - s) u Re(conj(u) dx), zero where nothing is kept.
    along = unit * ((unit.real * tangents.real + unit.imag * tangents.imag) * (1 - shrink) * kept)
    return torch.cat([point * shrink, tangents * shrink + along])


def group_projection_tangents(x: Tensor, radius: float | Tensor, axis: int) -> Tensor:
    """Projection of vectors ``x[0]`` along ``axis`` onto a ball; its derivative for ``x[1:]``.

    Outside, with ``n = z / |z|``: ``(r / |z|) (dz - n Re<n, dz>)``; inside: ``dz``.
    """
    point, tangents = x[:1], x[1:]
    squared = (point.real**2 + point.imag**2).sum(dim=axis, keepdim=True)
    outside = squared >= radius**2
    size = torch.where(outside & (squared > 0), squared, 1).sqrt()
    shrink = torch.where(outside, radius / size, 1)
    normal = torch.where(outside, point / size, 0)
    along = (normal.real * tangents.real + normal.imag * tangents.imag).sum(dim=axis, keepdim=True)
    return torch.cat([point * shrink, shrink * (tangents - normal * along)])
