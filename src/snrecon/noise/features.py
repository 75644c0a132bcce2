"""What is known of a voxel before any probe: columns of the log-linear prior of its noise."""

from __future__ import annotations

import torch
from torch import Tensor

from snrecon.noise.blur import blur

SCALES = (0.0, 0.7, 1.5, 3.0)
"""SDs in voxels at which the image is looked at."""
NOISE_SCALES = (0.7, 1.5, 3.0)
"""SDs in voxels at which the surrogate's noise is looked at, besides its own."""


def prior_features(
    image: Tensor, power: Tensor | None, inside: Tensor, predicted: Tensor | None = None
) -> Tensor:
    """Standardised columns ``(number, *image)``, the first constant.

    Args:
        image: The reconstruction, complex or real ``(*image)``.
        power: Noise variance of the surrogate, ``(*image)``; None without one.
        inside: Boolean ``(*image)``: voxels with noise, from which mean and SD are taken.
        predicted: Variance that a trained predictor expects, ``(*image)``; None without one.
    """
    weight = inside.to(image.abs().dtype)
    size = image.abs()
    tiny = torch.finfo(size.dtype).tiny
    scale = (size**2).sum() / size.sum().clamp_min(tiny)
    x = image / scale.clamp_min(tiny)
    phase = torch.where(size > 0, image / size.clamp_min(tiny), 1)
    columns = []
    if power is not None:
        columns.append(_log(power, weight))
        columns += [_log(blur(power, s, weight), weight) for s in NOISE_SCALES]
    if predicted is not None:
        columns.append(_log(predicted, weight))
    for s in SCALES:
        smooth = x if s == 0 else _blurred(x, s, weight)
        steep, bent = torch.zeros_like(size), torch.zeros_like(smooth)
        for axis in range(-x.ndim, 0):
            ahead, behind = smooth.roll(-1, axis), smooth.roll(1, axis)
            steep = steep + ((ahead - behind) / 2).abs() ** 2
            bent = bent + ahead + behind - 2 * smooth
        along = (bent * phase.conj()).real if x.is_complex() else bent * phase
        columns += [(smooth.abs() + 0.02).log(), (steep.sqrt() + 0.003).log(), along]
    stacked = torch.stack(columns)
    values = stacked[:, inside]
    mean, spread = values.mean(1), values.std(1, correction=0)  # one voxel has a spread of 0
    shape = (-1,) + (1,) * image.ndim
    scaled = (stacked - mean.reshape(shape)) / spread.clamp_min(1e-6).reshape(shape)
    return torch.cat([torch.ones_like(scaled[:1]), scaled])


def _log(power: Tensor, weight: Tensor) -> Tensor:
    typical = (power * weight).sum() / weight.sum().clamp_min(1)
    return (power + 1e-6 * typical.clamp_min(torch.finfo(power.dtype).tiny)).log()


def _blurred(x: Tensor, scale: float, weight: Tensor) -> Tensor:
    if not x.is_complex():
        return blur(x, scale, weight)
    return torch.complex(blur(x.real, scale, weight), blur(x.imag, scale, weight))
