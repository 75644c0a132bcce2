"""Orthogonal wavelet transform with periodic boundary, as a unitary operator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from snrecon.errors import InputError
from snrecon.physics.operators import Identity, LinearOperator, Shape


class Wavelet(LinearOperator):
    """Periodised discrete wavelet transform of images ``(*grid)`` to coefficients ``(*grid)``.

    Unitary for every grid: ``W^H W = W W^H = 1``. The coefficients lie as in a picture, the
    approximation in the corner of low indices, surrounded by the details from coarse to fine. On
    grids whose sizes are divisible by ``2^levels`` they are those of PyWavelets' ``periodization``
    mode. Where a length is odd, its last sample goes into the approximation unchanged, which is
    orthogonal too, and the even rest is transformed; so that every size takes part.

    Each level is one small orthogonal matrix along each axis.

    Args:
        shape: Image grid, any number of axes.
        name: An orthogonal wavelet known to PyWavelets (``haar``, ``db4``, ``sym4``, ``coif1``).
        levels: Number of levels for all axes. None: for each axis as many as leave an
            approximation about as long as the filter; short axes may have none.

    Raises:
        InputError: for an unknown or not orthogonal wavelet, or a negative number of levels.

    Source: S. Mallat, IEEE Trans. Pattern Anal. Mach. Intell. 11 (1989) 674.
    """

    def __init__(self, shape: Shape, name: str = "db4", levels: int | None = None) -> None:
        self.domain = self.range = tuple(shape)
        self.name = name
        self._low, self._high = _filters(name)
        if levels is not None and levels < 0:
            raise InputError(f"the number of wavelet levels must not be negative, not {levels}.")
        length = len(self._low)
        self.levels = tuple(
            _useful_levels(n, length) if levels is None else levels for n in self.domain
        )
        """Levels along each axis."""
        self._sizes = [self.domain]
        for level in range(max(self.levels, default=0)):
            self._sizes.append(
                tuple(
                    (n + 1) // 2 if level < wanted else n
                    for n, wanted in zip(self._sizes[-1], self.levels)
                )
            )
        self._matrices: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    @property
    def gram(self) -> LinearOperator:
        return Identity(self.domain)

    @property
    def approximation(self) -> tuple[slice, ...]:
        """Where the approximation lies: the coefficients that are not sparse."""
        return tuple(slice(0, n) for n in self._sizes[-1])

    def _forward(self, x: Tensor) -> Tensor:
        return _in_parts(lambda part: self._analyse(part, 0), x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return _in_parts(lambda part: self._synthesise(part, 0), y)

    def _analyse(self, x: Tensor, level: int) -> Tensor:
        if level + 1 == len(self._sizes):
            return x
        x = self._along_axes(x, level, transpose=False)
        return self._replace(x, self._analyse(self._corner(x, level), level + 1), level)

    def _synthesise(self, y: Tensor, level: int) -> Tensor:
        if level + 1 == len(self._sizes):
            return y
        y = self._replace(y, self._synthesise(self._corner(y, level), level + 1), level)
        return self._along_axes(y, level, transpose=True)

    def _along_axes(self, x: Tensor, level: int, transpose: bool) -> Tensor:
        sizes = zip(range(-len(self.domain), 0), self._sizes[level], self._sizes[level + 1])
        for axis, n, low in sizes:
            if low < n:
                matrix = self._matrix(n, x)
                x = _along(matrix.mT if transpose else matrix, x, axis)
        return x

    def _corner(self, x: Tensor, level: int) -> Tensor:
        for axis, low in zip(range(-len(self.domain), 0), self._sizes[level + 1]):
            x = x.narrow(axis, 0, low)
        return x

    def _replace(self, x: Tensor, corner: Tensor, level: int) -> Tensor:
        """``x`` with its approximation replaced, without writing in place."""
        small, large = self._sizes[level + 1], self._sizes[level]
        for index in reversed(range(len(large))):
            axis = index - len(large)
            if small[index] == large[index]:
                continue
            rest = x.narrow(axis, small[index], large[index] - small[index])
            for other in range(index):
                rest = rest.narrow(other - len(large), 0, small[other])
            corner = torch.cat([corner, rest], dim=axis)
        return corner

    def _matrix(self, n: int, like: Tensor) -> Tensor:
        key = (n, like.dtype, like.device)
        if key not in self._matrices:
            # A matrix made and kept in inference mode could not be differentiated through later.
            with torch.inference_mode(False):
                matrix = torch.from_numpy(_level_matrix(n, self._low, self._high))
                self._matrices[key] = matrix.to(dtype=like.dtype, device=like.device)
        return self._matrices[key]


def _in_parts(transform: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A real transform of ``x``; of its real and imaginary parts, side by side, if complex."""
    if not x.is_complex():
        return transform(x)
    real, imaginary = transform(torch.stack([x.real, x.imag])).unbind(0)
    return torch.complex(real, imaginary)


def _along(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    """Real ``(n, n)`` matrix times real ``x`` along ``axis``."""
    if axis == -1:
        return x @ matrix.mT
    return (matrix @ x.flatten(start_dim=axis + 1)).reshape(x.shape)


def _filters(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Decomposition filters (low pass, high pass) of an orthogonal wavelet."""
    import pywt

    try:
        wavelet = pywt.Wavelet(name)
    except ValueError:
        wavelet = None
    if wavelet is None or not wavelet.orthogonal or not _orthogonal(np.array(wavelet.dec_lo)):
        raise InputError(
            f"'{name}' is not an orthogonal wavelet; use for example haar, db4, sym4 or coif1."
        )
    return np.array(wavelet.dec_lo), np.array(wavelet.dec_hi)


def _orthogonal(low: np.ndarray) -> bool:
    """Whether a low pass is orthogonal to its even shifts: ``dmey`` is called so and is cut off."""
    even = np.correlate(low, low, "full")[(len(low) - 1) % 2 :: 2]
    return bool(np.abs(even - (np.arange(len(even)) == len(even) // 2)).max() < 1e-6)


def _useful_levels(n: int, length: int) -> int:
    """How often n can be halved while the filter still fits, as PyWavelets counts it."""
    levels = 0
    while n // 2 ** (levels + 1) >= length - 1:
        levels += 1
    return levels


def _level_matrix(n: int, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """One level along n samples: low-pass rows, the row of an odd last sample, high-pass rows."""
    half, length = n // 2, len(low)
    matrix = np.zeros((n, n))
    first_high = n - half
    for k in range(half):
        for j in range(length):
            column = (2 * k + length // 2 - j) % (2 * half)
            matrix[k, column] += low[j]
            matrix[first_high + k, column] += high[j]
    if n % 2:
        matrix[half, n - 1] = 1.0
    return matrix
