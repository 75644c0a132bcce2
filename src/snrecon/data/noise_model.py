"""The thermal noise of a scan: its covariance between coils and its colour along the readout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from snrecon.errors import InputError


@dataclass(frozen=True, eq=False)
class NoiseModel:
    """Zero-mean circular complex Gaussian noise, independent between phase encodings.

    ``covariance`` is ``Psi = E[n n^H]`` of one k-space sample, so ``E|n_c|^2 = Psi_cc`` and
    real and imaginary part have variance ``Psi_cc / 2`` each. It is the covariance of the data
    as stored: bandwidth and averages are already accounted for.
    """

    covariance: Tensor
    """``(coil, coil)`` complex, Hermitian positive definite, in (k-space units)^2."""
    spectrum: Tensor | None = None
    """``(readout,)`` real, positive, mean 1: relative noise variance at each image position along
    the readout (the power spectrum of noise coloured by the receiver's filter); None is white."""
    source: str = "given"
    """Where it came from: "noise scan", "background", "given", "identity"."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Facts for the user: samples used, bandwidth factor, averages."""

    def __post_init__(self) -> None:
        psi = self.covariance
        if psi.ndim != 2 or psi.shape[0] != psi.shape[1] or psi.shape[0] == 0:
            raise InputError(
                f"the noise covariance must be a (coil, coil) matrix, not {tuple(psi.shape)}."
            )
        if not psi.is_complex():
            psi = psi.to(torch.complex128 if psi.dtype == torch.float64 else torch.complex64)
        if not bool(torch.isfinite(psi).all()):
            raise InputError("the noise covariance contains NaN or infinite values.")
        scale = psi.abs().max()
        if bool((psi - psi.mH).abs().max() > 1e-4 * scale):
            raise InputError("the noise covariance is not Hermitian.")
        psi = (psi + psi.mH) / 2
        _, info = torch.linalg.cholesky_ex(psi.to(torch.complex128))
        if int(info) != 0 or bool(torch.linalg.eigvalsh(psi.to(torch.complex128))[0] <= 0):
            raise InputError(
                "the noise covariance is not positive definite: a coil may be dead or doubled, or "
                "the noise scan too short; give a regular one."
            )
        object.__setattr__(self, "covariance", psi)
        if self.spectrum is not None:
            spectrum = self.spectrum
            if spectrum.ndim != 1 or spectrum.is_complex():
                raise InputError("the noise spectrum must be a real vector over the readout.")
            good = torch.isfinite(spectrum) & (spectrum > 0)
            if not bool(good.all()):
                raise InputError("the noise spectrum must be positive and finite everywhere.")
            real = psi.real.dtype
            # Psi keeps its meaning, E[n n^H] of a sample, only if the spectrum has mean 1.
            spectrum = (spectrum / spectrum.mean()).to(dtype=real, device=psi.device)
            object.__setattr__(self, "spectrum", spectrum)

    @property
    def coils(self) -> int:
        """Number of coils."""
        return int(self.covariance.shape[0])

    @property
    def cholesky(self) -> Tensor:
        """Lower ``L_Psi`` with ``L_Psi L_Psi^H = Psi``, ``(coil, coil)``."""
        return torch.linalg.cholesky(self.covariance.to(torch.complex128)).to(self.covariance.dtype)

    def whiten(self, data: Tensor) -> Tensor:
        """``L_Psi^-1 data`` for k-space or coil maps ``(coil, *grid)``, no batch axes."""
        return torch.einsum("ab,b...->a...", self.whitening_matrix.to(data), data)

    def unwhiten(self, data: Tensor) -> Tensor:
        """``L_Psi data``, the inverse of :meth:`whiten`, ``(coil, *grid)``."""
        return torch.einsum("ab,b...->a...", self.cholesky.to(data), data)

    @property
    def whitening_matrix(self) -> Tensor:
        """``L_Psi^-1``, ``(coil, coil)``."""
        lower = torch.linalg.cholesky(self.covariance.to(torch.complex128))
        eye = torch.eye(self.coils, dtype=lower.dtype, device=lower.device)
        return torch.linalg.solve_triangular(lower, eye, upper=False).to(self.covariance.dtype)

    def scaled(self, factor: float) -> NoiseModel:
        """The noise of data multiplied by ``factor``: its covariance grows by ``factor**2``."""
        return replace(self, covariance=self.covariance * factor**2)

    def correlation(self) -> Tensor:
        """Magnitude of the correlation between coils, ``(coil, coil)`` real in [0, 1]."""
        sd = self.covariance.diagonal().real.sqrt()
        return (self.covariance / (sd[:, None] * sd[None, :])).abs()

    def to(self, target: Any) -> NoiseModel:
        """Move to a device or to the precision of a complex dtype or tensor."""
        return replace(self, covariance=self.covariance.to(target))

