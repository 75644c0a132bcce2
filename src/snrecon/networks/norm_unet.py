"""The U-Net of the end-to-end variational network: on complex images of any size and scale."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from snrecon.networks.normalisation import center_and_scale, d_center_and_scale
from snrecon.networks.unet import Unet, channels_of, complex_of
from snrecon.physics.safe import safe_divide

GRID = (-2, -1)
MULTIPLE = 16
"""The U-Nets see images padded with zeros to a multiple of this, as published."""


class NormUnet(nn.Module):
    """A U-Net on complex images whose real and imaginary parts are normalised to mean 0 and
    standard deviation 1, and scaled back.

    Args:
        chans: Channels of the finest level.
        pools: Number of poolings.
        drop: Probability of dropping a channel while training.
        residual: Whether the output is a correction, to which the mean is not added back.
        others: How many images beside the first it is given; they are divided by the first one's
            standard deviations.
    """

    def __init__(
        self, chans: int, pools: int, drop: float = 0.0, residual: bool = False, others: int = 0
    ) -> None:
        super().__init__()
        self.unet = Unet(2 + 2 * others, 2, chans, pools, drop)
        self.residual = residual

    def forward(self, image: Tensor, *others: Tensor) -> Tensor:
        """``(batch, ky, kx)`` complex to the same."""
        x = channels_of(image)
        mean, size = center_and_scale(x, GRID)
        parts = [safe_divide(x - mean, size)]
        parts += [safe_divide(channels_of(other), size) for other in others]
        y = _cropped(self.unet(_padded(torch.cat(parts, dim=-3))).to(x.dtype), x.shape[-2:])
        return complex_of(y * size if self.residual else y * size + mean)

    def linearize(self, image: Tensor, *others: Tensor) -> tuple[Tensor, Callable[..., Tensor]]:
        """The output and the derivative at given images ``(items, ky, kx)``, without any graph.

        Returns:
            The output ``(items, ky, kx)`` and a function from tangents ``(batch, items, ky, kx)``
            of all images to the same. Both without gradients.
        """
        with torch.no_grad():
            x = channels_of(image)
            mean, size = center_and_scale(x, GRID)
            inverse = safe_divide(torch.ones_like(size), size)
            centred = x - mean
            parts = [part * inverse for part in (centred, *map(channels_of, others))]
            y, unet_jvp = self.unet.linearize(_padded(torch.cat(parts, dim=-3)))
            y = _cropped(y, x.shape[-2:])

        def jvp(tangents: Tensor, *d_others: Tensor) -> Tensor:
            with torch.no_grad():
                dx = channels_of(tangents)
                d_mean, d_size = d_center_and_scale(dx, centred, size, GRID)
                moved = [dx - d_mean, *map(channels_of, d_others)]
                moved = [(d_part - part * d_size).mul_(inverse)
                         for d_part, part in zip(moved, parts, strict=True)]
                dy = _cropped(unet_jvp(_padded(torch.cat(moved, dim=-3))), x.shape[-2:])
                dy = (dy * size).add_(y * d_size)
                return complex_of(dy if self.residual else dy.add_(d_mean))

        return complex_of(y * size if self.residual else y * size + mean), jvp


def _padded(x: Tensor) -> Tensor:
    rows, columns = (_margins(n) for n in x.shape[-2:])
    return functional.pad(x, (*columns, *rows))


def _cropped(y: Tensor, grid: torch.Size) -> Tensor:
    """The part of ``y`` that :func:`_padded` has put a ``grid`` in."""
    (top, _), (left, _) = (_margins(n) for n in grid)
    return y[..., top : top + grid[0], left : left + grid[1]]


def _margins(n: int) -> tuple[int, int]:
    """Zeros before and after ``n`` voxels that make a multiple of 16."""
    missing = -n % MULTIPLE
    return missing // 2, missing - missing // 2
