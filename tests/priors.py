"""Toy priors and scans for the tests of samplers, and checks of samples against a known law."""

from __future__ import annotations

import torch
from torch import Tensor

from snrecon.recon.toy_priors import GaussianMixture, GaussianPrior, MixturePrior


def gaussian_prior(
    grid: tuple[int, int] = (8, 8),
    stationary: bool = True,
    sd: float = 0.2,
    level: float = 0.3,
    sigma_range: tuple[float, float] = (0.01, 378.0),
) -> GaussianPrior:
    """Smooth images around a bright centre: power falling off with frequency, or (not stationary)
    voxels of unequal variance. ``sd`` is the root mean square SD of a voxel, ``level`` the peak of
    the mean."""
    y, x = (torch.arange(n, dtype=torch.float64) - n // 2 for n in grid)
    y, x = (v / n for v, n in zip((y, x), grid))
    radius = y[:, None] ** 2 + x[None, :] ** 2
    mean = level * torch.exp(-4 * radius)
    shape = (1 + 60 * radius) ** -1.5 if stationary else 0.2 + torch.exp(-3 * radius)
    variance = sd**2 * shape / shape.mean()
    return GaussianPrior(mean, variance, stationary, sigma_range)


def mixture_prior(grid: tuple[int, int] = (8, 8), apart: float = 0.4) -> MixturePrior:
    """Two kinds of images, their means ``apart`` at the peak, of unequal variance and probability.
    """
    first = gaussian_prior(grid, True, 0.1, 0.2)
    second = gaussian_prior(grid, True, 0.16, 0.2 + apart)
    return MixturePrior([first, second], [0.6, 0.4])


def line_mask(grid: tuple[int, int]) -> Tensor:
    """Every second line, and the three in the centre."""
    lines = torch.arange(grid[0])
    kept = (lines % 2 == 0) | ((lines - grid[0] // 2).abs() <= 1)
    return kept[:, None].expand(grid).clone()


def check_samples(samples: Tensor, law: GaussianMixture, errors: float = 4.0) -> None:
    """Mean and covariance of independent samples ``(count, n)`` are those of a law.

    In coordinates in which the law's covariance is the identity, three statistics have to lie
    within ``errors`` of their own standard errors of what they are for Gaussian samples: the
    squared distance of the means, the mean variance, and the squares of the correlations.
    """
    count, n = samples.shape
    factor = torch.linalg.cholesky(law.covariance)
    white = torch.linalg.solve_triangular(factor, (samples - law.mean).T, upper=False).T
    distance = float(count * white.mean(0).square().sum())
    assert abs(distance - n) < errors * (2 * n) ** 0.5, f"means: {distance:.1f} for {n}"
    variance = float(white.square().mean())
    assert abs(variance - 1) < errors * (2 / (n * count)) ** 0.5, f"variance: {variance:.4f}"
    moments = white.T @ white / count
    pairs = n * (n - 1) // 2
    crossed = float(count * torch.triu(moments, 1).square().sum())
    assert abs(crossed - pairs) < errors * (2 * pairs) ** 0.5, f"pairs: {crossed / pairs:.4f}"
