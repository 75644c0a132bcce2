"""Coil sensitivities: estimation from the scan itself, and compression to fewer coils."""

from __future__ import annotations

import torch
from torch import Tensor

from snrecon.errors import InputError
from snrecon.physics.calibration import (
    FEWEST_LINES,
    calibration_lines,
    calibration_region,
    cap_region,
    low_resolution,
    peripheral_energy,
)
from snrecon.physics.compression import compress
from snrecon.physics.espirit import espirit, kernel_widths
from snrecon.physics.fourier import grid_axes, ifft
from snrecon.physics.walsh import walsh

__all__ = [
    "calibration_lines",
    "calibration_region",
    "compress",
    "espirit",
    "estimate_maps",
    "walsh",
]

CALIBRATION_LIMIT = 24
"""Most calibration lines used along each axis; more cost time and add little."""


def estimate_maps(
    kspace: Tensor,
    mask: Tensor,
    calibration: int | None = None,
    method: str = "espirit",
) -> tuple[Tensor, str]:
    """Coil maps of a scan from its fully sampled centre of k-space.

    Args:
        kspace: ``(coil, *grid)`` complex, whitened where the noise is known.
        mask: Boolean ``(*grid)``.
        calibration: Most calibration lines used along each axis (default 24).
        method: ``"espirit"`` or ``"walsh"``.

    Returns:
        Maps ``(coil, *grid)`` with ``sum |S|^2 = 1`` on the support and 0 off it, and a text that
        says where they come from. A single coil gets a map of ones.

    Raises:
        InputError: if there are fewer than 4 calibration lines along an undersampled axis.
    """
    if kspace.shape[0] == 1:
        return torch.ones_like(kspace), "ones (single coil)"
    grid = tuple(mask.shape)
    region = calibration_region(mask, minimum=min(FEWEST_LINES, *grid))
    region = cap_region(region, grid, CALIBRATION_LIMIT if calibration is None else calibration)
    block = kspace[(slice(None), *region)]
    lines = " x ".join(str(n) for n in block.shape[1:])
    if method == "espirit":
        widths = kernel_widths(kspace.shape[0], tuple(block.shape[1:]))
        maps = espirit(block, grid, widths, noise_variance=peripheral_energy(kspace, mask))
        return maps, f"ESPIRiT from {lines} calibration samples"
    if method == "walsh":
        images = ifft(low_resolution(kspace, region), grid_axes(len(grid)))
        return walsh(images, smoothing=1.0), f"Walsh from {lines} calibration samples"
    raise InputError(f"unknown method {method!r} for coil maps; choose espirit or walsh.")
