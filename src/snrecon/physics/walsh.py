"""Coil maps by the adaptive combination of Walsh et al.

Walsh, Gmitro, Marcellin: Adaptive reconstruction of phased array MR imagery, Magn Reson Med 43:682
(2000). The sensitivities at a voxel are the principal eigenvector of the local coil covariance of
the coil images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

from snrecon.errors import InputError
from snrecon.physics.espirit import BLOCK_BYTES, principal_eigenvector, reference_combination


def walsh(coil_images: Tensor, smoothing: float = 3.0, window: str = "gaussian") -> Tensor:
    """Coil maps ``(coil, *grid)`` from coil images of 2D or 3D grids.

    The maps have ``sum |S|^2 = 1`` wherever there is any signal within the window and are 0
    elsewhere. Their phase is relative to one fixed combination of the coils.

    Args:
        coil_images: ``(coil, *grid)`` complex, best whitened.
        smoothing: Size of the averaging window in voxels: the standard deviation of a Gaussian, or
            half the width of a box.
        window: ``"gaussian"`` or ``"box"``.

    Raises:
        InputError: for another window or a negative size.
    """
    if window not in ("gaussian", "box") or smoothing < 0:
        raise InputError(
            f"the averaging window of coil maps is a gaussian or a box of a size of at least 0 "
            f"voxels, not {window!r} of {smoothing}."
        )
    weights = _window(smoothing, window).to(coil_images.real)
    coils, length = coil_images.shape[:2]
    halo = len(weights) // 2
    plane = coil_images[0, 0].numel()
    size = max(1, BLOCK_BYTES // (coils**2 * plane * coil_images.element_size()))
    maps = torch.empty_like(coil_images)
    for start in range(0, length, size):  # blocks along the first axis bound the memory
        stop = min(start + size, length)
        low, high = max(0, start - halo), min(length, stop + halo)
        some = coil_images[:, low:high]
        covariance = torch.einsum("a...,b...->ab...", some, some.conj())
        for axis in range(2, covariance.ndim):
            covariance = _smooth(covariance, weights, axis)
        inner = covariance[:, :, start - low : stop - low].flatten(2).movedim(2, 0)
        vectors, values = principal_eigenvector(inner)
        vectors = vectors * (values > 0)[:, None]
        maps[:, start:stop] = vectors.mT.reshape(coils, stop - start, *coil_images.shape[2:])
    return _with_reference_phase(maps, coil_images)


def _with_reference_phase(maps: Tensor, coil_images: Tensor) -> Tensor:
    energy = coil_images.abs().square().sum(0)
    inside = (energy > 0.05 * energy.max()) & (maps != 0).any(0)
    if not bool(inside.any()):
        return maps
    reference = reference_combination(maps[:, inside])
    projected = torch.einsum("c,c...->...", reference.conj(), maps)
    amount = projected.abs().clamp_min(torch.finfo(projected.real.dtype).tiny)
    return maps * (projected.conj() / amount)


def _window(smoothing: float, window: str) -> Tensor:
    """Weights of odd length and sum 1."""
    reach = int(3 * smoothing + 0.5) if window == "gaussian" else int(smoothing)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    if window == "gaussian" and smoothing > 0:
        weights = torch.exp(-0.5 * (offsets / smoothing) ** 2)
    else:
        weights = torch.ones_like(offsets)
    return weights / weights.sum()


def _smooth(x: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Convolve a complex array with the window along an axis, zero beyond the edges."""
    moved = x.movedim(axis, -1)
    parts = torch.view_as_real(moved.resolve_conj()).movedim(-1, 0)
    lines = parts.reshape(-1, 1, moved.shape[-1])
    smoothed = nnf.conv1d(lines, weights.reshape(1, 1, -1), padding=len(weights) // 2)
    real, imaginary = smoothed.reshape(parts.shape)
    return torch.complex(real, imaginary).movedim(-1, axis)
