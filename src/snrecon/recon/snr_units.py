"""What a network that works in SNR units is given of a scan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.physics.folding import folding
from snrecon.physics.gram import FourierGram, LineGram, support_box, varying_axes
from snrecon.physics.operators import LinearOperator
from snrecon.recon.forward_model import ForwardModel, forward_model

MATRIX_LIMIT = 2**22
"""Most elements of the dense matrices of ``A^H A``: larger ones are read from memory, not from a
CPU's cache, and take longer to set up than they save within some ten passes."""
MATRIX_PER_COIL = 16
"""Longest lines, in voxels for each coil: up to there their dense product takes less time than
Fourier transforms of all coils (measured with 4 images at once)."""


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
        # The power of maps that are next to nothing may be nothing.
        inverse = torch.where(power > 0, 1 / power, torch.zeros_like(power))
        normalised = model.maps * inverse
        adjoint = folding(normalised, model.whitening, model.mask)
        return SnrUnits(model, normalised, inverse, model.support, adjoint)

    @property
    def gram(self) -> LinearOperator:
        """``A^H A`` on ``(..., ky, kx)``, in the form in which a handful of images together take
        least time."""
        maps, mask = self.normalised, self.model.mask
        axes = varying_axes(mask)
        if len(axes) == 1:
            box = support_box(maps)
            length = box[axes[0]].stop - box[axes[0]].start
            size = maps[0][box].numel() * length
            if size <= MATRIX_LIMIT and length <= MATRIX_PER_COIL * maps.shape[0]:
                return LineGram(maps, mask, axes[0], box)
        return FourierGram(maps, mask, axes)
