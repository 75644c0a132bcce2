"""Fast forms of the Gram operator ``A^H A`` of Cartesian encoding.

A mask that does not vary along an axis makes the Fourier transform along it drop out. When it
varies along one axis only, what is left is a small dense matrix per line of voxels along that axis
(Toeplitz point-spread function times coil overlap), which is cheaper to apply than Fourier
transforms of every coil, and can be factorised exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snrecon.physics.constant_matmul import constant_matmul
from snrecon.physics.fourier import fft, ifft
from snrecon.physics.operators import LinearOperator
from snrecon.physics.safe import may_overwrite

DENSE_LIMIT = 2**29
"""Largest dense Gram matrix, bytes, that is chosen over Fourier transforms."""


def varying_axes(mask: Tensor) -> tuple[int, ...]:
    """Axes (negative) along which the boolean mask ``(*grid)`` changes."""
    axes = []
    for axis in range(-mask.ndim, 0):
        first = mask.narrow(axis, 0, 1)
        if bool((mask != first).any()):
            axes.append(axis)
    return tuple(axes)


def encoding_gram(maps: Tensor, mask: Tensor) -> LinearOperator:
    """``A^H A`` of ``A = M F S`` in its cheapest exact form.

    Args:
        maps: ``(coil, *grid)``.
        mask: Boolean ``(*grid)``.
    """
    axes = varying_axes(mask)
    if len(axes) == 1:
        length = mask.shape[axes[0]]
        if mask.numel() * length * maps.element_size() <= DENSE_LIMIT:
            return LineGram(maps, mask, axes[0])
    return FourierGram(maps, mask, axes)


class FourierGram(LinearOperator):
    """``A^H A`` by Fourier transforms along the axes where the mask varies.

    The two shifts that centre a transform commute with ``A^H A`` (a circulant) up to where the mask
    is counted from, so none is left. A single transform runs along the last axis in memory.
    """

    def __init__(self, maps: Tensor, mask: Tensor, axes: tuple[int, ...] | None = None) -> None:
        axes = varying_axes(mask) if axes is None else axes
        self.domain = self.range = tuple(mask.shape)
        # The mask is constant along the other axes: any index there will do.
        selector = tuple(slice(None) if i - mask.ndim in axes else slice(0, 1)
                         for i in range(mask.ndim))
        sampled = torch.fft.ifftshift(mask[selector], dim=axes) if axes else mask[selector]
        self._turn = axes[0] if len(axes) == 1 else -1
        self.axes = (-1,) if len(axes) == 1 else axes
        self.maps = maps.movedim(self._turn, -1).contiguous()
        self._conjugate = self.maps.conj().resolve_conj()
        self._sampled = sampled.movedim(self._turn, -1).to(maps.dtype)

    def _forward(self, x: Tensor) -> Tensor:
        coil = -1 - len(self.domain)
        images = self.maps * x.movedim(self._turn, -1).contiguous().unsqueeze(coil)
        # The products are a third of the time, and a fifth in place.
        times = Tensor.mul_ if may_overwrite(images) else Tensor.mul
        if self.axes:
            spectrum = times(torch.fft.fftn(images, dim=self.axes), self._sampled)
            images = torch.fft.ifftn(spectrum, dim=self.axes)
        else:
            images = times(images, self._sampled)
        combined = times(images, self._conjugate).sum(dim=coil)
        return combined.movedim(-1, self._turn).contiguous()

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._forward(y)


class LineGram(LinearOperator):
    """``A^H A`` as one dense Hermitian matrix for every line of voxels along ``axis``.

    ``matrix`` is ``(lines, n, n)``: entry ``[j, k]`` couples voxels j and k of the line.

    Args:
        maps: ``(coil, *grid)``.
        mask: Boolean ``(*grid)`` that varies along ``axis`` alone.
        axis: Negative.
        box: Voxels beyond which all maps are zero (:func:`support_box`); ``matrix`` is of the lines
            in the box, cut to it. By default the whole grid.
    """

    def __init__(
        self, maps: Tensor, mask: Tensor, axis: int, box: tuple[slice, ...] | None = None
    ) -> None:
        self.domain = self.range = tuple(mask.shape)
        self.axis = axis
        self.box = tuple(slice(0, n) for n in mask.shape) if box is None else box
        n = mask.shape[axis]
        profile = mask.movedim(axis, -1).reshape(-1, n)[0]
        spread = _point_spread(profile, maps.dtype)[self.box[axis], self.box[axis]]  # Toeplitz
        inner = boxed(maps, self.box)
        lines = inner.movedim(axis, -1).reshape(maps.shape[0], -1, len(spread))  # (coil, line, n)
        overlap = torch.einsum("clj,clk->ljk", lines.conj(), lines)
        self.matrix = overlap.mul_(spread)

    def _forward(self, x: Tensor) -> Tensor:
        inner = boxed(x, self.box)
        grid = tuple(part.stop - part.start for part in self.box)
        lines = constant_matmul(self.matrix, to_lines(inner, self.axis, grid))
        return unboxed(from_lines(lines, inner, self.axis, grid), self.box, self.domain)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._forward(y)


def support_box(maps: Tensor) -> tuple[slice, ...]:
    """The smallest box ``(*grid)`` that holds all voxels where some map ``(coil, *grid)`` is not
    zero; a single voxel if there are none."""
    support = (maps != 0).any(dim=0)
    box = []
    for axis in range(support.ndim):
        others = [i for i in range(support.ndim) if i != axis]
        here = (support.any(dim=others) if others else support).nonzero().flatten().tolist() or [0]
        box.append(slice(here[0], here[-1] + 1))
    return tuple(box)


def boxed(x: Tensor, box: tuple[slice, ...]) -> Tensor:
    """``(..., *grid)`` to ``(..., *box)``."""
    return x[(slice(None),) * (x.ndim - len(box)) + box]


def unboxed(x: Tensor, box: tuple[slice, ...], grid: tuple[int, ...]) -> Tensor:
    """``(..., *box)`` in its place in ``(..., *grid)``, zero elsewhere."""
    margins: list[int] = []
    for part, n in zip(reversed(box), reversed(grid), strict=True):
        margins += [part.start, n - part.stop]
    return torch.nn.functional.pad(x, margins) if any(margins) else x


def _point_spread(profile: Tensor, dtype: torch.dtype) -> Tensor:
    """``F^H diag(profile) F`` for one line of n points, ``(n, n)``."""
    n = profile.shape[0]
    eye = torch.eye(n, dtype=torch.complex128, device=profile.device)
    columns = ifft(fft(eye, (-1,)) * profile, (-1,))  # row r holds the response to voxel r
    return columns.mT.to(dtype)


def to_lines(x: Tensor, axis: int, grid: tuple[int, ...]) -> Tensor:
    """``(*batch, *grid)`` to ``(lines, n, batch)`` with n along ``axis``."""
    n = grid[axis]
    batch = x.ndim - len(grid)
    moved = x.movedim(axis, -1).reshape(*x.shape[:batch], -1, n)
    return moved.reshape(-1, moved.shape[-2], n).permute(1, 2, 0)


def from_lines(lines: Tensor, like: Tensor, axis: int, grid: tuple[int, ...]) -> Tensor:
    """Inverse of :func:`to_lines` for an array shaped as ``like``."""
    others = [n for i, n in enumerate(grid) if i - len(grid) != axis]
    batch = like.shape[: like.ndim - len(grid)]
    return lines.permute(2, 0, 1).reshape(*batch, *others, grid[axis]).movedim(-1, axis)
