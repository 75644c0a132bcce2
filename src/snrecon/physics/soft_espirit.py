"""ESPIRiT without thresholds: coil images whose derivative in k-space exists everywhere.

:mod:`snrecon.physics.espirit` decides which singular values are signal and is therefore frozen in
noise maps. Here the signal part of the calibration matrix is weighted as a Wiener filter does, so
that the noise of the calibration lines goes through the maps into the image and is counted.

After Uecker et al., ESPIRiT, Magn Reson Med 71:990 (2014).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from snrecon.physics.espirit import correlation_kernel, kernel_widths, waves
from snrecon.physics.fourier import ifft
from snrecon.physics.safe import safe_divide, safe_root

RELATIVE = 1e-4
"""Energy that counts as noise beside the measured one, relative to that of the whole matrix."""
BLOCK_BYTES = 2**22
"""Largest coil x coil x voxel array held at once, for each tangent."""


def soft_espirit(kspace: Tensor, calibration: Tensor, iterations: int) -> Tensor:
    """Low-resolution coil images turned, voxel by voxel, into the direction of the coil maps.

    The direction is that of ``M^iterations`` times the coil images of the calibration lines, with
    ESPIRiT's coil x coil matrix M of the voxel, whose eigenvalue is 1 for the sensitivities and
    less for everything else; the length is that of those images. Divided by their root sum of
    squares they are coil maps, of the phase of the object.

    Singular values s of the calibration matrix count with ``s^4 / (s^4 + l^2)``, l being the
    largest ``s^2`` that whitened noise alone would give (Marchenko and Pastur) plus 1e-4 of the sum
    of all of them.

    Args:
        kspace: ``(coil, ky, kx)`` complex, whitened: noise of variance 1.
        calibration: Boolean ``(ky, kx)``: a block of sampled points around the centre.
        iterations: See above; between about 8 and 32.

    Returns:
        ``(coil, ky, kx)``, differentiable under ``torch.func``.
    """
    images = ifft(kspace * calibration, (-2, -1))
    kernel = _Kernel(kspace, calibration)
    correlation, _ = kernel.correlation(kernel.patches(kspace))
    parts = []
    for rows in kernel.row_blocks():
        matrices = kernel.matrices(correlation, rows)
        vectors = images[:, rows].movedim(0, -1).unsqueeze(-1)
        length = _length(vectors)
        for _ in range(iterations):
            vectors = matrices @ vectors
            vectors = safe_divide(vectors, _length(vectors))
        parts.append((vectors * length).squeeze(-1).movedim(-1, 0))
    return torch.cat(parts, dim=1)


def linearize_soft_espirit(
    kspace: Tensor, calibration: Tensor, iterations: int
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """:func:`soft_espirit` and its derivative at one k-space, without any graph.

    Equal to ``torch.func.jvp`` and several times faster: the powers ``M^k`` of all tangents are
    applied together, and so are the ``dM`` of one tangent to all iterates.

    Returns:
        ``(coil, ky, kx)`` and a function from tangents ``(batch, coil, ky, kx)`` to the same. Both
        without gradients.
    """
    with torch.no_grad():
        kernel = _Kernel(kspace, calibration)
        patches = kernel.patches(kspace)
        correlation, weighted = kernel.correlation(patches)
        solver = torch.linalg.lu_factor(kernel.shifted(patches.mT @ patches.conj())[0])
        images = ifft(kspace * calibration, (-2, -1))

        def iterates(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
            """Matrices, their unscaled iterates side by side, ``(ky, kx, coil, iterations + 1)``,
            and the factors ``(ky, kx, 1, iterations)`` that keep them of length 1."""
            matrices = kernel.matrices(correlation, rows)
            vectors, factors = [images[:, rows].movedim(0, -1).unsqueeze(-1)], []
            for _ in range(iterations):
                following = matrices @ vectors[-1]
                size = _length(following)
                factors.append(safe_divide(torch.ones_like(size), size))
                vectors.append(following * factors[-1])
            return matrices, torch.cat(vectors, -1), torch.cat(factors, -1)

    def turned(vectors: Tensor) -> Tensor:
        return vectors[..., -1:] * _length(vectors[..., :1])

    def jvp(tangents: Tensor) -> Tensor:
        with torch.no_grad():
            d_correlation = torch.stack([
                kernel.d_correlation(patches, weighted, solver, kernel.patches(one))
                for one in tangents])
            d_images = ifft(tangents * calibration, (-2, -1))
            parts = []
            for rows in kernel.row_blocks():
                matrices, vectors, factors = iterates(rows)
                start, length = vectors[..., :1], _length(vectors[..., :1])
                pushed = torch.stack([
                    kernel.matrices(one, rows) @ vectors[..., :-1] for one in d_correlation])
                moved = d_images[:, :, rows].movedim(1, -1).movedim(0, -1)
                d_length = safe_divide((start.conj() * moved).real.sum(-2, keepdim=True), length)
                for k in range(iterations):
                    # Lengths do not matter on the way: only the direction is asked for.
                    moved = (matrices @ moved + pushed[..., k].movedim(0, -1)) * factors[..., k:k+1]
                end = vectors[..., -1:]
                along = (end.conj() * moved).real.sum(-2, keepdim=True)
                parts.append((moved - end * along) * length + end * d_length)
            return torch.cat(parts, dim=0).movedim(-1, 0).movedim(-1, 1)

    with torch.no_grad():
        image = torch.cat([turned(iterates(rows)[1]).squeeze(-1).movedim(-1, 0)
                           for rows in kernel.row_blocks()], dim=1)
    return image, jvp


class _Kernel:
    """ESPIRiT's matrices of one calibration block on one grid.

    Args:
        kspace: ``(coil, ky, kx)``, for its shape and kind.
        calibration: Boolean ``(ky, kx)``.
    """

    def __init__(self, kspace: Tensor, calibration: Tensor) -> None:
        self.coils, *self.grid = (int(n) for n in kspace.shape)
        self.block = (slice(None), _extent(calibration.any(1)), _extent(calibration.any(0)))
        shape = tuple(part.stop - part.start for part in self.block[1:])
        self.widths = kernel_widths(self.coils, shape)
        self.by_row, self.by_column = (
            waves(n, w, kspace) for n, w in zip(self.grid, self.widths, strict=True))

    def patches(self, kspace: Tensor) -> Tensor:
        """``(patch, coil * kernel)``."""
        parts = kspace[self.block]
        for axis, width in enumerate(self.widths):
            parts = parts.unfold(1 + axis, width, 1)
        return parts.movedim(0, 2).flatten(2).flatten(0, 1)

    def shifted(self, gram: Tensor) -> tuple[Tensor, Tensor]:
        """``G - i l`` and the noise level ``l``."""
        patches = math.prod(
            part.stop - part.start - width + 1
            for part, width in zip(self.block[1:], self.widths, strict=True))
        edge = (math.sqrt(patches) + math.sqrt(len(gram))) ** 2
        level = edge + RELATIVE * gram.diagonal().real.sum()
        return gram - 1j * level * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), level

    def correlation(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Convolution kernels of the weighted projection, and ``(G - i l)^-1 G``."""
        gram = patches.mT @ patches.conj()
        # Its Hermitian part is G^2 (G^2 + l^2)^-1, at the condition of G instead of G^2.
        weighted = torch.linalg.solve(self.shifted(gram)[0], gram)
        return self._kernels(weighted), weighted

    def d_correlation(
        self, patches: Tensor, weighted: Tensor, solver: tuple[Tensor, Tensor], d_patches: Tensor
    ) -> Tensor:
        """Derivative of the convolution kernels along ``d_patches``; ``solver`` is the LU
        factorisation of ``G - i l``."""
        half = d_patches.mT @ patches.conj()
        d_gram = half + half.mH
        d_level = RELATIVE * d_gram.diagonal().real.sum()
        change = d_gram - d_gram @ weighted + 1j * d_level * weighted
        return self._kernels(torch.linalg.lu_solve(*solver, change))

    def _kernels(self, weighted: Tensor) -> Tensor:
        return correlation_kernel((weighted + weighted.mH) / 2, self.coils, self.widths)

    def matrices(self, correlation: Tensor, rows: slice) -> Tensor:
        """``(ky, kx, coil, coil)`` of some rows."""
        partial = torch.einsum("cdpq,yp->yqcd", correlation, self.by_row[rows])
        return torch.einsum("yqcd,xq->yxcd", partial, self.by_column)

    def row_blocks(self) -> list[slice]:
        """The rows of the grid, a few at a time."""
        voxel = self.coils**2 * self.by_row.element_size()
        size = max(1, BLOCK_BYTES // (voxel * self.grid[1]))
        return [slice(start, start + size) for start in range(0, self.grid[0], size)]


def _length(vectors: Tensor) -> Tensor:
    return safe_root((vectors.real**2 + vectors.imag**2).sum(dim=-2, keepdim=True))


def _extent(lines: Tensor) -> slice:
    """From the first true entry to the last."""
    found = lines.nonzero()[:, 0]
    return slice(int(found[0]), int(found[-1]) + 1)
