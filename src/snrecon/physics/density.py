"""How densely a mask samples k-space, place by place."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from snrecon.physics.gram import varying_axes


def sampling_density(mask: Tensor, neighbours: float = 4.0) -> Tensor:
    """Local share of sampled points, ``(*grid)`` real in (0, 1]; 1 everywhere for full sampling.

    A Gaussian-weighted mean over the neighbourhood, along the axes where the mask varies, wide
    enough to hold about so many samples. Points beyond the edge of the grid do not count.

    Args:
        mask: Boolean ``(*grid)``.
        neighbours: Samples within one standard deviation to either side of a point.
    """
    axes = varying_axes(mask)
    values, weights = mask.double(), torch.ones_like(mask, dtype=torch.float64)
    if not axes:
        return values
    spacing = (mask.numel() / int(mask.sum())) ** (1 / len(axes))
    width = spacing * neighbours ** (1 / len(axes)) / 2
    for axis in axes:
        n = mask.shape[axis]
        place = torch.arange(n, dtype=torch.float64, device=mask.device)
        kernel = torch.exp(-((place[:, None] - place[None, :]) ** 2) / (2 * width**2))
        values, weights = (
            (v.movedim(axis, -1) @ kernel).movedim(-1, axis) for v in (values, weights)
        )
    least = math.ldexp(1.0, -20)  # far from every sample; there is nothing to weight there
    return (values / weights).clamp(least, 1)
