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
KEPT_BYTES = 2**28
"""Most that a derivative keeps of matrices and iterates; above, it makes them again every time."""
SCALED = 4
"""After so many iterations vectors are brought back to length 1. Eigenvalues in air are far below
those of the object: sixteen powers of 1e-3 are less than single precision knows."""


def soft_espirit(kspace: Tensor, calibration: Tensor, iterations: int) -> Tensor:
    """Low-resolution coil images turned, voxel by voxel, into the direction of the coil maps.

    The direction is that of ``M^iterations`` times the coil images of the calibration lines, with
    ESPIRiT's coil x coil matrix M of the voxel, whose eigenvalue is 1 for the sensitivities and
    less for everything else; the length is that of those images. Divided by their root sum of
    squares they are coil maps, of the phase of the object.

    Singular values s of the calibration matrix count with ``s^4 / (s^4 + l^2)``, l being the
    largest ``s^2`` that whitened noise alone would give (Marchenko and Pastur) plus 1e-4 of the sum
    of all of them. In single precision the derivative is right to a part in a thousand at the SNR
    of measured data, and no longer far beyond (an SNR of a hundred thousand and more).

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
        correlation = correlation * kernel.scale(correlation)
        parts.append(_turned(kernel, correlation, images[items], iterations))
    order = torch.tensor([item for items in groups.values() for item in items])
    return torch.cat(parts)[order.argsort().to(kspace.device)] if len(parts) > 1 else parts[0]


def _turned(kernel: _Kernel, correlation: Tensor, images: Tensor, iterations: int) -> Tensor:
    """Images ``(batch, coil, ky, kx)`` after the iterations."""
    parts = []
    for rows in kernel.row_blocks(len(images)):
        matrices = kernel.matrices(correlation, rows)
        vectors = images[:, :, rows].permute(2, 3, 0, 1).unsqueeze(-1)
        length = _length(vectors)
        for power in _powers(matrices, iterations):
            vectors = power @ vectors
            vectors = safe_divide(vectors, _length(vectors))
        parts.append((vectors * length).squeeze(-1))
    return torch.cat(parts).permute(2, 3, 0, 1).contiguous()


def _powers(matrices: Tensor, iterations: int) -> list[Tensor]:
    """Matrices whose product is ``M^iterations``: squaring twice costs less than the products with
    single vectors that it saves."""
    assert SCALED == 4
    times, rest = divmod(iterations, SCALED)
    if not times:
        return [matrices] * rest
    squared = matrices @ matrices
    return [*[matrices] * rest, *[squared @ squared] * times]


def _is_scaled(k: int, iterations: int) -> bool:
    """Whether vectors are given length 1 after iteration ``k``."""
    return (k + 1) % SCALED == 0 or k + 1 == iterations


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
        scale = kernel.scale(correlation)
        correlation = correlation * scale
        identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        solver = torch.linalg.lu_factor(gram - 1j * kernel.level(gram, [len(patches)]) * identity)
        images = ifft(kspace * calibration, (-2, -1))

        def iterates(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
            """Matrices, their iterates side by side, ``(ky, kx, coil, iterations + 1)``, and the
            factors ``(ky, kx, 1, 1 + (iterations - 1) // SCALED)`` that kept them of length 1."""
            matrices = kernel.matrices(correlation, rows)
            vectors, factors = [images[:, rows].permute(1, 2, 0).unsqueeze(-1)], []
            for k in range(iterations):
                following = matrices @ vectors[-1]
                if _is_scaled(k, iterations):
                    size = _length(following)
                    factors.append(safe_divide(torch.ones_like(size), size))
                    following = following * factors[-1]
                vectors.append(following)
            return matrices, torch.cat(vectors, -1), torch.cat(factors, -1)

        size = images.numel() * (len(images) + iterations + 1) * images.element_size()
        blocks, ends = [], []
        for rows in kernel.row_blocks(1):
            found = iterates(rows)
            ends.append(_end(found[1]))
            if size <= KEPT_BYTES:
                blocks.append(found)
        image = torch.cat(ends).permute(2, 0, 1).contiguous()
        kept = [torch.cat(parts) for parts in zip(*blocks, strict=True)]
        del blocks

    def jvp(tangents: Tensor) -> Tensor:
        with torch.no_grad():
            d_correlation = scale * kernel.d_correlation(
                patches, weighted, solver, kernel.patches(tangents, block))
            d_images = ifft(tangents * calibration, (-2, -1)).permute(2, 3, 1, 0).contiguous()
            parts = []
            for rows in kernel.row_blocks(len(tangents)):
                matrices, vectors, factors = [one[rows] for one in kept] or iterates(rows)
                pushed = _pushed(kernel.matrices(d_correlation, rows), vectors[..., :-1])
                parts.append(_moved(matrices, vectors, factors, pushed, d_images[rows]))
            return torch.cat(parts).permute(3, 2, 0, 1)

    return image, jvp


def _end(vectors: Tensor) -> Tensor:
    """The last iterate at the length of the first, ``(ky, kx, coil)``."""
    return (vectors[..., -1:] * _length(vectors[..., :1])).squeeze(-1)


def _pushed(d_matrices: Tensor, vectors: Tensor) -> Tensor:
    """``dM`` ``(ky, kx, batch, coil, coil)`` of every tangent times all iterates
    ``(ky, kx, coil, iterations)``: ``(iterations, ky * kx, coil, batch)``."""
    batch, coils = d_matrices.shape[2:4]
    product = torch.bmm(d_matrices.reshape(-1, batch * coils, coils), vectors.flatten(0, 1))
    return product.unflatten(1, (batch, coils)).permute(3, 0, 2, 1).contiguous()


def _moved(
    matrices: Tensor, vectors: Tensor, factors: Tensor, pushed: Tensor, d_images: Tensor
) -> Tensor:
    """Derivative of :func:`_end`, ``(ky, kx, coil, batch)``.

    Args:
        matrices: M, ``(ky, kx, coil, coil)``.
        vectors: Its iterates, ``(ky, kx, coil, iterations + 1)``.
        factors: ``(ky, kx, 1, times)``: what they were multiplied by.
        pushed: ``(iterations, ky * kx, coil, batch)``: ``dM`` times all iterates but the last.
        d_images: Change of the first, ``(ky, kx, coil, batch)``.
    """
    start, end = vectors[..., :1], vectors[..., -1:]
    length = _length(start)
    d_length = safe_divide((start.conj() * d_images).real.sum(-2, keepdim=True), length)
    matrices, factors = matrices.flatten(0, 1), factors.flatten(0, 1)
    moved = d_images.flatten(0, 1)
    for k, part in enumerate(pushed):
        moved = torch.baddbmm(part, matrices, moved)
        if _is_scaled(k, len(pushed)):
            # By the same number: the change of length is taken out once, at the end.
            moved = moved * factors[..., k // SCALED, None]
    moved = moved.reshape(d_images.shape)
    along = (end.conj() * moved).real.sum(-2, keepdim=True)
    return (moved - end * along) * length + end * d_length


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

    def level(self, gram: Tensor, patches: list[int]) -> Tensor:
        """Noise level ``l`` of so many patches, ``(..., 1, 1)``, one for each matrix."""
        edges = [(math.sqrt(count) + math.sqrt(gram.shape[-1])) ** 2 for count in patches]
        edge = torch.tensor(edges, dtype=gram.real.dtype, device=gram.device).reshape(
            gram.shape[:-2])
        return (edge + RELATIVE * _trace(gram))[..., None, None]

    def correlation(self, gram: Tensor, patches: list[int]) -> tuple[Tensor, Tensor]:
        """Convolution kernels of the weighted projection, and ``W = (G - i l)^-1 G``.

        The projection ``G^2 (G^2 + l^2)^-1`` is the Hermitian part of W. Both are found from the
        Cholesky factor of ``G^2 + l^2``, in double precision as its condition is that of G squared.
        (An LU factorisation of ``G - i l`` would do in single precision, but those of a batch never
        return once somebody has called ``torch.set_num_threads``: PyTorch issue 142815.)
        """
        wide = gram.to(torch.complex128)
        level, square = self.level(wide, patches), wide @ wide
        identity = torch.eye(gram.shape[-1], dtype=wide.dtype, device=wide.device)
        factor = torch.linalg.cholesky(square + level**2 * identity)
        weighted = torch.cholesky_solve(square + 1j * level * wide, factor).to(gram.dtype)
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

    def scale(self, correlation: Tensor) -> Tensor:
        """A number for each of the kernels that brings the mean eigenvalue over coils and voxels to
        1: powers of matrices of next to no signal would underflow. Directions do not depend on it,
        and neither do their derivatives."""
        middle = correlation.detach()[..., self.widths[0] - 1, self.widths[1] - 1]
        mean = _trace(middle) / self.coils
        return torch.where(mean > 0, 1 / mean, 1)[..., None, None, None, None]

    def matrices(self, correlation: Tensor, rows: slice) -> Tensor:
        """``(ky, kx, ..., coil, coil)`` of some rows."""
        rest = correlation.movedim((-2, -1), (0, 1))  # kernel points first
        partial = self.by_row[rows] @ rest.flatten(1)
        partial = partial.reshape(len(partial), rest.shape[1], -1)
        whole = torch.bmm(self.by_column.expand(len(partial), -1, -1), partial)
        return whole.reshape(*whole.shape[:2], *rest.shape[2:])

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
