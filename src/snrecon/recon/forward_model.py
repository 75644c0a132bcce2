"""The whitened measurement model of a scan, which every model-based reconstruction shares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.physics.coils import estimate_maps
from snrecon.physics.operators import Encoding

OBJECT = "the object in the scale of the given maps: k-space = F(maps x object)"
NOISE = ("multiples of the noise: complex noise SD 1, 1/sqrt(2) per real component, in the fully "
         "sampled image")
KSPACE = "k-space units (orthonormal Fourier transform)"
"""Units of images, in words."""


@dataclass(frozen=True, eq=False)
class ForwardModel:
    """Whitened data ``L_Psi^-1 y`` follow ``A x`` with ``A = M F S``, ``S = L_Psi^-1 S_raw``."""

    whitening: Tensor
    """``L_Psi^-1``, ``(coil, coil)``; identity when nothing is known about the noise."""
    maps: Tensor
    """Whitened maps ``(coil, *grid)``."""
    mask: Tensor
    """Boolean ``(*grid)``."""
    maps_source: str
    """"given" or how they were estimated."""
    noise_known: bool = True
    """The data were whitened by the noise covariance of the scan."""

    def whiten(self, kspace: Tensor) -> Tensor:
        """``L_Psi^-1 y`` for ``(..., coil, *grid)``."""
        flat = kspace.flatten(start_dim=kspace.ndim - self.mask.ndim)
        return (self.whitening.to(kspace.dtype) @ flat).reshape(kspace.shape)

    @property
    def encoding(self) -> Encoding:
        """``A`` for whitened data."""
        return Encoding(self.maps, self.mask)

    @property
    def support(self) -> Tensor:
        """Boolean ``(*grid)``: where any map is non-zero; elsewhere the image is exactly zero."""
        return (self.maps != 0).any(dim=0)

    @property
    def units(self) -> str:
        """Unit of the image ``x`` that solves ``A x = y``."""
        if self.maps_source == "given":
            return OBJECT
        return NOISE if self.noise_known else KSPACE

    @property
    def matched_filter_units(self) -> str:
        """Unit of ``A^H y``, which is not divided by ``sum |S|^2``."""
        if self.maps_source == "given":
            return f"sum |S|^2 of the whitened maps x {self.units}"
        return self.units

    @property
    def frozen(self) -> tuple[str, ...]:
        """What was estimated from the data and is held fixed."""
        return () if self.maps_source.startswith(("given", "ones")) else ("coil maps",)


def forward_model(scan: Scan) -> ForwardModel:
    """Whiten the scan's coils and maps; estimate maps from its calibration lines if it has none.

    Given maps are used as they are, not renormalised. Estimated maps are normalised to
    ``sum |S|^2 = 1`` in the whitened basis.

    Raises:
        InputError: if maps have to be estimated and the scan has too few calibration lines.
    """
    if scan.noise is None:
        whitening = torch.eye(scan.coils, dtype=scan.kspace.dtype, device=scan.kspace.device)
    else:
        whitening = scan.noise.whitening_matrix
    if scan.maps is not None:
        maps = torch.einsum("ab,b...->a...", whitening.to(scan.maps), scan.maps)
        return ForwardModel(whitening, maps, scan.sampled, "given", scan.noise is not None)
    white = torch.einsum("ab,b...->a...", whitening.to(scan.kspace), scan.kspace)
    maps, source = estimate_maps(white, scan.sampled)
    return ForwardModel(whitening, maps, scan.sampled, source, scan.noise is not None)
