"""White noise to the noise of a scan, and back by the adjoint."""

from __future__ import annotations

import torch
from torch import Tensor

from snrecon.data import NoiseModel, Scan
from snrecon.physics.fourier import fft, ifft
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
        self.root = None if spectrum is None else spectrum.sqrt().to(mask.device)

    @staticmethod
    def of(scan: Scan) -> NoiseColouring:
        """The noise of a (single-slice or 3D) scan.

        Raises:
            InputError: if the noise of the scan is not known.
        """
        return NoiseColouring(scan.require_noise(), scan.sampled)

    def _forward(self, x: Tensor) -> Tensor:
        return self._readout(self._mix(self.mixing, x)) * self.mask

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._mix(self.mixing.mH, self._readout(y * self.mask))

    def _mix(self, matrix: Tensor, data: Tensor) -> Tensor:
        flat = data.flatten(start_dim=data.ndim - self.mask.ndim)
        return (matrix.to(data.dtype) @ flat).reshape(data.shape)

    def _readout(self, data: Tensor) -> Tensor:
        if self.root is None:
            return data
        return fft(ifft(data, (-1,)) * self.root.to(data.real.dtype), (-1,))

    def sample(self, generator: torch.Generator, dtype: torch.dtype | None = None) -> Tensor:
        """One draw of circular Gaussian noise, ``(coil, *grid)``."""
        white = torch.randn(
            self.domain,
            dtype=dtype or self.mixing.dtype,
            generator=generator,
            device=generator.device,
        )
        return self(white.to(self.mask.device))
