"""Small scans of images drawn from a known prior."""

from __future__ import annotations

from typing import Any

import torch

from snrecon.data import NoiseModel, Scan
from snrecon.physics.fourier import fft
from snrecon.physics.masks import make_mask
from snrecon.recon.score import Score
from snrecon.recon.toy_priors import GaussianPrior

AXES = (-2, -1)
GRID = (12, 12)
COILS = {"2": 1, "3": 1, "4": 3, "5": 3, "dds": 3}
FEW = {"2": 10, "3": 10, "4": 8, "5": 8, "dds": 6}


def smooth_prior(
    grid: tuple[int, int], sigma_range: tuple[float, float] = (0.01, 50.0), mean: float = 0.0
) -> GaussianPrior:
    """Smooth real images of about unit size: the power spectrum falls with the frequency."""
    lines = [torch.fft.fftshift(torch.fft.fftfreq(n, dtype=torch.float64)) * n for n in grid]
    power = 1 / (1 + ((lines[0][:, None] ** 2 + lines[1] ** 2) / 4) ** 1.5)
    power = (power + power.flip(AXES).roll([1 - n % 2 for n in grid], AXES)) / 2
    return GaussianPrior(
        torch.full(grid, mean, dtype=torch.float64), 0.06 * power / power.mean(), True, sigma_range)


def smooth_maps(coils: int, grid: tuple[int, int]) -> torch.Tensor:
    """``sum |S|^2 = 1``; ones for one coil."""
    if coils == 1:
        return torch.ones(1, *grid, dtype=torch.complex128)
    y, x = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in grid)
    angles = torch.arange(coils, dtype=torch.float64) * 2 * torch.pi / coils
    a, b = angles.cos()[:, None, None], angles.sin()[:, None, None]
    y = y[:, None]
    maps = torch.polar(torch.exp(-((y - a) ** 2 + (x - b) ** 2) / 2), a * x + b * y + 3 * a)
    return maps / maps.abs().square().sum(dim=0).sqrt()


def toy_scan(
    prior: GaussianPrior,
    mask: torch.Tensor,
    coils: int = 1,
    noise: float = 0.0,
    real: bool = False,
    seed: int = 1,
) -> tuple[Scan, torch.Tensor]:
    """A scan with given maps of an image drawn from the prior, and the image.

    ``noise`` is the complex SD of a sample; 0 is a noiseless scan whose noise model says 1e-3.
    """
    generator = torch.Generator().manual_seed(seed)
    image = prior.draw(1, generator, not real)[0].to(torch.complex128)
    maps = smooth_maps(coils, tuple(mask.shape))
    draw = torch.randn(maps.shape, dtype=torch.complex128, generator=generator)
    kspace = (fft(maps * image, AXES) + noise * draw) * mask
    level = noise or 1e-3
    covariance = level**2 * torch.eye(coils, dtype=torch.complex128)
    scan = Scan(kspace, mask, maps if coils > 1 else None, NoiseModel(covariance))
    return scan, image


def mask_2d(acceleration: float = 3, grid: tuple[int, int] = GRID) -> torch.Tensor:
    """Points, dense at the centre."""
    return make_mask("gaussian2d", grid, acceleration, 4, seed=1).tensor


def example(algorithm: str, noise: float = 0.0, mask: torch.Tensor | None = None, seed: int = 1
) -> tuple[GaussianPrior, Scan, torch.Tensor]:
    """Prior, scan and image that suit the algorithm."""
    mask = mask_2d() if mask is None else mask
    prior = smooth_prior((mask.shape[0], mask.shape[1]))
    scan, image = toy_scan(prior, mask, COILS[algorithm], noise, algorithm == "2", seed)
    return prior, scan, image


def of(prior: Any, algorithm: str, **options: Any) -> Score:
    """The method with few levels."""
    return Score(prior, algorithm, steps=FEW[algorithm], **options)


def error(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Relative distance."""
    return float((found - truth).norm() / truth.norm())
