"""The noise of a magnitude at low SNR: the Rician distribution.

First-order sigma is the SD of the component along the image's phase. Where the signal is weak the
magnitude's SD is smaller: 0.91 sigma at SNR 2, 0.655 sigma in pure noise. Source: Gudbjartsson and
Patz, The Rician distribution of noisy MRI data, MRM 34 (1995).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from snrecon.data import NoiseMap
from snrecon.data.noise_map import FLOOR
from snrecon.errors import InputError


def rician_mean_sd(amplitude: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and SD of ``|a + n|`` for circular noise of SD ``sigma`` per component.

    Args:
        amplitude: True amplitude ``|a| >= 0``, any shape, image units.
        sigma: SD per real component, same shape and units.

    Returns:
        Mean and SD, image units; 0 where sigma is 0 (the mean is then the amplitude).
    """
    safe = torch.where(sigma > 0, sigma, 1).double()
    half = (amplitude.double() / safe) ** 2 / 4
    # Laguerre L_1/2(-2 half) by exponentially scaled Bessel functions: no overflow at high SNR.
    laguerre = (1 + 2 * half) * torch.special.i0e(half) + 2 * half * torch.special.i1e(half)
    mean = safe * math.sqrt(math.pi / 2) * laguerre
    # mean^2 and its complement cancel at high SNR; the expansion takes over there.
    snr2 = 4 * half
    direct = 2 * safe**2 + amplitude.double() ** 2 - mean**2
    series = safe**2 * (1 - 1 / (2 * snr2.clamp_min(1)) - 1 / (2 * snr2.clamp_min(1) ** 2))
    variance = torch.where(snr2 > 1e4, series, direct).clamp_min(0)
    noisy = sigma > 0
    real = sigma.dtype
    return (
        torch.where(noisy, mean, amplitude.double()).to(real),
        torch.where(noisy, variance.sqrt(), 0).to(real),
    )


def rician_sigma(image: Tensor | NoiseMap, sigma: Tensor | None = None) -> Tensor:
    """SD of the magnitude image with the Rician correction, for circular noise.

    The true amplitude is taken from the measured one by ``E|x|^2 = a^2 + 2 sigma^2``, set to 0
    where noise alone explains the voxel. A root sum of squares over coils is not Rician; pass the
    result itself, and one of those is refused.

    Args:
        image: Complex or magnitude image, or a result, which has both.
        sigma: First-order sigma, same shape; not with a result.

    Raises:
        InputError: if the result is a root sum of squares, or its image is real or of one phase.
        TypeError: if sigma is given with a result, or missing with an image.
    """
    if isinstance(image, NoiseMap):
        if sigma is not None:
            raise TypeError("a result has its own sigma.")
        if _root_sum_of_squares(image):
            raise InputError(
                f"the Rician correction is for the magnitude of one image, but {image.method} is a "
                "root sum of squares over coils, whose noise is not Rician."
            )
        if not _circular(image):
            raise InputError(
                "the Rician correction is for the magnitude of a complex image, but the noise of "
                f"{image.method} has no part across the image's phase."
            )
        sigma = image.sigma
        image = image.image
    if sigma is None:
        raise TypeError("an image needs its sigma.")
    power = image.abs() ** 2 - 2 * sigma**2
    return rician_mean_sd(power.clamp_min(0).sqrt(), sigma)[1]


def _circular(result: NoiseMap) -> bool:
    """Whether there is noise across the image's phase: none in real images, nor where the phase was
    taken from elsewhere, as in partial Fourier reconstruction."""
    if not result.image.is_complex():
        return False
    if result.covariance is None:
        return True
    along, across, _ = result.covariance
    return not float(across.sum()) < 1e-6 * float(along.sum())


def _root_sum_of_squares(result: NoiseMap) -> bool:
    combined = result.details.get("combine") == "rss" or FLOOR in result.details
    return combined or result.method.endswith(":rss")
