"""Coil maps by ESPIRiT, from the calibration lines only and in bounded memory.

Uecker et al., ESPIRiT: an eigenvalue approach to autocalibrating parallel MRI, Magn Reson Med
71:990 (2014). The signal part of the calibration matrix's row space projects k-space patches onto
themselves. Averaged over the positions in a patch this projection is a convolution, in image space
a coil x coil matrix at every voxel, of which the sensitivities are the eigenvector to the
eigenvalue 1.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as nnf
from torch import Tensor

from snrecon.errors import InputError
from snrecon.physics.fourier import grid_axes, ifft

THRESHOLD = 0.02
"""Smallest singular value kept, relative to the largest."""
CROP = 0.75
"""Smallest eigenvalue of the support: low, for a hole in the head is worse than a wide support."""
BLOCK_BYTES = 2**27
"""Largest coil x coil x voxel array held at once."""
OBJECT = 0.01
"""Smallest energy of the object in the low-resolution image, relative to the largest."""
WEAKEST = 0.02
"""The weakest response counts as this quantile, for noisy places at the rim."""
REFERENCE_PLACES = 500
"""About so many places are tried for the reference coil."""
SQUARINGS = 3
"""Each matrix is squared so often..."""
ITERATIONS = 20
"""...and its power is applied so often: together the power 160."""


def espirit(
    calibration: Tensor,
    grid: tuple[int, ...],
    kernel: int | tuple[int, ...] = 6,
    threshold: float = THRESHOLD,
    crop: float = CROP,
    fill: bool = True,
    noise_variance: float = 0.0,
) -> Tensor:
    """Coil maps ``(coil, *grid)`` from a fully sampled block of k-space.

    The maps have ``sum |S|^2 = 1`` on the support and are exactly 0 off it. Their phase is
    relative to one fixed combination of the coils, chosen to have no null inside the object where
    possible, so they are deterministic and smooth.

    Args:
        calibration: ``(coil, *block)`` complex, a central block of k-space, best whitened.
        grid: Image grid, of as many axes as the block.
        kernel: Kernel width in k-space samples, one number or one per axis.
        threshold: Singular values of the calibration matrix below this fraction of the largest
            count as noise.
        crop: The support is where the eigenvalue (between 0 and 1) is at least this.
        fill: Fill holes of the support that the background cannot reach.
        noise_variance: ``E|n|^2`` of a calibration sample, 1 for whitened data. Singular values
            that noise alone would have are dropped too, whatever ``threshold`` says.

    Raises:
        InputError: if the block is smaller than the kernel, or holds no signal.
    """
    maps, values = espirit_eigen(calibration, grid, kernel, threshold, noise_variance)
    support = values >= crop
    if fill:
        support = fill_holes(support)
    return maps * support


def espirit_eigen(
    calibration: Tensor,
    grid: tuple[int, ...],
    kernel: int | tuple[int, ...] = 6,
    threshold: float = THRESHOLD,
    noise_variance: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Unit-norm principal eigenvectors ``(coil, *grid)`` and eigenvalues ``(*grid)`` everywhere.

    Arguments and errors as for :func:`espirit`.
    """
    block = tuple(calibration.shape[1:])
    widths = (kernel,) * len(block) if isinstance(kernel, int) else tuple(kernel)
    if len(grid) != len(block) or len(widths) != len(block):
        raise InputError(
            f"calibration data of {len(block)} axes, kernel {widths} and image grid {grid} do not "
            "fit together."
        )
    if any(b < w for b, w in zip(block, widths)):
        raise InputError(
            f"the calibration block {' x '.join(map(str, block))} is smaller than the kernel "
            f"{' x '.join(map(str, widths))}: give coil maps (--maps FILE) or more calibration "
            "lines."
        )
    projection = _signal_projection(calibration, widths, threshold, noise_variance)
    correlation = correlation_kernel(projection, calibration.shape[0], widths)
    # On the coarse grid of the block itself the choice of the reference costs little.
    reference = _reference_coil(calibration, *_solve(correlation, block, calibration))
    return _solve(correlation, grid, calibration, reference)


