"""A small network that tells, from what an image looks like, how noisy each voxel is."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

CHANNELS = 16
"""Of :func:`snrecon.noise.predicted.look`."""
LARGEST = 12.0
"""Largest logarithm of a ratio of variances."""


class NoisePredictor(nn.Module):
    """A U-Net of three levels, two 3x3 convolutions with SiLU each; before training it answers 0.

    Args:
        features: Channels of the finest level; 1.5 and 2 times as many on the coarser ones.
    """

    def __init__(self, features: int = 32) -> None:
        super().__init__()
        self.features = features
        fine, middle, coarse = features, features * 3 // 2, features * 2
        self.fine = _pair(CHANNELS, fine)
        self.middle = _pair(fine, middle)
        self.coarse = _pair(middle, coarse)
        self.middle_again = _pair(coarse + middle, middle)
        self.fine_again = _pair(middle + fine, fine)
        self.last = nn.Conv2d(fine, 1, 1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, channels: Tensor) -> Tensor:
        """Logarithm of the variance over that of the linear reference.

        Args:
            channels: ``(batch, 16, ky, kx)`` real.

        Returns:
            ``(batch, ky, kx)``.
        """
        rows, columns = channels.shape[-2:]
        padded = functional.pad(channels, (0, -columns % 4, 0, -rows % 4))
        fine = self.fine(padded)
        middle = self.middle(functional.avg_pool2d(fine, 2))
        coarse = self.coarse(functional.avg_pool2d(middle, 2))
        middle = self.middle_again(torch.cat([_doubled(coarse), middle], 1))
        fine = self.fine_again(torch.cat([_doubled(middle), fine], 1))
        answer: Tensor = self.last(fine)[:, 0, :rows, :columns]
        return answer.float().clamp(-LARGEST, LARGEST)


def _pair(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1), nn.SiLU(),
        nn.Conv2d(after, after, 3, padding=1), nn.SiLU())


def _doubled(values: Tensor) -> Tensor:
    return functional.interpolate(values, scale_factor=2.0, mode="bilinear", align_corners=False)
