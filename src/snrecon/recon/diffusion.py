"""Variance-exploding diffusion: its noise levels, and the steps that lead back from noise.

Song et al., Score-based generative modeling through stochastic differential equations, ICLR 2021.
An image at level sigma is ``x + sigma z`` with white z; levels fall in geometric sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snrecon.recon.score_prior import Prior


def geometric_levels(high: float, low: float, steps: int) -> list[float]:
    """``steps`` levels from ``high`` to ``low``; ``high`` alone for one."""
    if steps == 1:
        return [high]
    return [high * (low / high) ** (i / (steps - 1)) for i in range(steps)]


def reverse_step(x: Tensor, prior: Prior, sigma: float, following: float) -> tuple[Tensor, float]:
    """The reverse-diffusion predictor from level ``sigma`` to ``following``.

    ``mean = x + G^2 s(x, sigma)`` with ``G^2 = sigma^2 - following^2``; the step is
    ``mean + G z``. For ``following = 0`` the mean is the denoised image.

    Returns:
        The mean, and G.
    """
    variance = sigma**2 - following**2
    return x + variance * prior(x, sigma), variance**0.5


def langevin_step(x: Tensor, prior: Prior, sigma: float, snr: float, z: Tensor) -> tuple[
        Tensor, Tensor]:
    """The Langevin corrector at level ``sigma``: ``mean + sqrt(2 eps) z`` with
    ``mean = x + eps s``, ``eps = 2 (r |z| / |s|)^2``.

    Norms are those of one real image ``(ky, kx)`` each, so that no image's step depends on what is
    computed beside it.

    Args:
        x: ``(..., ky, kx)`` real.
        prior: The score.
        sigma: Level.
        snr: r.
        z: Standard normal, broadcasting with x.

    Returns:
        The step, and its mean.
    """
    slope = prior(x, sigma)
    power = slope.square().sum(dim=(-2, -1), keepdim=True)
    power = power.clamp_min(torch.finfo(x.dtype).tiny)
    step = 2 * snr**2 * z.square().sum(dim=(-2, -1), keepdim=True) / power
    mean = x + step * slope
    return mean + (2 * step).sqrt() * z, mean