def _solve(
    correlation: Tensor, grid: tuple[int, ...], calibration: Tensor, reference: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Eigenvectors and eigenvalues on a grid, from the kernels of :func:`correlation_kernel`."""
    maps = torch.empty((calibration.shape[0], *grid), dtype=calibration.dtype,
                       device=calibration.device)
    values = torch.empty(grid, dtype=calibration.real.dtype, device=calibration.device)
    if len(grid) == 2:
        _solve_slice(correlation, reference, maps, values)
        return maps, values
    along = waves(grid[0], (correlation.shape[2] + 1) // 2, calibration)
    for z in range(grid[0]):  # one plane of kernels at a time bounds the memory
        plane = torch.tensordot(along[z], correlation, dims=([0], [2]))
        _solve_slice(plane, reference, maps[:, z], values[z])
    return maps, values


def kernel_widths(
    coils: int, block: tuple[int, ...], kernel: int = 6, largest: int = 2048
) -> tuple[int, ...]:
    """Kernel width along each axis of a calibration block.

    ``kernel``, reduced until the calibration matrix has at most ``largest`` columns (which bounds
    time and memory of its eigenvalue problem for many coils and in 3D), and to a quarter of the
    block plus two along each axis: with few lines, more patches are worth more than wider kernels.
    """
    for width in range(kernel, 1, -1):
        widths = tuple(min(width, b // 4 + 2, (b + 1) // 2) for b in block)
        if coils * math.prod(widths) <= largest:
            break
    return widths


def _signal_projection(
    calibration: Tensor, widths: tuple[int, ...], threshold: float, noise_variance: float
) -> Tensor:
    """Projection onto the signal part of the patches, ``(n, n)``, n = coil * kernel points."""
    gram = torch.zeros((), dtype=calibration.dtype, device=calibration.device)
    first = widths[0]
    for start in range(calibration.shape[1] - first + 1):  # a slab of patches at a time
        patches = calibration[:, start : start + first].unsqueeze(1)
        for axis, width in enumerate(widths):
            patches = patches.unfold(2 + axis, width, 1)
        # (coil, 1, *positions, *kernel) -> (patch, coil * kernel)
        positions = math.prod(patches.shape[1 : 2 + len(widths)])
        rows = patches.reshape(calibration.shape[0], positions, -1).movedim(0, 1).flatten(1)
        gram = gram + rows.mT @ rows.conj()
    gram = (gram + gram.mH) / 2
    power, vectors = torch.linalg.eigh(gram)
    top = power[-1]
    if not bool(top > 0):
        raise InputError("the calibration lines hold no signal, so no coil maps can be estimated.")
    patches_total = math.prod(b - w + 1 for b, w in zip(calibration.shape[1:], widths))
    # Largest eigenvalue of the Gram matrix of pure white noise (Marchenko and Pastur).
    edge = noise_variance * (math.sqrt(patches_total) + math.sqrt(len(power))) ** 2
    floor = torch.clamp(top * threshold**2, min=edge).minimum(top / 4)
    signal = vectors[:, power > floor]
    return signal @ signal.mH


def correlation_kernel(projection: Tensor, coils: int, widths: tuple[int, ...]) -> Tensor:
    """Sum of the projection over kernel positions of equal distance.

    Args:
        projection: ``(..., n, n)``, ``n`` being coil * kernel points.
        coils: Number of coils.
        widths: Of the kernel along each axis.

    Returns:
        ``(..., coil, coil, *(2 w - 1))``: entry ``[c, c', d]`` is the mean over positions a of
        ``P[(c, a), (c', a + d)]``.
    """
    shape = tuple(2 * w - 1 for w in widths)
    points = math.prod(widths)
    places = torch.stack(
        torch.meshgrid(*(torch.arange(w) for w in widths), indexing="ij"), dim=-1
    ).reshape(points, -1)
    distance = places[None, :, :] - places[:, None, :] + torch.tensor(widths) - 1
    flat = torch.zeros(points, points, dtype=torch.long)
    for axis, size in enumerate(shape):
        flat = flat * size + distance[..., axis]
    lead = projection.shape[:-2]
    entries = projection.reshape(*lead, coils, points, coils, points).movedim(-3, -2)
    result = torch.zeros(*lead, coils, coils, math.prod(shape), dtype=projection.dtype,
                         device=projection.device)
    result = result.index_add(-1, flat.flatten().to(projection.device), entries.flatten(-2))
    return (result / points).reshape(*lead, coils, coils, *shape)


def _reference_coil(calibration: Tensor, maps: Tensor, values: Tensor) -> Tensor:
    """Reference combination ``(coil,)`` for the phase of the maps, from places in the object.

    Args:
        calibration: Block ``(coil, *block)``.
        maps: Unit eigenvectors on the block's own grid, ``(coil, *block)``.
        values: Their eigenvalues ``(*block)``.
    """
    energy = ifft(calibration, grid_axes(calibration.ndim - 1)).abs().square().sum(0).flatten()
    inside = (energy > OBJECT * energy.max()) & (values.flatten() > CROP)
    if not bool(inside.any()):
        inside = energy == energy.max()
    return reference_combination(maps.flatten(1)[:, inside])


def reference_combination(places: Tensor) -> Tensor:
    """Combination ``(coil,)`` of the coils that has no null inside the object, of fixed phase.

    The phase of the maps is relative to it, so a null would be a vortex in the image's phase; the
    principal component of an array around the head has one in the middle. Taken is the matched
    combination of one place, the place for which its weakest response in the object is strongest.

    Args:
        places: Unit sensitivities ``(coil, place)`` at voxels of the object.
    """
    places = places[:, :: max(1, places.shape[1] // REFERENCE_PLACES)]
    response = (places.mH @ places).abs()
    best = places[:, response.quantile(WEAKEST, dim=1).argmax()]
    largest = best[best.abs().argmax()]
    return best * (largest.conj() / largest.abs())


def waves(n: int, width: int, like: Tensor) -> Tensor:
    """``exp(-2 pi i d x / n)`` for positions x around the centre and distances d, ``(n, 2w-1)``."""
    x = torch.arange(n, dtype=torch.float64) - n // 2
    d = torch.arange(1 - width, width, dtype=torch.float64)
    phase = -2 * math.pi * x[:, None] * d[None, :] / n
    return torch.polar(torch.ones_like(phase), phase).to(like)


def _solve_slice(
    correlation: Tensor, reference: Tensor | None, maps: Tensor, values: Tensor
) -> None:
    """Eigenproblem of one 2D slice, written into ``maps`` ``(coil, ky, kx)`` and ``values``."""
    coils, rows, columns = maps.shape
    by_row = waves(rows, (correlation.shape[2] + 1) // 2, correlation)
    by_column = waves(columns, (correlation.shape[3] + 1) // 2, correlation)
    partial = torch.einsum("cdpq,xq->xpcd", correlation, by_column).flatten(2)
    size = max(1, BLOCK_BYTES // (coils**2 * columns * correlation.element_size()))
    for start in range(0, rows, size):
        some = by_row[start : start + size]
        matrices = torch.einsum("yp,xpe->yxe", some, partial)
        vectors, found = principal_eigenvector(matrices.reshape(-1, coils, coils))
        if reference is not None:
            projected = vectors @ reference.conj()
            amount = projected.abs().clamp_min(torch.finfo(values.dtype).tiny)
            vectors = vectors * (projected.conj() / amount)[:, None]
        maps[:, start : start + size] = vectors.mT.reshape(coils, -1, columns)
        values[start : start + size] = found.reshape(-1, columns)


def principal_eigenvector(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Unit principal eigenvectors ``(n, coil)`` and eigenvalues ``(n,)``.

    ``matrices`` ``(n, coil, coil)`` are Hermitian and positive semidefinite. Power iteration,
    begun with repeated squaring: some batched products, the same for every voxel, much faster than
    one factorisation for each. Where the two largest eigenvalues are equal to within a per
    cent, the result is a mixture of their vectors.
    """
    powered = matrices
    tiny = torch.finfo(matrices.real.dtype).tiny
    for _ in range(SQUARINGS):
        powered = powered @ powered
        trace = powered.diagonal(dim1=-2, dim2=-1).real.sum(-1)
        powered = powered / trace.clamp_min(tiny)[:, None, None]
    best = powered.diagonal(dim1=-2, dim2=-1).real.argmax(-1)
    vectors = powered[torch.arange(len(best), device=best.device), :, best].unsqueeze(-1)
    for step in range(ITERATIONS + 1):  # the last with the matrix itself, for its eigenvalue
        vectors = (powered if step < ITERATIONS else matrices) @ vectors
        norm = torch.linalg.vector_norm(vectors, dim=-2, keepdim=True)
        vectors = vectors / norm.clamp_min(tiny)
    return vectors.squeeze(-1), norm.flatten()


def fill_holes(support: Tensor) -> Tensor:
    """Add to a boolean ``(*grid)`` what the border cannot reach without crossing it.

    Slice by slice for 3D grids, along the first axis.
    """
    outside = ~support
    planes = outside.reshape(-1, 1, *support.shape[-2:])
    open_ = planes.to(torch.float32)
    reached = torch.zeros_like(open_)
    for edge in ((..., 0, slice(None)), (..., -1, slice(None)), (..., 0), (..., -1)):
        reached[edge] = open_[edge]
    while True:
        wider = torch.maximum(
            nnf.max_pool2d(reached, (3, 1), stride=1, padding=(1, 0)),
            nnf.max_pool2d(reached, (1, 3), stride=1, padding=(0, 1)),
        )
        wider = wider * open_
        if torch.equal(wider, reached):
            return (reached == 0).reshape(support.shape)
        reached = wider
