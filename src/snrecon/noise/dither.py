"""Noise put back into an image for display, matched to the noise that was measured in it.

Images of networks can look smoother than readers trust; a clinical study therefore added a little
noise, of a size guessed from the image (Recht et al., AJR 215:1421, 2020). Here its size is known
in every voxel.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from snrecon.data import NoiseMap
from snrecon.errors import InputError


def dither(result: NoiseMap, fraction: float, seed: int = 0) -> NoiseMap:
    """The result with a noisier copy of its image, ``result.dithered``, for display only.

    To every voxel Gaussian noise is added whose covariance (of the components along and across the
    image's phase) is ``fraction^2`` times the one measured there, independent between voxels, which
    the image's own noise is not. The SD of the copy's magnitude over repeated scans and seeds is
    ``sigma sqrt(1 + fraction^2)``, to first order. Image, sigma and SNR stay those of the
    reconstruction; ``details["dither"]`` says what was done.

    Args:
        result: Image and noise map.
        fraction: SD of the added noise in units of the local sigma, above 0.
        seed: Same seed, same noise.

    Raises:
        InputError: if the fraction is not a positive number or the result is dithered already.
    """
    if not 0 < fraction < math.inf:
        raise InputError(f"the dither fraction must be a positive number, not {fraction:g}.")
    if result.dithered is not None:
        raise InputError("this result is dithered already; start from the one that is not.")
    image, sigma = result.image, result.sigma
    generator = torch.Generator().manual_seed((1_000_003 * seed + 17) % 2**63)
    white = torch.randn(2, *image.shape, generator=generator, dtype=torch.float64)
    along, across, both = _covariance(result)
    # Lower root of the 2x2 covariance in every voxel.
    first = along.clamp(min=0).sqrt()
    mixed = torch.where(first > 0, both / torch.where(first > 0, first, 1), 0)
    second = (across - mixed**2).clamp(min=0).sqrt()
    white = white.to(first)
    radial = fraction * first * white[0]
    if image.is_complex():
        angular = fraction * (mixed * white[0] + second * white[1])
        size = image.abs()
        phase = torch.where(size > 0, image / torch.where(size > 0, size, 1), 1)
        noisy = image + (phase * torch.complex(radial, angular)).to(image.dtype)
    else:
        noisy = image + radial.to(image.dtype)
    total = math.sqrt(1 + fraction**2)
    facts = {
        "fraction": fraction,
        "seed": seed,
        "total_sd_over_sigma": total,
        "note": f"'dithered' is for display: noise of {fraction:g} times the local sigma was added "
        f"to the image, so the SD of its magnitude is {total:.4g} sigma. All maps are those of "
        "the image without it.",
    }
    return replace(result, dithered=torch.where(sigma > 0, noisy, image),
                   details={**result.details, "dither": facts})


def _covariance(result: NoiseMap) -> Tensor:
    """``(3, ...)`` double: variances along and across the phase, and their covariance."""
    if result.covariance is not None:
        return result.covariance.double()
    along = result.sigma.double().square()
    across = (result.sigma_complex.double().square() - along).clamp(min=0)
    return torch.stack([along, across, torch.zeros_like(along)])
