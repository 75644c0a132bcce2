"""Samplers whose every expectation is known: each voxel of a fully sampled scan with one coil is a
problem of its own, ``d = ifft(y)`` with noise of variance v per complex voxel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from snrecon.data import NoiseModel, Scan
from snrecon.physics.fourier import fft, ifft
from snrecon.recon.base import Bound, Reconstructor, seed_of

AXES = (-2, -1)


def flat_scan(image: Tensor, variance: float) -> Scan:
    """A noiseless scan of ``image`` (complex128 ``(ky, kx)``) by one coil of sensitivity 1, whose
    repetitions would have complex noise of this variance in each sample and each voxel."""
    covariance = torch.tensor([[variance]], dtype=torch.complex128)
    kspace = fft(image, AXES).unsqueeze(0)
    mask = torch.ones(image.shape, dtype=torch.bool)
    return Scan(kspace, mask, torch.ones_like(kspace), NoiseModel(covariance))


@dataclass
class Gaussian(Reconstructor):
    """``x = K d + sqrt(C) z``, z circular with ``E|z|^2 = 1``: the exact posterior for the prior
    ``N(0, prior)`` and noise of variance ``noise``; K = prior/(prior + noise), C = K noise.

    With ``jitter`` K is multiplied by ``1 + jitter g``, g a standard normal number of each voxel
    and draw: no posterior, but seeds then answer differently to noise.
    """

    prior: float = 1.0
    noise: float = 0.5
    fast: bool = False
    jitter: float = 0.0
    name = "gaussian"

    @property
    def gain(self) -> float:
        return self.prior / (self.prior + self.noise)

    def bind(self, scan: Scan, generator: torch.Generator | None = None) -> Bound:
        def drawn(seed: int) -> tuple[Tensor, Tensor]:
            own = torch.Generator().manual_seed(seed)
            z = torch.randn(scan.grid, dtype=scan.kspace.dtype, generator=own)
            g = torch.randn(scan.grid, dtype=scan.kspace.real.dtype, generator=own)
            return self.gain * (1 + self.jitter * g), (self.gain * self.noise) ** 0.5 * z

        def function(kspace: Tensor) -> Tensor:
            return own[0] * ifft(kspace, AXES).squeeze(-3) + own[1]

        def sample(kspace: Tensor, seeds: list[int]) -> Tensor:
            each = [drawn(seed_of(torch.Generator().manual_seed(s))) for s in seeds]
            gains, noises = (torch.stack(part) for part in zip(*each))
            return gains * ifft(kspace, AXES).squeeze(-3) + noises

        own = drawn(seed_of(generator))
        return Bound(function, self.name, stochastic=True, sample=sample if self.fast else None,
                     units="object", details={"gain": self.gain})


@dataclass
class Mixture(Reconstructor):
    """A real object with the prior ``(N(-centre, width^2) + N(centre, width^2)) / 2`` in each
    voxel, seen in noise of variance ``noise`` (real), times a constant phase.

    ``transport``: x is the inverse of the posterior's distribution function at a uniform z, a
    smooth function of the data. Otherwise a component is drawn by comparing one uniform number with
    its posterior weight, then x from it: the same distribution, discontinuous in the data.
    """

    centre: float = 1.0
    width: float = 0.4
    noise: float = 1.0
    transport: bool = True
    phase: float = 0.7
    name = "mixture"

    @property
    def gain(self) -> float:
        return self.width**2 / (self.width**2 + self.noise)

    @property
    def spread(self) -> float:
        """SD of either component of the posterior."""
        return (self.gain * self.noise) ** 0.5

    def weight(self, d: Tensor) -> Tensor:
        """Posterior weight of the upper component."""
        return torch.sigmoid(2 * self.centre * d / (self.width**2 + self.noise))

    def means(self, d: Tensor) -> tuple[Tensor, Tensor]:
        """Of the lower and the upper component."""
        pull = self.gain * d
        return pull - (1 - self.gain) * self.centre, pull + (1 - self.gain) * self.centre

    def moments(self, d: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and variance of the real object."""
        w, (low, high) = self.weight(d), self.means(d)
        mean = w * high + (1 - w) * low
        return mean, self.spread**2 + w * (1 - w) * (high - low) ** 2

    def distribution(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior distribution function and density."""
        w, ends = self.weight(d), self.means(d)
        u = [(x - mean) / self.spread for mean in ends]
        density = [torch.exp(-(one**2) / 2) / (self.spread * math.sqrt(2 * math.pi)) for one in u]
        below = [torch.special.ndtr(one) for one in u]
        return (1 - w) * below[0] + w * below[1], (1 - w) * density[0] + w * density[1]

    def transported(self, d: Tensor, z: Tensor) -> Tensor:
        """The z-quantile: found by bisection, then Newton steps, which carry the derivative."""
        still = d.detach() + 0 * z
        low, high = torch.full_like(still, -8.0), torch.full_like(still, 8.0)
        for _ in range(16):
            x = (low + high) / 2
            below = self.distribution(x, still)[0] < z
            low, high = torch.where(below, x, low), torch.where(below, high, x)
        for _ in range(2):
            value, density = self.distribution(x, d)
            x = x - (value - z) / density
        return x

    def drawn(self, d: Tensor, z: Tensor, normal: Tensor) -> Tensor:
        """One sample for data d, ``(..., ky, kx)``, z and normal ``(ky, kx)``."""
        if self.transport:
            return self.transported(d, z)
        low, high = self.means(d)
        return torch.where(z < self.weight(d), high, low) + self.spread * normal

    def bind(self, scan: Scan, generator: torch.Generator | None = None) -> Bound:
        turn = complex(math.cos(self.phase), math.sin(self.phase))

        def numbers(seed: int) -> tuple[Tensor, Tensor]:
            own = torch.Generator().manual_seed(seed)
            z = 1e-6 + (1 - 2e-6) * torch.rand(scan.grid, dtype=torch.float64, generator=own)
            return z, torch.randn(scan.grid, dtype=torch.float64, generator=own)

        def measured(kspace: Tensor) -> Tensor:
            return (ifft(kspace, AXES).squeeze(-3) * turn.conjugate()).real

        def function(kspace: Tensor) -> Tensor:
            return self.drawn(measured(kspace), *own) * turn

        def sample(kspace: Tensor, seeds: list[int]) -> Tensor:
            each = [numbers(seed_of(torch.Generator().manual_seed(seed))) for seed in seeds]
            z, normal = (torch.stack(part) for part in zip(*each))
            return self.drawn(measured(kspace), z, normal) * turn

        own = numbers(seed_of(generator))
        return Bound(function, self.name, stochastic=True, sample=sample, units="object")


def mixture_scan(value: float, mixture: Mixture, variance: float, size: int = 16) -> Scan:
    """Every voxel measured as ``value`` (before the phase), real noise ``variance`` per voxel along
    the phase and as much across."""
    turn = complex(math.cos(mixture.phase), math.sin(mixture.phase))
    image = torch.full((size, size), value * turn, dtype=torch.complex128)
    return flat_scan(image, 2 * variance)


def without_noise(scan: Scan) -> Scan:
    """The same scan, its noise unknown."""
    return replace(scan, noise=None)
