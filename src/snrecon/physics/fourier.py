"""The one Fourier transform of the package: centred and orthonormal.

Along an axis of even length n the two shifts of centring are the same as alternating signs before
and after the transform, ``(-1)^j (-1)^k (-1)^(n/2)``, which are exact and take a fraction of the
time that moving the array twice takes, itself several times that of the transform.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

LARGEST_KEPT = 2**20
"""Most signs of a table that is kept for the next transform."""


def fft(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Centred orthonormal discrete Fourier transform, image to k-space, over ``axes``.

    The origin of both spaces is at index ``n // 2``. White noise of variance v stays white noise
    of variance v.
    """
    return _centred(torch.fft.fftn, x, axes)


def ifft(y: Tensor, axes: Sequence[int]) -> Tensor:
    """Inverse (and adjoint) of :func:`fft`."""
    return _centred(torch.fft.ifftn, y, axes)


def grid_axes(dimensions: int) -> tuple[int, ...]:
    """The last ``dimensions`` axes, as negative numbers."""
    return tuple(range(-dimensions, 0))


@dataclass(frozen=True)
class Centring:
    """The centred transform as a transform between two signs, for who does many in turn.

    ``fft(x) = on_kspace(forward(on_image(x)))``. Arithmetic that is the same for every point (sums
    over coils, products with masks) may stay between the signs, where both transforms are cheaper.
    With an axis of odd length there are no such signs: ``on_image`` and ``on_kspace`` are then the
    identity, and ``forward`` is centred itself.

    Args:
        axes: Negative.
        even: Whether all of them have an even length.
    """

    axes: tuple[int, ...]
    even: bool

    @classmethod
    def of(cls, like: Tensor, axes: Sequence[int]) -> Centring:
        """For arrays with the axes of ``like``."""
        axes = tuple(axis % like.ndim - like.ndim for axis in axes)
        return cls(axes, not any(like.shape[axis] % 2 for axis in axes))

    def on_image(self, x: Tensor) -> Tensor:
        """An image between the signs, complex; its own inverse."""
        return _alternated(x, self.axes, 1) if self.even else x

    def on_kspace(self, y: Tensor) -> Tensor:
        """K-space between the signs, complex; its own inverse."""
        if not self.even:
            return y
        return _alternated(y, self.axes, (-1) ** (sum(y.shape[axis] for axis in self.axes) // 2))

    def forward(self, x: Tensor) -> Tensor:
        """Image to k-space, between the signs."""
        return torch.fft.fftn(x, dim=self.axes, norm="ortho") if self.even else fft(x, self.axes)

    def inverse(self, y: Tensor) -> Tensor:
        """K-space to image, between the signs."""
        return torch.fft.ifftn(y, dim=self.axes, norm="ortho") if self.even else ifft(y, self.axes)


def _centred(transform: Callable[..., Tensor], x: Tensor, axes: Sequence[int]) -> Tensor:
    axes = tuple(axis % x.ndim - x.ndim for axis in axes)
    odd = tuple(axis for axis in axes if x.shape[axis] % 2)
    even = tuple(axis for axis in axes if not x.shape[axis] % 2)
    if odd:
        x = torch.fft.ifftshift(x, dim=odd)
    if even:
        x = _alternated(x, even, 1)
    y = transform(x, dim=axes, norm="ortho")
    if even:
        y = _alternated(y, even, (-1) ** (sum(x.shape[axis] for axis in even) // 2))
    return torch.fft.fftshift(y, dim=odd) if odd else y


def _alternated(x: Tensor, axes: tuple[int, ...], sign: int) -> Tensor:
    """``sign (-1)^(sum of indices along axes) x``, complex."""
    if not x.is_complex():
        x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        return x * _signs(x.shape, axes, sign, x.dtype, x.device)[..., 0]
    parts = torch.view_as_real(x.resolve_conj())
    return torch.view_as_complex(parts * _signs(x.shape, axes, sign, parts.dtype, x.device))


def _signs(
    shape: torch.Size, axes: tuple[int, ...], sign: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Of real and imaginary parts, ``(*broadcastable to shape, 2 or 1)``."""
    lengths = [1] * -min(axes)
    for axis in axes:
        lengths[axis] = shape[axis]
    # Side by side for both parts, where the last axis alternates: a CPU wants long inner loops.
    key = (tuple(lengths), 2 if -1 in axes else 1, sign, dtype, device)
    return (_kept if math.prod(lengths) <= LARGEST_KEPT else _table)(*key)


def _table(
    lengths: tuple[int, ...], parts: int, sign: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    # One that was made in inference mode could not be used for gradients later.
    with torch.inference_mode(False), torch.no_grad():
        table = torch.full((*[1] * len(lengths), parts), sign, dtype=dtype, device=device)
        for axis, length in enumerate(lengths):
            signs = 1 - 2 * (torch.arange(length, device=device) % 2)
            table = table * signs.to(dtype).reshape(-1, *[1] * (len(lengths) - axis))
        return table.contiguous()


_kept = lru_cache(maxsize=64)(_table)
