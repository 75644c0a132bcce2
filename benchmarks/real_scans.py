"""The measured scans of the benchmarks, and what all methods share on them.

``SNRECON_DATA`` is the folder of the scans (default ``../shared/data``). Both brains are fully
sampled; their noise covariance comes from the image background. A retrospectively undersampled scan
is what a user would have: coil maps are estimated from its own calibration lines, once, and every
method gets the same maps, reference (the fully sampled matched filter with these maps) and head
mask.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import snrecon
from snrecon.data import NoiseModel, Scan
from snrecon.physics.compression import compress
from snrecon.physics.fourier import grid_axes, ifft
from snrecon.physics.masks import make_mask
from snrecon.recon.forward_model import forward_model
from snrecon.recon.zero_filled import matched_filter

ROOT = Path(__file__).parents[1]
FILES = {
    "pulseq": ("pulseq_brain16/kspace.npz", "brain_head16"),
    "mripy": ("mripy_brain8/kspace.npz", "kspace"),
    "cloudmr": ("cloudmr_phantom16_noise/kspace.npz", "kspace"),
}
BRAINS = ("pulseq", "mripy")
CALIBRATION = 0.08
"""Share of the lines that is the fully sampled centre."""
PLANAR = ("poisson", "gaussian2d")
"""Mask kinds that vary along both axes."""
THRESHOLD = 0.12
"""Of the 99th percentile of the smoothed image: what counts as head."""


def folder() -> Path:
    """Where the scans are."""
    path = Path(os.environ.get("SNRECON_DATA", "../shared/data"))
    return path if path.is_absolute() else ROOT / path


@cache
def full_scan(name: str, coils: int | None = None) -> Scan:
    """A fully sampled scan with its noise model: ``pulseq``, ``mripy`` or ``cloudmr``; with
    ``coils`` whitened and compressed to so many, by its central quarter."""
    file, key = FILES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", snrecon.errors.SnreconWarning)  # noise from the background
        scan = snrecon.load(folder() / file, key=key)
    if coils is None:
        return scan
    white = scan.require_noise().whiten(scan.kspace)
    middle = tuple(slice(n // 2 - n // 8, n // 2 + n // 8) for n in scan.grid)
    few, _ = compress(white, coils, white[(slice(None), *middle)])
    noise = NoiseModel(torch.eye(coils, dtype=few.dtype), source=f"{name}, whitened",
                       spectrum=scan.require_noise().spectrum)
    return Scan(kspace=few, mask=scan.mask, noise=noise, source=scan.source)


@cache
def head_mask(name: str) -> Tensor:
    """Boolean ``(ky, kx)``: the object, from the fully sampled whitened image.

    The root sum of squares, smoothed over 1.5 voxels, above :data:`THRESHOLD` of its 99th
    percentile; the largest connected region with its holes filled.
    """
    from scipy import ndimage

    scan = full_scan(name)
    white = scan.require_noise().whiten(scan.kspace)
    power = ifft(white, grid_axes(2)).abs().square().sum(0)
    smooth = ndimage.gaussian_filter(np.sqrt(power.numpy()), 1.5)
    inside = smooth > THRESHOLD * np.quantile(smooth, 0.99)
    inside = ndimage.binary_opening(inside, iterations=2)
    labels, _ = ndimage.label(inside)
    largest = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    return torch.from_numpy(ndimage.binary_fill_holes(largest).copy())


@dataclass(frozen=True, eq=False)
class Case:
    """One retrospectively undersampled brain and what its reconstructions are compared with."""

    name: str
    kind: str
    acceleration: float
    """Nominal; ``scan.acceleration`` is the true one."""
    seed: int
    scan: Scan
    """Undersampled, with the maps estimated from its calibration lines, in its own coil basis."""
    head: Tensor
    """Boolean ``(ky, kx)``."""
    coils: int | None = None
    """Virtual coils; None: those of the scanner."""

    def to(self, device: torch.device | str) -> Case:
        """The same on another device: the coil maps are those that the CPU found."""
        return replace(self, scan=self.scan.to(device), head=self.head.to(device))

    @cached_property
    def reference(self) -> Tensor:
        """Matched filter of the fully sampled scan with the same maps, complex ``(ky, kx)``."""
        full = full_scan(self.name, self.coils).to(self.scan.kspace.device)
        return matched_filter(forward_model(replace(full, maps=self.scan.maps)), full.kspace)


@cache
def case(
    name: str, kind: str = "random", acceleration: float = 4, seed: int = 0,
    calibration: float = CALIBRATION, coils: int | None = None,
) -> Case:
    """Undersample a brain and estimate its coil maps from the share ``calibration`` of the lines
    (2D kinds: a block of twice as many); ``coils`` as in :func:`full_scan`."""
    full = full_scan(name, coils)
    lines = round(calibration * full.grid[-2]) * (2 if kind in PLANAR else 1)
    mask = make_mask(kind, full.grid, acceleration, calibration=lines, seed=seed).tensor
    scan = full.undersample(mask)
    model = forward_model(scan)
    raw = scan.require_noise().unwhiten(model.maps)
    return Case(name, kind, acceleration, seed, replace(scan, maps=raw), head_mask(name), coils)
