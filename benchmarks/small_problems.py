"""Small scans in double precision with every reconstruction on them, for dense comparisons."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from snrecon.data import NoiseModel, Scan
from snrecon.physics.fourier import fft
from snrecon.recon.base import Reconstructor
from snrecon.recon.registry import load

GRID = (12, 12)
COILS = 3


@dataclass(frozen=True)
class SmallProblem:
    """A reconstruction and the small scan it works on."""

    name: str
    recon: Reconstructor
    scan: Scan
    linear: bool


def covariance(coils: int, seed: int = 5) -> Tensor:
    """A correlated complex covariance of unequal coils."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(coils, coils)) + 1j * rng.normal(size=(coils, coils))
    gains = np.diag(1 + 0.5 * rng.random(coils))
    psi = gains @ (np.eye(coils) + 0.25 * mixing @ mixing.conj().T / coils) @ gains
    return torch.from_numpy(psi)


def small_scan(
    mask: Tensor, *, coils: int = COILS, snr: float = 30.0, coloured: bool = False, seed: int = 0
) -> Scan:
    """Smooth coils around a structured object, maps given, noise as its covariance says.

    Args:
        mask: Boolean ``(ky, kx)``.
        coils: Number of coils.
        snr: Object over the noise's SD per real component of a whitened coil.
        coloured: Colour the noise along the readout.
        seed: Of object and noise.
    """
    rng = np.random.default_rng(seed)
    ny, nx = mask.shape
    y, x = np.meshgrid(np.linspace(-1, 1, ny), np.linspace(-1, 1, nx), indexing="ij")
    angles = 2 * np.pi * np.arange(coils) / coils
    maps = np.stack(
        [
            np.exp(-((y - np.sin(a)) ** 2 + (x - np.cos(a)) ** 2) / 1.5 + 1j * (a + x * np.cos(a)))
            for a in angles
        ]
    )
    inside = (x / 0.95) ** 2 + (y / 0.9) ** 2 < 1.2
    maps = maps * inside
    image = inside * (1 + 0.5 * (x > 0.2) - 0.4 * (y * x > 0.1) + 0.1 * rng.normal(size=x.shape))
    image = image * np.exp(1j * (0.4 * x - 0.7 * y + 0.3))
    psi = covariance(coils)
    lower = np.linalg.cholesky(psi.numpy())
    spectrum = None
    if coloured:
        spectrum = torch.from_numpy(1 - 0.6 * np.linspace(-1, 1, nx) ** 2)
    noise_model = NoiseModel(psi, spectrum)
    strength = snr * float(np.abs(lower).max()) / 2**0.5
    coil_images = torch.from_numpy(strength * maps * image)
    kspace = fft(coil_images, (-2, -1))
    white = rng.normal(size=kspace.shape) + 1j * rng.normal(size=kspace.shape)
    noise = np.einsum("ab,b...->a...", lower, white / 2**0.5)
    measured = (kspace + torch.from_numpy(noise)) * mask
    return Scan(measured, mask, torch.from_numpy(maps), noise_model)


def regular_mask(step: int = 2) -> Tensor:
    """Every ``step``-th line."""
    ny, nx = GRID
    lines = torch.arange(ny) % step == (ny // 2) % step
    return lines[:, None].expand(ny, nx).clone()


def irregular_mask() -> Tensor:
    """Lines at random with a calibrated centre."""
    lines = torch.tensor([1, 0, 1, 0, 1, 1, 1, 1, 0, 1, 0, 0], dtype=torch.bool)
    return lines[:, None].expand(*GRID).clone()


def plane_mask() -> Tensor:
    """Points of both axes at random, centre sampled."""
    mask = torch.rand(GRID, generator=torch.Generator().manual_seed(3)) < 0.55
    mask[4:8, 4:8] = True
    return mask


def partial_mask() -> Tensor:
    """The last quarter of the lines cut off."""
    mask = torch.zeros(GRID, dtype=torch.bool)
    mask[: 3 * GRID[0] // 4] = True
    return mask


def small_problems(names: list[str] | None = None) -> list[SmallProblem]:
    """Every reconstruction on a scan that suits it; a choice of them by ``names``."""
    irregular, plane = small_scan(irregular_mask()), small_scan(plane_mask())
    regular, coloured = small_scan(regular_mask()), small_scan(irregular_mask(), coloured=True)
    partial = small_scan(partial_mask())
    table: list[tuple[str, str, dict[str, object], Scan, bool]] = [
        ("zero_filled", "zero_filled", {}, plane, True),
        ("zero_filled coloured", "zero_filled", {}, small_scan(plane_mask(), coloured=True), True),
        ("rss", "zero_filled:rss", {}, irregular, False),
        ("sense regular", "sense", {}, regular, True),
        ("sense lines", "sense", {}, irregular, True),
        ("sense lines coloured", "sense", {"lamda": 0.2}, coloured, True),
        ("sense lambda", "sense", {"lamda": 0.5}, irregular, True),
        ("sense cg", "sense", {"lamda": 0.1, "solver": "cg"}, plane, True),
        ("partial zero_filled", "partial_fourier:zero_filled", {}, partial, True),
        ("homodyne", "partial_fourier:homodyne", {}, partial, True),
        ("pocs", "partial_fourier:pocs", {}, partial, True),
        ("grappa", "grappa", {"kernel": (2, 3)}, irregular, True),
        ("tv", "tv", {"lamda": 1.5, "iterations": 60}, irregular, False),
        ("wavelet", "wavelet", {"lamda": 1.5, "iterations": 60}, irregular, False),
        ("varnet", "varnet", {}, irregular, False),
    ]
    return [
        SmallProblem(name, load(method, **options), scan, linear)
        for name, method, options, scan, linear in table
        if names is None or name in names
    ]


NAMES = (
    "zero_filled",
    "zero_filled coloured",
    "rss",
    "sense regular",
    "sense lines",
    "sense lines coloured",
    "sense lambda",
    "sense cg",
    "partial zero_filled",
    "homodyne",
    "pocs",
    "grappa",
    "tv",
    "wavelet",
    "varnet",
)
