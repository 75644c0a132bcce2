"""Normalisations that networks make from their own input, smooth or safe at zero."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def center_and_scale(x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (n - 1) of a real ``x`` over ``axes``, which are kept.

    A constant has standard deviation 0, and the derivative there is taken as zero, so that an
    empty image gives no NaN.
    """
    mean = x.mean(dim=axes, keepdim=True)
    count = 1
    for axis in axes:
        count *= x.shape[axis]
    variance = (x - mean).square().sum(dim=axes, keepdim=True) / max(count - 1, 1)
    return mean, safe_root(variance)


def d_center_and_scale(
    dx: Tensor, centred: Tensor, size: Tensor, axes: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Derivatives of mean and standard deviation along tangents.

    Args:
        dx: Tangents, ``(batch, *x.shape)``.
        centred: ``x`` without its mean.
        size: Its standard deviation, see :func:`center_and_scale`.
        axes: Negative numbers, as there.
    """
    count = math.prod(centred.shape[axis] for axis in axes)
    inner = (centred * dx).sum(dim=axes, keepdim=True) / max(count - 1, 1)
    return dx.mean(dim=axes, keepdim=True), safe_divide(inner, size)


def safe_root(x: Tensor) -> Tensor:
    """Square root of ``x >= 0`` whose derivative at 0 is taken as zero."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1).sqrt(), 0)


def safe_divide(x: Tensor, size: Tensor) -> Tensor:
    """``x / size``, and 0 where ``size`` is 0."""
    positive = size > 0
    return torch.where(positive, x / torch.where(positive, size, 1), 0)
