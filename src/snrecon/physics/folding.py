"""The adjoint of the whitened measurement in one pass over the coils."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from snrecon.physics.fourier import grid_axes
from snrecon.physics.gram import varying_axes


def folding(maps: Tensor, whitening: Tensor, mask: Tensor) -> Callable[[Tensor], Tensor]:
    """``y -> S^H F^H M W y`` for ``(..., coil, *grid)``.

    Whitening is folded into the maps, and of the centred transform's two shifts the one in k-space
    is a phase in the maps and the one in the image follows the sum over coils.

    Args:
        maps: Whitened ``(coil, *grid)``.
        whitening: ``(coil, coil)``.
        mask: Boolean ``(*grid)``.
    """
    axes = grid_axes(mask.ndim)
    combined = torch.einsum("ab,a...->b...", whitening.conj().to(maps), maps)
    combined = torch.fft.ifftshift(combined, dim=axes)
    for axis in axes:
        n = mask.shape[axis]
        place = torch.arange(n, device=maps.device, dtype=maps.real.dtype)
        turn = torch.polar(torch.ones_like(place), 2 * torch.pi * (n // 2) / n * place)
        combined = combined * turn.reshape((n,) + (1,) * (-1 - axis))
    weights = combined.conj().resolve_conj()
    coil = -1 - mask.ndim
    if mask.ndim == 2 and varying_axes(mask) in ((), (-2,)):
        rows = torch.nonzero(mask[:, 0]).squeeze(1)
        total = mask.shape[0]

        def by_rows(kspace: Tensor) -> Tensor:
            # Lines that were not acquired need no transform along the readout.
            lines = torch.fft.ifft(kspace.index_select(-2, rows), dim=-1, norm="ortho")
            shape = (*lines.shape[:-2], total, lines.shape[-1])
            filled = torch.zeros(shape, dtype=lines.dtype, device=lines.device)
            filled = filled.index_copy(-2, rows, lines)
            images = torch.fft.ifft(filled, dim=-2, norm="ortho")
            return torch.fft.fftshift((weights * images).sum(dim=coil), dim=axes)

        return by_rows

    def by_points(kspace: Tensor) -> Tensor:
        images = torch.fft.ifftn(kspace * mask, dim=axes, norm="ortho")
        return torch.fft.fftshift((weights * images).sum(dim=coil), dim=axes)

    return by_points
