"""A 3D Cartesian scan as independent 2D ones.

Along an axis on which the mask does not depend, k-space is fully sampled, and the unitary inverse
transform along it leaves a stack of planes that share nothing: neither data nor noise, which stays
white with the same variance (and where the readout's noise is coloured, has the variance of that
place along the readout).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.physics.fourier import ifft
from snrecon.physics.gram import varying_axes

AXES = {-3: "kz", -2: "ky", -1: "kx"}
"""Names of the axes of a 3D grid."""


def slice_axis(mask: Tensor) -> int | None:
    """The axis along which to take a 3D scan apart: the first of kz, ky, kx along which the mask
    does not change; None if it changes along all of them.

    So the readout stays in the plane wherever it can, as in the slices that networks are trained
    on: a scan that is undersampled along ky alone (or not at all) is sliced along kz, one along kz
    alone along ky. Only where the mask varies over the phase-encoding plane ``(kz, ky)`` is that
    plane kept and the readout sliced.

    Args:
        mask: Boolean ``(kz, ky, kx)``.

    Returns:
        -3, -2, -1 or None.
    """
    varying = varying_axes(mask)
    return next((axis for axis in AXES if axis not in varying), None)


def to_planes(kspace: Tensor, axis: int) -> Tensor:
    """``(..., coil, kz, ky, kx)`` transformed along ``axis``, which becomes slices:
    ``(..., slice, coil, *plane)``, the plane's axes in their order."""
    return ifft(kspace, (axis,)).movedim(axis, -4)


def as_stack(scan: Scan, axis: int) -> Scan:
    """A 3D scan as a stack of slices along ``axis``, along which its mask does not change.

    Args:
        scan: A 3D grid; noise that is coloured along the readout cannot be sliced along it, since
            the slices of a stack share one noise model: see :func:`plane_scans`.
        axis: -3, -2 or -1.
    """
    return replace(
        scan,
        kspace=to_planes(scan.kspace, axis),
        maps=None if scan.maps is None else scan.maps.movedim(axis, -4),
        mask=scan.sampled.select(axis, 0),
        # Along kz the slices are where the grid's geometry says; other planes it does not describe.
        geometry=scan.geometry if axis == -3 else None,
        layout="stack",
        repetitions=None,
    )


def plane_scans(scan: Scan, axis: int) -> list[Scan]:
    """The planes of a 3D scan along ``axis``, each a 2D scan with the noise that it has.

    Args:
        scan: A 3D grid whose mask does not change along ``axis``.
        axis: -3, -2 or -1; along a readout of coloured noise every plane has its own level.
    """
    noise = scan.noise
    if noise is None or noise.spectrum is None or axis != -1:
        return list(as_stack(scan, axis))
    white = replace(noise, spectrum=None)
    stack = as_stack(replace(scan, noise=white), axis)
    return [
        replace(one, noise=white.scaled(float(level) ** 0.5))
        for one, level in zip(stack, noise.spectrum, strict=True)
    ]


def plane_noise_levels(scan: Scan, axis: int) -> Tensor:
    """Noise variance of every plane of :func:`plane_scans` over that of the scan's covariance,
    ``(slice,)`` real."""
    noise = scan.noise
    if axis == -1 and noise is not None and noise.spectrum is not None:
        return noise.spectrum
    return torch.ones(scan.grid[axis], dtype=scan.kspace.real.dtype, device=scan.kspace.device)
