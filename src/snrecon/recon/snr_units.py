"""What a network that works in SNR units is given of a scan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.physics.gram import FourierGram, varying_axes
from snrecon.recon.forward_model import ForwardModel, forward_model


@dataclass(frozen=True, eq=False)
class SnrUnits:
    """A scan as ``z = rho x`` with ``rho = sqrt(sum |S_white|^2)``: the maps are normalised and
    white noise has the same size everywhere."""

    model: ForwardModel
    """The whitened measurement."""
    normalised: Tensor
    """Whitened maps over ``rho``, ``(coil, ky, kx)``; zero off the support."""
    inverse: Tensor
    """``1 / rho``, ``(ky, kx)``; zero off the support. ``x = z * inverse``."""
    support: Tensor
    """Boolean ``(ky, kx)``."""
    adjoint: Callable[[Tensor], Tensor]
    """``b = A^H y``: k-space ``(..., coil, ky, kx)`` of the scan to ``(..., ky, kx)``."""

    @staticmethod
    def of(scan: Scan) -> SnrUnits:
        """Of a 2D scan whose noise is known.

        Raises:
            InputError: if nothing is known about the noise.
        """
        scan.require_noise()
        model = forward_model(scan)
        power = model.maps.abs().square().sum(dim=0).sqrt()
        inverse = torch.where(model.support, 1 / power, torch.zeros_like(power))
        normalised = model.maps * inverse
        adjoint = _adjoint(normalised, model.whitening.to(model.maps), model.mask)
        return SnrUnits(model, normalised, inverse, model.support, adjoint)

    @property
    def gram(self) -> FourierGram:
        """``A^H A`` on ``(..., ky, kx)``."""
        return FourierGram(self.normalised, self.model.mask)


def _adjoint(maps: Tensor, whitening: Tensor, mask: Tensor) -> Callable[[Tensor], Tensor]:
    """``y -> S^H F^H M W y`` for ``(..., coil, ky, kx)``.

    One pass over the coils: whitening is folded into the maps, and of the centred transform's two
    shifts the one in k-space is a phase in the maps and the one in the image follows the sum over
    coils.
    """
    combined = torch.einsum("ab,ayx->byx", whitening.conj(), maps)
    combined = torch.fft.ifftshift(combined, dim=(-2, -1))
    for axis in (-2, -1):
        n = mask.shape[axis]
        place = torch.arange(n, device=maps.device, dtype=maps.real.dtype)
        turn = torch.polar(torch.ones_like(place), 2 * torch.pi * (n // 2) / n * place)
        combined = combined * (turn if axis == -1 else turn[:, None])
    weights = combined.conj().resolve_conj()
    if varying_axes(mask) in ((), (-2,)):
        rows = torch.nonzero(mask[:, 0]).squeeze(1)
        total = mask.shape[0]

        def by_rows(kspace: Tensor) -> Tensor:
            # Lines that were not acquired need no transform along the readout.
            lines = torch.fft.ifft(kspace.index_select(-2, rows), dim=-1, norm="ortho")
            shape = (*lines.shape[:-2], total, lines.shape[-1])
            filled = torch.zeros(shape, dtype=lines.dtype, device=lines.device)
            filled = filled.index_copy(-2, rows, lines)
            images = torch.fft.ifft(filled, dim=-2, norm="ortho")
            return torch.fft.fftshift((weights * images).sum(dim=-3), dim=(-2, -1))

        return by_rows

    def by_points(kspace: Tensor) -> Tensor:
        images = torch.fft.ifftn(kspace * mask, dim=(-2, -1), norm="ortho")
        return torch.fft.fftshift((weights * images).sum(dim=-3), dim=(-2, -1))

    return by_points
