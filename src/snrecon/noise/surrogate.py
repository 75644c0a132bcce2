"""A linear reconstruction much like the one at hand, whose noise is known without sampling.

For a mask that varies along one axis, regularised SENSE separates into one small dense problem for
every line of voxels along that axis, and stays so with a regulariser that differs from voxel to
voxel: ``z = (A^H A + R)^-1 A^H n`` with ``R`` of differences along the line, weak across the edges
of the image and strong where it is flat, as networks and total variation smooth. Its noise is
``K A^H A K^H`` with ``K`` the inverse, exact for any ``K``. It is no good reconstruction, but at
the image's edges and in its folds it answers to the same noise: of the same probe, its answer
predicts two thirds of a network's, which makes it a control variate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from snrecon.errors import InputError
from snrecon.noise.problem import Problem
from snrecon.physics.folding import folding
from snrecon.physics.gram import (
    DENSE_LIMIT,
    LineGram,
    boxed,
    from_lines,
    support_box,
    to_lines,
    unboxed,
    varying_axes,
)
from snrecon.recon.forward_model import forward_model

EDGE = 0.03
"""Differences below this part of the image's mean modulus are no edges."""
STRENGTH = 0.01
"""Weight of the regulariser: that of a difference as large as the mean modulus, relative
to the power of the coil maps."""
CHUNK = 2**27
"""Bytes of matrices inverted at a time."""


@dataclass(frozen=True, eq=False)
class LineSurrogate:
    """``n -> z``: noise ``(..., coil, *grid)`` in the scan's coil basis to ``(..., *grid)``."""

    grid: tuple[int, ...]
    axis: int
    box: tuple[slice, ...]
    """Beyond it all coil maps are zero, and so is z."""
    matrix: Tensor
    """``K``, ``(lines, n, n)``, of the lines in the box."""
    variance: Tensor
    """``E|z|^2`` of the scan's noise ``(*grid)``, real; z is circular."""
    folded: Callable[[Tensor], Tensor]
    """``A^H`` of the scan's noise, whitened: ``(..., coil, *grid)`` to ``(..., *grid)``."""

    @staticmethod
    def of(problem: Problem) -> LineSurrogate | None:
        """The surrogate of a problem; None where there is none: the mask varies along no axis or
        several, the noise is coloured along that axis, the image is not on the grid or zero, or
        there are no coil maps to be had (in 3D only given ones count: estimating them takes longer
        than the passes that they save)."""
        scan, image = problem.scan, problem.image
        axes = varying_axes(scan.sampled)
        if len(axes) != 1 or tuple(image.shape) != scan.grid or not bool(image.any()):
            return None
        axis, noise = axes[0], scan.require_noise()
        n = scan.grid[axis]
        if image.numel() * n * scan.kspace.element_size() > DENSE_LIMIT:
            return None
        if noise.spectrum is not None and axis == -1:
            return None
        if len(scan.grid) == 3 and scan.maps is None:
            return None
        try:
            model = forward_model(scan)
        except InputError:
            return None
        box = support_box(model.maps)
        gram = LineGram(model.maps, model.mask, axis, box).matrix
        try:
            inverse = _inverse(gram, *_weights(image, axis, model.maps, box))
        except torch.linalg.LinAlgError:  # a line without edges or maps: the noise is what it is
            return None
        parts = (torch.view_as_real(part) for part in (inverse @ gram, inverse))
        power = torch.mul(*parts).sum((-2, -1)).clamp_min(0)
        inner = image[box]
        variance = from_lines(power[..., None], inner[None], axis, tuple(inner.shape))[0]
        variance = unboxed(variance, box, scan.grid)
        if noise.spectrum is not None:
            variance = variance * noise.spectrum.to(variance)
        folded = folding(model.maps, model.whitening, model.mask)
        return LineSurrogate(scan.grid, axis, box, inverse, variance, folded)

    def __call__(self, noise: Tensor) -> Tensor:
        """``z``."""
        inner = boxed(self.folded(noise), self.box)
        grid = tuple(part.stop - part.start for part in self.box)
        lines = self.matrix @ to_lines(inner, self.axis, grid)
        return unboxed(from_lines(lines, inner, self.axis, grid), self.box, self.grid)


def _weights(
    image: Tensor, axis: int, maps: Tensor, box: tuple[slice, ...]
) -> tuple[Tensor, Tensor]:
    """Weights of the differences along the axis, and of what the other axes add to the diagonal,
    both in the lines of a box, ``(lines, n)``."""
    tiny = torch.finfo(image.abs().dtype).tiny
    # Means over the object: weighted with the modulus itself, so that the air does not count.
    scale = image.abs().square().sum() / image.abs().sum().clamp_min(tiny)
    power = ((maps.abs() ** 2).sum(0) * image.abs()).sum() / image.abs().sum().clamp_min(tiny)
    gaps = {a: (image.roll(-1, a) - image).abs() for a in range(-image.ndim, 0)}
    steep = torch.stack([gap**2 for gap in gaps.values()]).sum(0)
    weight = 1 / (steep + (EDGE * scale) ** 2).sqrt().clamp_min(tiny)
    weight = weight * (STRENGTH * scale * power)
    across = sum((weight + weight.roll(1, a) for a in gaps if a != axis),
                 start=torch.zeros_like(weight))
    weight, across = weight[box], across[box]
    grid = tuple(weight.shape)
    if grid[axis] < image.shape[axis]:
        weight = weight.clone()
        weight.select(axis, -1).zero_()  # the ends of a cut line are no neighbours
    return tuple(to_lines(w[None], axis, grid)[..., 0] for w in (weight, across))  # type: ignore[return-value]


def _inverse(gram: Tensor, along: Tensor, across: Tensor) -> Tensor:
    """``(A^H A + R)^-1`` of every line."""
    lines, n, _ = gram.shape
    step = max(1, CHUNK // (gram.element_size() * n * n))
    here = torch.arange(n, device=gram.device)
    following = (here + 1) % n
    parts = []
    for start in range(0, lines, step):
        some = slice(start, start + step)
        matrix = gram[some].clone()
        weight, extra = along[some].to(gram.dtype), across[some].to(gram.dtype)
        matrix[:, here, here] += weight + weight.roll(1, -1) + extra
        matrix[:, here, following] -= weight
        matrix[:, following, here] -= weight
        # Not the inverse of the batch: it never returns once somebody has called
        # torch.set_num_threads (PyTorch issue 142815).
        factor, failed = torch.linalg.cholesky_ex(matrix)
        inverse = torch.cholesky_inverse(factor)
        for line in failed.nonzero()[:, 0].tolist():  # by rounding
            inverse[line] = torch.linalg.inv(matrix[line])
        parts.append(inverse)
    return torch.cat(parts)
