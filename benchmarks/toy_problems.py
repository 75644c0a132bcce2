"""Small measurements whose posterior is known exactly, and the exact law of Langevin dynamics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.physics.operators import Encoding, dense
from snrecon.recon.langevin_schedule import Schedule
from snrecon.recon.snr_units import SnrUnits
from snrecon.recon.toy_priors import (
    GaussianMixture,
    GaussianPrior,
    MixturePrior,
    Prior,
    as_vectors,
    scan_posterior,
    toy_scan,
)

GRID = (12, 8)
STRIPES = ((0.15, 2), (0.015, 3))
"""Amplitude and periods along ky of what the means of the mixture differ by: strongly where no line
is measured, and a little, so that the data have something to say, where one is."""


@dataclass(frozen=True)
class Problem:
    """A prior, a measurement and its exact posterior."""

    prior: Prior
    scan: Scan
    scale: float
    """What 1 in the prior's images is in the scan's SNR units."""
    law: GaussianMixture
    """In the prior's unit."""


def power_law(grid: tuple[int, int], sd: float = 0.15, level: float = 0.6) -> GaussianPrior:
    """Images ``level * exp(-4 r^2)`` plus a stationary field of SD ``sd`` per voxel, whose power
    falls with the third power of the frequency."""
    y, x = ((torch.arange(n, dtype=torch.float64) - n // 2) / n for n in grid)
    radius = y[:, None] ** 2 + x[None, :] ** 2
    spectrum = (1 + 60 * radius) ** -1.5
    spectrum = sd**2 * spectrum / spectrum.mean()
    return GaussianPrior(level * torch.exp(-4 * radius), spectrum, stationary=True)


def wave(grid: tuple[int, ...], size: float, periods: int) -> Tensor:
    """A cosine along ky, ``(ky, kx)``."""
    y = torch.arange(grid[0], dtype=torch.float64) / grid[0]
    return size * torch.cos(2 * torch.pi * periods * y)[:, None].expand(grid)


def make_prior(name: str, grid: tuple[int, int] = GRID) -> Prior:
    """``"gaussian"``, or ``"mixture"`` of two Gaussians that stripes of opposite sign tell apart,
    with probabilities 0.6 and 0.4."""
    prior = power_law(grid)
    if name == "gaussian":
        return prior
    apart = torch.stack([wave(grid, *one) for one in STRIPES]).sum(0)
    means = (prior.mean - apart, prior.mean + apart)
    return MixturePrior(
        [GaussianPrior(mean, prior.variance, stationary=True) for mean in means], [0.6, 0.4])


def make_problem(
    prior: str,
    gamma: float,
    coils: int,
    grid: tuple[int, int] = GRID,
    complex_image: bool = True,
) -> Problem:
    """Every third line and the three in the centre, noise of SD gamma per real component."""
    lines = torch.arange(grid[0])
    kept = (lines % 3 == 0) | ((lines - grid[0] // 2).abs() <= 1)
    mask = kept[:, None].expand(grid).clone()
    drawn = make_prior(prior, grid)
    scan, scale, _ = toy_scan(drawn, mask, gamma, coils, 5, complex_image)
    return Problem(drawn, scan, scale, scan_posterior(drawn, scan, scale, complex_image))


def chain_law(problem: Problem, schedule: Schedule, denoise: bool) -> GaussianMixture:
    """The exact law of what Langevin dynamics return under a Gaussian prior, in closed form.

    Every step is affine with Gaussian noise: with ``P_k`` the precision at the step,
    ``m <- (1 - a P_k) m + a b_k`` and ``S <- (1 - a P_k) S (1 - a P_k) + 2 a``. Its fixed point is
    mean ``P^-1 b`` and covariance ``P^-1 (1 - a P / 2)^-1``.
    """
    prior, law = problem.prior, problem.law
    assert isinstance(prior, GaussianPrior)
    units = SnrUnits.of(problem.scan)
    matrix = dense(Encoding(units.normalised, units.model.mask))
    gram = matrix.mH @ matrix
    gram = torch.cat([torch.cat([gram.real, -gram.imag], 1), torch.cat([gram.imag, gram.real], 1)])
    data = as_vectors(units.adjoint(problem.scan.kspace) / problem.scale)
    centre = as_vectors(torch.complex(prior.mean, prior.mean))
    covariance = torch.block_diag(prior.covariance(), prior.covariance())
    eye = torch.eye(len(centre), dtype=torch.float64)
    noise = torch.tensor(0.5 / problem.scale**2, dtype=torch.float64)
    mean, spread = torch.zeros_like(law.mean), schedule.sigma_max**2 * eye
    known: dict[float, Tensor] = {}
    for level in schedule:
        a, variance = float(schedule.step_size(level, noise)), float(noise) + level.data_variance
        if level.sigma not in known:
            known = {level.sigma: torch.linalg.inv(covariance + level.sigma**2 * eye)}
        inner = known[level.sigma]
        kept = eye - a * (inner + gram / variance)
        mean = kept @ mean + a * (inner @ centre + data / variance)
        spread = kept @ spread @ kept + 2 * a * eye
    if denoise:
        inner = torch.linalg.inv(covariance + schedule.sigma_min**2 * eye)
        ratio = float(noise) / schedule.sigma_min**2
        held = ratio * torch.linalg.inv(gram + ratio * eye) @ inner * schedule.sigma_min**2
        kept = eye - held
        mean = kept @ mean + held @ centre
        spread = kept @ spread @ kept.T
    return GaussianMixture(torch.ones(1, dtype=torch.float64), mean[None], spread[None])
