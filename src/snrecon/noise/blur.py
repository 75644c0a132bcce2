"""Gaussian averages over the neighbourhood of a voxel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

REACH = 3.0
"""Kernels end at this many SDs."""
COARSE = 1.25
"""Wide averages are taken on a coarser grid, on which they have at least this SD."""
MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
POOL = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def blur(values: Tensor, scale: float, weight: Tensor) -> Tensor:
    """Weighted Gaussian average; 0 where no weight is near.

    Args:
        values: Real ``(..., *grid)``, of one to three axes.
        scale: SD of the Gaussian in voxels; wide ones are approximated on a coarser grid.
        weight: Real ``(*grid)``, zero where values are to be left out.
    """
    axes = weight.ndim
    flat = (values * weight).reshape(-1, 1, *weight.shape)
    both = torch.cat([flat, weight[None, None]])
    steps = tuple(max(1, min(int(scale / COARSE), n)) for n in weight.shape)
    if max(steps) > 1:
        both = POOL[axes](both, steps, ceil_mode=True, count_include_pad=False)
    both = _convolved(both, [scale / step for step in steps])
    share = both[-1:]
    tiny = torch.finfo(values.dtype).eps
    mean = torch.where(share > tiny, both[:-1] / share.clamp_min(tiny), 0)
    if max(steps) > 1:
        mean = functional.interpolate(mean, scale_factor=tuple(float(step) for step in steps),
                                      mode=MODES[axes], align_corners=False)
        mean = mean[(slice(None), slice(None), *(slice(0, n) for n in weight.shape))]
    return mean.reshape(values.shape)


def _convolved(values: Tensor, scales: Sequence[float]) -> Tensor:
    """Of ``(batch, 1, *grid)``, with the SD along each axis; zero beyond the grid. Kernels have few
    points: sums of shifted copies take a fraction of the time that convolutions of a single channel
    do."""
    for axis, scale in zip(range(-len(scales), 0), scales, strict=True):
        n = values.shape[axis]
        total = values.clone()
        for k in range(1, min(int(REACH * scale), n - 1) + 1):
            weight = math.exp(-(k**2) / (2 * scale**2))
            total.narrow(axis, 0, n - k).add_(values.narrow(axis, k, n - k), alpha=weight)
            total.narrow(axis, k, n - k).add_(values.narrow(axis, 0, n - k), alpha=weight)
        values = total
    return values
