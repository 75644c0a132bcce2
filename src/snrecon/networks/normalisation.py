"""Normalisations that networks make from their own input, smooth or safe at zero."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

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


class InstanceNorm(nn.InstanceNorm2d):
    """``nn.InstanceNorm2d`` without parameters, in the layout in which CPUs convolve fastest.

    torch's own copies arrays whose channels are last in memory to and fro, which takes longer than
    the convolutions around it. Elsewhere it is torch's, which keeps less for the gradient.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(items, channels, ky, kx)`` to mean 0 and variance 1 of every item and channel."""
        # torch's takes statistics of half precision in single.
        half = x.dtype not in (torch.float32, torch.float64)
        if half or not channels_go_last(x) or x.shape[-2:].numel() < 2:
            return super().forward(x)
        # In any layout, without views: torch.func.linearize replays what it saw in one layout on
        # arrays in another.
        centred = x - x.mean(dim=(-2, -1), keepdim=True)
        variance = centred.square().mean(dim=(-2, -1), keepdim=True)
        return centred * (variance + self.eps).rsqrt()


def channels_go_last(x: Tensor) -> bool:
    """Whether a network is faster with the channels last in memory: on a CPU, without a graph."""
    return x.device.type == "cpu" and not (torch.is_grad_enabled() and x.requires_grad)


def channels_last(x: Tensor) -> Tensor:
    """``(items, channels, ky, kx)``, the same with the channels last in memory. Unlike
    ``contiguous(memory_format=...)`` it is known to torch.func."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)
