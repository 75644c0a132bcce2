"""How far an image is from its reference: NMSE, PSNR and SSIM, as fastMRI defines them.

Zbontar et al., arXiv:1811.08839; SSIM of Wang et al., IEEE Trans Image Process 13:600 (2004), with
a uniform window and sample covariances as scikit-image computes it. Scores are of magnitudes, and
nothing is rescaled. A score is worth nothing without the kind of its reference: a root sum of
squares and a matched filter of the same data differ by more than many methods do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from snrecon.errors import InputError

WINDOW = 7
"""Edge of the uniform window of SSIM, pixels."""
K1, K2 = 0.01, 0.03
"""SSIM's constants, relative to the data range."""


@dataclass(frozen=True)
class Scores:
    """Scores of one volume."""

    nmse: float
    """``|g - p|^2 / |g|^2``."""
    psnr: float
    """``10 log10(max(g)^2 / MSE)``, dB; infinite for equal images."""
    ssim: float
    """Mean over slices (or over a region)."""
    scale: float
    """Least-squares factor ``<g, p> / <p, p>`` that would fit the image to its reference. It is
    reported, never applied; far from 1 the two are in different units."""


def score(image: Tensor, reference: Tensor, region: Tensor | None = None) -> Scores:
    """Scores of the magnitude of a volume, in double precision.

    The data range of PSNR and SSIM is the maximum of the reference over the volume.

    Args:
        image: ``(slice, rows, columns)`` or ``(rows, columns)``, real or complex.
        reference: The same.
        region: Boolean of the same shape: sums and means over its voxels only, and the maximum
            too. None is fastMRI's definition: everything, and for SSIM the pixels whose window
            lies inside the image.

    Raises:
        InputError: if shapes differ or are smaller than SSIM's window, or the reference is zero.
    """
    if image.shape != reference.shape or image.ndim not in (2, 3):
        raise InputError(
            f"an image of shape {tuple(image.shape)} cannot be scored against a reference of "
            f"shape {tuple(reference.shape)}."
        )
    if min(image.shape[-2:]) < WINDOW:
        raise InputError(f"SSIM needs images of at least {WINDOW} x {WINDOW} pixels.")
    p, g = (x.abs().double().reshape(-1, *x.shape[-2:]) for x in (image, reference))
    inside = torch.ones_like(g, dtype=torch.bool) if region is None else region.reshape(g.shape)
    top = float(g[inside].max()) if bool(inside.any()) else 0.0
    if top == 0:
        raise InputError("the reference is zero everywhere, so there is nothing to score against.")
    error = float((p - g)[inside].square().sum())
    power = float(g[inside].square().sum())
    mse = error / int(inside.sum())
    similarity = similarity_map(p, g, top)
    if region is None:
        edge = WINDOW // 2
        similarity = similarity[..., edge:-edge or None, edge:-edge or None]
        ssim = float(similarity.mean())
    else:
        ssim = float(similarity[inside].mean())
    own = float(p[inside].square().sum())
    return Scores(
        nmse=error / power,
        psnr=float("inf") if error == 0 else 10 * math.log10(top**2 / mse),
        ssim=ssim,
        scale=float((p * g)[inside].sum()) / own if own > 0 else float("nan"),
    )


def similarity_map(image: Tensor, reference: Tensor, data_range: float | Tensor) -> Tensor:
    """SSIM at every pixel, ``(..., rows, columns)``; differentiable, in the precision given.

    Args:
        image: ``(..., rows, columns)`` real.
        reference: The same.
        data_range: What counts as the full range of values; a tensor must broadcast.
    """
    samples = WINDOW**2
    unbiased = samples / (samples - 1)
    mean_p, mean_g = _box(image), _box(reference)
    var_p = unbiased * (_box(image * image) - mean_p * mean_p)
    var_g = unbiased * (_box(reference * reference) - mean_g * mean_g)
    both = unbiased * (_box(image * reference) - mean_p * mean_g)
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    luminance = (2 * mean_p * mean_g + c1) / (mean_p * mean_p + mean_g * mean_g + c1)
    structure = (2 * both + c2) / (var_p + var_g + c2)
    return luminance * structure


def _box(values: Tensor) -> Tensor:
    """Mean over the window around every pixel, the image being mirrored at its edges."""
    planes = values.reshape(-1, 1, *values.shape[-2:])
    for axis in (-2, -1):
        n = planes.shape[axis]
        place = torch.arange(-(WINDOW // 2), n + WINDOW // 2, device=planes.device)
        place = torch.where(place < 0, -1 - place, place)
        place = torch.where(place >= n, 2 * n - 1 - place, place)
        planes = planes.index_select(axis, place)
    return functional.avg_pool2d(planes, WINDOW, 1).reshape(values.shape)
