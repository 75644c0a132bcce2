"""Whether a scan is fully sampled."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = 0.25
"""Smallest share of the grid that a fully sampled central block may be; the rest is padding."""
DENSE = 0.95
"""Smallest share of that block that must be sampled."""


def fully_sampled(mask: Tensor) -> bool:
    """Whether a boolean mask ``(*grid)`` has no gaps.

    Points that are missing at the edges only are zero padding or a lower resolution, not
    undersampling; half of a k-space that stops at its centre is undersampling all the same.
    """
    places = [torch.nonzero(mask.transpose(0, axis).flatten(1).any(1)).flatten()
              for axis in range(mask.ndim)]
    if any(len(place) == 0 for place in places):
        return False
    bounds = [(int(place[0]), int(place[-1]) + 1) for place in places]
    block = mask[tuple(slice(low, high) for low, high in bounds)]
    middle = all(2 * abs(low + high - n) < n for (low, high), n in zip(bounds, mask.shape))
    return middle and float(block.double().mean()) >= DENSE and (
        block.numel() >= LEAST * mask.numel())
