"""Exact draws of the posterior under a Gaussian prior: a yardstick for other samplers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.physics.operators import LinearOperator
from snrecon.physics.solvers import linear_solve
from snrecon.recon.base import Bound, Reconstructor, seed_of
from snrecon.recon.snr_units import SnrUnits
from snrecon.recon.toy_priors import GaussianPrior


class GaussianPosterior(Reconstructor):
    """Perturb and solve: each image is an independent draw of the exact posterior.

    With the image in SNR units divided by ``scale`` (``u``), ``A`` with normalised maps, noise of
    variance ``gamma^2 = 1 / (2 scale^2)`` per real component, and the prior ``N(m, C)`` of real and
    of imaginary parts: draw ``u0`` from the prior and noise ``n`` as in the data, and solve

        u = u0 + B (B A^H A B + gamma^2)^-1 B A^H (y - n - A u0),   B = C^(1/2).

    ``u`` has the posterior's mean and covariance, whatever y is; no step size, no burn-in, and no
    error but that of the conjugate gradients (Orieux, Feron and Giovannelli, IEEE Signal Process.
    Lett. 19:251, 2012; Papandreou and Yuille 2010). At fixed draws it is affine in the data with
    the same matrix for every seed, so its noise is that of the posterior mean.

    Args:
        prior: Of real images of the scan's grid, in units of ``scale``.
        scale: What 1 in the prior's images is in SNR units.
        iterations: Most iterations of conjugate gradients.
        tolerance: Their relative residual. None: 1e-6 in single, 1e-12 in double precision.

    Raises:
        InputError: for a scale that is not positive, and (when bound) a grid other than the
            prior's, or a scan whose noise is not known.
    """

    name = "gaussian_posterior"

    def __init__(
        self,
        prior: GaussianPrior,
        scale: float = 1.0,
        iterations: int = 1000,
        tolerance: float | None = None,
    ) -> None:
        if not 0 < scale < float("inf"):
            raise InputError(f"the scale must be positive and finite, not {scale}.")
        self.prior, self.scale = prior, float(scale)
        self.iterations, self.tolerance = iterations, tolerance

    def bind(self, scan: Scan, generator: torch.Generator | None = None) -> Bound:
        """k-space ``(..., coil, ky, kx)`` to image ``(..., ky, kx)``."""
        if scan.grid != tuple(self.prior.mean.shape):
            raise InputError(
                f"{scan.source}: the prior is of images {tuple(self.prior.mean.shape)}, but the "
                f"grid is {scan.grid}."
            )
        units = SnrUnits.of(scan)
        seed = seed_of(generator)
        draws = self._draws(units, seed)

        def sample(kspace: Tensor, seeds: Sequence[int]) -> Tensor:
            drawn = [seed_of(torch.Generator().manual_seed(s)) for s in seeds]
            return self._solved(units, kspace, torch.stack([self._draws(units, s) for s in drawn]))

        return Bound(
            lambda kspace: self._solved(units, kspace, draws),
            self.name,
            frozen=units.model.frozen,
            maps=units.model.maps,
            units=units.model.units,
            stochastic=True,
            sample=sample,
            details={"seed": seed, "scale": self.scale, "maps": units.model.maps_source},
        )

    def _draws(self, units: SnrUnits, seed: int) -> Tensor:
        """``u0`` and the matched filter of ``n``, ``(2, ky, kx)``."""
        maps, generator = units.normalised, torch.Generator().manual_seed(seed)
        first = self.prior.draw(1, generator)[0].to(maps)
        noise = torch.randn(maps.shape, dtype=torch.complex128, generator=generator).to(maps)
        unwhitened = units.model.whitening.to(maps).inverse() @ noise.flatten(1)
        return torch.stack([first, units.adjoint(unwhitened.reshape(maps.shape)) / self.scale])

    def _solved(self, units: SnrUnits, kspace: Tensor, draws: Tensor) -> Tensor:
        """Image ``(..., ky, kx)`` of k-space and draws ``(..., 2, ky, kx)``."""
        first, noise = draws.unbind(dim=-3)
        real = units.normalised.real
        root = self.prior.variance.sqrt().to(real)
        operator = _Preconditioned(units.gram, self.prior, root)
        tolerance = self.tolerance
        if tolerance is None:
            tolerance = 1e-6 if real.dtype == torch.float32 else 1e-12
        apart = units.adjoint(kspace) / self.scale - noise - units.gram(first)
        solved = linear_solve(
            operator, self.prior.filtered(apart, root), 0.5 / self.scale**2, self.iterations,
            tolerance,
        )
        return self.scale * units.inverse * (first + self.prior.filtered(solved, root))


class _Preconditioned(LinearOperator):
    """``B G B``."""

    def __init__(self, gram: LinearOperator, prior: GaussianPrior, root: Tensor) -> None:
        self.inner, self.prior, self.root = gram, prior, root
        self.domain = self.range = gram.domain

    def _forward(self, x: Tensor) -> Tensor:
        return self.prior.filtered(self.inner(self.prior.filtered(x, self.root)), self.root)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._forward(y)
