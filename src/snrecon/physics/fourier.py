"""The one Fourier transform of the package: centred and orthonormal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def fft(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Centred orthonormal discrete Fourier transform, image to k-space, over ``axes``.

    The origin of both spaces is at index ``n // 2``. White noise of variance v stays white noise
    of variance v.
    """
    axes = tuple(axes)
    shifted = torch.fft.ifftshift(x, dim=axes)
    return torch.fft.fftshift(torch.fft.fftn(shifted, dim=axes, norm="ortho"), dim=axes)


def ifft(y: Tensor, axes: Sequence[int]) -> Tensor:
    """Inverse (and adjoint) of :func:`fft`."""
    axes = tuple(axes)
    shifted = torch.fft.ifftshift(y, dim=axes)
    return torch.fft.fftshift(torch.fft.ifftn(shifted, dim=axes, norm="ortho"), dim=axes)


def grid_axes(dimensions: int) -> tuple[int, ...]:
    """The last ``dimensions`` axes, as negative numbers."""
    return tuple(range(-dimensions, 0))
