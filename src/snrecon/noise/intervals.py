"""Intervals for a standard deviation from the chi-square distribution of its estimate."""

from __future__ import annotations

import torch
from torch import Tensor


def chi_square_quantile(probability: float, degrees: Tensor) -> Tensor:
    """Quantile of the chi-square distribution, elementwise over real ``degrees`` > 0.

    Bisection on the regularised incomplete gamma function, started from the bracket that the
    Wilson-Hilferty approximation suggests; relative accuracy 1e-10.
    """
    degrees = degrees.double()
    shape = degrees / 2
    low = torch.zeros_like(shape)
    high = shape + 12 * shape.sqrt() + 60
    target = torch.full_like(shape, probability)
    for _ in range(90):
        middle = (low + high) / 2
        below = torch.special.gammainc(shape, middle) < target
        low = torch.where(below, middle, low)
        high = torch.where(below, high, middle)
    return low + high


def sigma_interval(sigma: Tensor, degrees: Tensor, level: float = 0.95) -> tuple[Tensor, Tensor]:
    """Interval that covers the true standard deviation with probability ``level`` per voxel.

    Args:
        sigma: Estimate, any shape.
        degrees: Matched degrees of freedom ``2 n / c`` (:meth:`Moments.degrees_of_freedom`).
        level: Coverage.

    Returns:
        Lower and upper limit, float64: ``sigma sqrt(nu / chi2)`` at both quantiles.
    """
    tail = (1 - level) / 2
    sigma = sigma.double()
    lower = sigma * (degrees / chi_square_quantile(1 - tail, degrees)).sqrt()
    upper = sigma * (degrees / chi_square_quantile(tail, degrees)).sqrt()
    return lower, upper
