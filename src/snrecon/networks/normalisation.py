"""Normalisations that networks make from their own input, smooth or safe at zero."""

from __future__ import annotations

import math

from torch import Tensor

from snrecon.physics.safe import safe_divide, safe_root


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
