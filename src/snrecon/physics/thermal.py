"""White noise to the noise of a scan, and back by the adjoint."""

from __future__ import annotations

import torch
from torch import Tensor

from snrecon.data import NoiseModel, Scan
from snrecon.physics.operators import LinearOperator


class NoiseColouring(LinearOperator):
    """``n = M C L_Psi w``: white ``w``, ``E[w w^H] = I``, to thermal noise of a scan.

    ``L_Psi`` mixes the coils, ``C`` colours along the readout by the root of the noise spectrum,
    ``M`` puts noise on sampled points only. Domain and range are ``(coil, *grid)``.
    """

    def __init__(self, noise: NoiseModel, mask: Tensor) -> None:
        self.mask = mask
        self.domain = self.range = (noise.coils, *mask.shape)
        self.mixing = noise.cholesky.to(mask.device)
        spectrum = noise.spectrum
        # The readout's two shifts to the centre cancel around a product in the image domain.
        self.root = (
            None if spectrum is None else torch.fft.ifftshift(spectrum.sqrt().to(mask.device)))
        whole = bool((mask == mask[..., :1]).all())
        lines = mask[..., 0].flatten().nonzero().squeeze(1) if whole else None
        self.lines = lines if lines is not None and len(lines) < mask[..., 0].numel() else None
        """Sampled lines, where only whole ones are: nothing needs to be done for the others."""

    @staticmethod
    def of(scan: Scan) -> NoiseColouring:
        """The noise of a (single-slice or 3D) scan.

        Raises:
            InputError: if the noise of the scan is not known.
        """
        return NoiseColouring(scan.require_noise(), scan.sampled)

    def _forward(self, x: Tensor) -> Tensor:
        if self.lines is None:
            return self._coloured(self.mixing, x) * self.mask
        return self._by_lines(self.mixing, x, self.lines)

    def _adjoint(self, y: Tensor) -> Tensor:
        if self.lines is None:
            return self._coloured(self.mixing.mH, y * self.mask)
        return self._by_lines(self.mixing.mH, y, self.lines)

    def _by_lines(self, matrix: Tensor, data: Tensor, lines: Tensor) -> Tensor:
        flat = data.flatten(start_dim=data.ndim - self.mask.ndim, end_dim=-2)
        coloured = self._coloured(matrix, flat.index_select(-2, lines), axes=2)
        filled = torch.zeros(flat.shape, dtype=data.dtype, device=data.device)
        return filled.index_copy(-2, lines, coloured).reshape(data.shape)

    def _coloured(self, matrix: Tensor, data: Tensor, axes: int | None = None) -> Tensor:
        """Coils mixed and the readout coloured, of ``(..., coil, *lines, kx)``."""
        flat = data.flatten(start_dim=data.ndim - (axes or self.mask.ndim))
        mixed = (matrix.to(data.dtype) @ flat).reshape(data.shape)
        if self.root is None:
            return mixed
        return torch.fft.fft(torch.fft.ifft(mixed, dim=-1) * self.root.to(mixed.real.dtype), dim=-1)

    def sample(self, generator: torch.Generator, dtype: torch.dtype | None = None) -> Tensor:
        """One draw of circular Gaussian noise, ``(coil, *grid)``."""
        white = torch.randn(
            self.domain,
            dtype=dtype or self.mixing.dtype,
            generator=generator,
            device=generator.device,
        )
        return self(white.to(self.mask.device))
