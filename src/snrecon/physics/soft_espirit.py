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

Block = tuple[slice, slice]
RELATIVE = 1e-4
"""Energy that counts as noise beside the measured one, relative to that of the whole matrix."""
BLOCK_BYTES = 2**22
"""Largest coil x coil x voxel array held at once on a CPU: about its cache."""
DEVICE_BYTES = 2**29
"""The same elsewhere."""


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
        kspace: ``(coil, ky, kx)`` or ``(batch, coil, ky, kx)`` complex, whitened: noise of
            variance 1.
        calibration: Boolean ``(ky, kx)``, for a batch ``(batch, ky, kx)``: a block of sampled
            points around the centre.
        iterations: See above; between about 8 and 32.

    Returns:
        As ``kspace``, differentiable under ``torch.func``.
    """
    if kspace.ndim == 3:
        return soft_espirit(kspace.unsqueeze(0), calibration.unsqueeze(0), iterations)[0]
    images = ifft(kspace * calibration.unsqueeze(-3), (-2, -1))
    groups: dict[tuple[int, ...], list[int]] = {}
    blocks = [_block(one) for one in calibration.cpu()]
    for item, block in enumerate(blocks):
        groups.setdefault(_widths(kspace.shape[1], block), []).append(item)
    parts = []
    for widths, items in groups.items():
        kernel = _Kernel(kspace, widths)
        patches = [kernel.patches(kspace[item], blocks[item]) for item in items]
        gram = torch.stack([one.mT @ one.conj() for one in patches])
        correlation, _ = kernel.correlation(gram, [len(one) for one in patches])
        parts.append(_turned(kernel, correlation, images[items], iterations))
    order = torch.tensor([item for items in groups.values() for item in items])
    return torch.cat(parts)[order.argsort().to(kspace.device)] if len(parts) > 1 else parts[0]


def _turned(kernel: _Kernel, correlation: Tensor, images: Tensor, iterations: int) -> Tensor:
    """Images ``(batch, coil, ky, kx)`` after the iterations."""
    parts = []
    for rows in kernel.row_blocks(len(images)):
        matrices = kernel.matrices(correlation, rows)
        vectors = images[:, :, rows].movedim(1, -1).unsqueeze(-1)
        length = _length(vectors)
        for _ in range(iterations):
            vectors = matrices @ vectors
            vectors = safe_divide(vectors, _length(vectors))
        parts.append((vectors * length).squeeze(-1).movedim(-1, 1))
    return torch.cat(parts, dim=2)


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
        block = _block(calibration.cpu())
        kernel = _Kernel(kspace, _widths(kspace.shape[0], block))
        patches = kernel.patches(kspace, block)
        gram = patches.mT @ patches.conj()
        correlation, weighted = kernel.correlation(gram, [len(patches)])
        solver = torch.linalg.lu_factor(kernel.shifted(gram, [len(patches)]))
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
            d_correlation = kernel.d_correlation(
                patches, weighted, solver, kernel.patches(tangents, block))
            d_images = ifft(tangents * calibration, (-2, -1))
            parts = []
            for rows in kernel.row_blocks(len(tangents)):
                matrices, vectors, factors = iterates(rows)
                start, length = vectors[..., :1], _length(vectors[..., :1])
                pushed = kernel.matrices(d_correlation, rows) @ vectors[..., :-1]
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
                           for rows in kernel.row_blocks(1)], dim=1)
    return image, jvp


class _Kernel:
    """ESPIRiT's matrices on one grid. Leading axes are of a batch.

    Args:
        kspace: ``(..., coil, ky, kx)``, for its shape and kind.
        widths: Of the kernel along both axes.
    """

    def __init__(self, kspace: Tensor, widths: tuple[int, ...]) -> None:
        self.coils, *self.grid = (int(n) for n in kspace.shape[-3:])
        self.widths = widths
        self.by_row, self.by_column = (
            waves(n, w, kspace) for n, w in zip(self.grid, widths, strict=True))

    def patches(self, kspace: Tensor, block: Block) -> Tensor:
        """``(..., patch, coil * kernel)`` of a calibration block."""
        parts = kspace[(..., *block)]
        for axis, width in enumerate(self.widths, start=kspace.ndim - 2):
            parts = parts.unfold(axis, width, 1)
        return parts.movedim(-5, -3).flatten(-3).flatten(-3, -2)

    def shifted(self, gram: Tensor, patches: list[int]) -> Tensor:
        """``G - i l``, with the noise level ``l`` of so many patches for each matrix."""
        size = gram.shape[-1]
        edges = [(math.sqrt(count) + math.sqrt(size)) ** 2 for count in patches]
        edge = torch.tensor(edges, dtype=gram.real.dtype, device=gram.device).reshape(
            gram.shape[:-2])
        level = edge + RELATIVE * _trace(gram)
        identity = torch.eye(size, dtype=gram.dtype, device=gram.device)
        return gram - 1j * level[..., None, None] * identity

    def correlation(self, gram: Tensor, patches: list[int]) -> tuple[Tensor, Tensor]:
        """Convolution kernels of the weighted projection, and ``(G - i l)^-1 G``."""
        # Its Hermitian part is G^2 (G^2 + l^2)^-1, at the condition of G instead of G^2.
        weighted = torch.linalg.solve(self.shifted(gram, patches), gram)
        return self._kernels(weighted), weighted

    def d_correlation(
        self, patches: Tensor, weighted: Tensor, solver: tuple[Tensor, Tensor], d_patches: Tensor
    ) -> Tensor:
        """Derivative of the convolution kernels along each of ``d_patches``
        ``(batch, patch, coil * kernel)``; ``solver`` is the LU factorisation of ``G - i l``."""
        half = d_patches.mT @ patches.conj()
        d_gram = half + half.mH
        d_level = RELATIVE * _trace(d_gram)
        change = d_gram - d_gram @ weighted + 1j * d_level[:, None, None] * weighted
        columns = change.movedim(0, 1).flatten(1)  # one solution for all right-hand sides
        solved = torch.linalg.lu_solve(*solver, columns).unflatten(1, (len(half), -1))
        return self._kernels(solved.movedim(1, 0))

    def _kernels(self, weighted: Tensor) -> Tensor:
        return correlation_kernel((weighted + weighted.mH) / 2, self.coils, self.widths)

    def matrices(self, correlation: Tensor, rows: slice) -> Tensor:
        """``(..., ky, kx, coil, coil)`` of some rows."""
        partial = torch.einsum("...cdpq,yp->...yqcd", correlation, self.by_row[rows])
        return torch.einsum("...yqcd,xq->...yxcd", partial, self.by_column)

    def row_blocks(self, count: int) -> list[slice]:
        """The rows of the grid, a few at a time, for a batch of ``count``."""
        voxel = count * self.coils**2 * self.by_row.element_size()
        room = BLOCK_BYTES if self.by_row.device.type == "cpu" else DEVICE_BYTES
        size = max(1, room // (voxel * self.grid[1]))
        return [slice(start, start + size) for start in range(0, self.grid[0], size)]


def _length(vectors: Tensor) -> Tensor:
    return safe_root((vectors.real**2 + vectors.imag**2).sum(dim=-2, keepdim=True))


def _trace(matrices: Tensor) -> Tensor:
    """Of Hermitian matrices ``(..., n, n)``."""
    return matrices.diagonal(dim1=-2, dim2=-1).real.sum(-1)


def _block(calibration: Tensor) -> Block:
    """Rows and columns from the first true entry to the last, of one ``(ky, kx)`` on the CPU."""
    return _extent(calibration.any(1)), _extent(calibration.any(0))


def _extent(lines: Tensor) -> slice:
    found = lines.nonzero()[:, 0]
    return slice(int(found[0]), int(found[-1]) + 1)


def _widths(coils: int, block: Block) -> tuple[int, ...]:
    return kernel_widths(coils, tuple(part.stop - part.start for part in block))
