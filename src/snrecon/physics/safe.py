"""Roots and quotients whose value and derivative at zero are zero instead of NaN."""

from __future__ import annotations

import torch
from torch import Tensor


def safe_root(x: Tensor) -> Tensor:
    """Square root of ``x >= 0`` whose derivative at 0 is taken as zero."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1).sqrt(), 0)


def safe_divide(x: Tensor, size: Tensor) -> Tensor:
    """``x / size``, and 0 where ``size`` is 0."""
    positive = size > 0
    return torch.where(positive, x / torch.where(positive, size, 1), 0)
