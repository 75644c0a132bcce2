"""Halving and doubling of feature maps with the binomial filter [1, 3, 3, 1]."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def _filter(values: Tensor) -> Tensor:
    """The separable filter of sum 1 for every channel, ``(channel, 1, 4, 4)``."""
    line = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=values.dtype, device=values.device) / 8
    return torch.outer(line, line).expand(values.shape[1], 1, 4, 4)


def smoothed(values: Tensor) -> Tensor:
    """Filtered, one point more along both axes: what a 3x3 convolution with stride 2 and no
    padding brings to half the size. ``(batch, channel, ky, kx)``."""
    padded = functional.pad(values, (2, 2, 2, 2))
    return functional.conv2d(padded, _filter(values), groups=values.shape[1])


def halved(values: Tensor) -> Tensor:
    """Half as many points along both axes, which must be even."""
    return functional.conv2d(values, _filter(values), stride=2, padding=1,
                             groups=values.shape[1])


def doubled(values: Tensor) -> Tensor:
    """Twice as many points along both axes, zero outside."""
    return functional.conv_transpose2d(values, 4 * _filter(values), stride=2, padding=1,
                                       groups=values.shape[1])
