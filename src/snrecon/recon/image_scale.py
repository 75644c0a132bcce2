"""What a prior of normalised magnitude images has to be told of an image: its size and phase, from
a first reconstruction."""

from __future__ import annotations

import torch
from torch import Tensor

from snrecon.physics.fourier import fft, ifft
from snrecon.physics.safe import safe_divide, safe_root

PERCENTILE = 0.99
"""Share of the voxels that are darker than what becomes 1."""
PHASE_WIDTH = 10
"""The smooth phase is that of the lowest frequencies, up to this part of the grid."""


def bright(magnitude: Tensor) -> Tensor:
    """The 99th percentile of ``(..., ky, kx)``, ``(..., 1, 1)``; 1 where that is zero."""
    ordered = magnitude.flatten(-2).sort(dim=-1).values
    size = ordered[..., int(PERCENTILE * (ordered.shape[-1] - 1)), None, None]
    return torch.where(size > 0, size, 1)


def smooth_phase(image: Tensor) -> Tensor:
    """Unit phase ``(..., ky, kx)`` of the low frequencies of a complex image (Hann window of half
    width ``n / 10``, at least 2); 1 where they are zero."""
    window = torch.ones((), dtype=image.real.dtype, device=image.device)
    for axis in (-2, -1):
        n = image.shape[axis]
        offset = (torch.arange(n, device=image.device) - n // 2).to(window)
        half = max(n / PHASE_WIDTH, 2.0)
        line = torch.where(offset.abs() < half, torch.cos(torch.pi * offset / (2 * half)) ** 2, 0)
        window = window * (line if axis == -1 else line[:, None])
    low = ifft(fft(image, (-2, -1)) * window, (-2, -1))
    size = safe_root(low.real.square() + low.imag.square())
    return torch.complex(
        torch.where(size > 0, safe_divide(low.real, size), 1), safe_divide(low.imag, size))
