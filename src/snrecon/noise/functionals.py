"""Answers that no map gives, each from one or two Jacobian products.

The noise of any linear functional of the image is the norm of one gradient row; the same row says
where in k-space, and from which coil, that noise comes; one product with it gives the noise
correlation around a voxel.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.noise.derivative import require_derivative
from snrecon.noise.exact import rows
from snrecon.noise.options import weights
from snrecon.noise.problem import Problem, Reconstruction
from snrecon.physics.jacobian import NotDifferentiableError
from snrecon.physics.operators import Encoding


@dataclass(frozen=True, eq=False)
class RegionNoise:
    """A linear functional of the image with its exact (first-order) standard deviation."""

    value: float
    """The functional, e.g. the mean of ``|x|`` over the region, image units."""
    sd: float
    """Its standard deviation over repeated scans, to first order, image units."""
    attribution: Tensor
    """``(coil, *grid)`` real: share of each measured sample in ``sd**2``; sums to 1. Shares of
    correlated coils may be negative."""
    voxels: int
    """Voxels with non-zero weight."""

    @property
    def snr(self) -> float:
        """``|value| / sd``."""
        return abs(self.value) / self.sd if self.sd > 0 else 0.0

    def __repr__(self) -> str:
        return f"RegionNoise({self.value:.6g} +- {self.sd:.3g}, {self.voxels} voxels)"


def roi(recon: Reconstruction, scan: Scan, mask: Tensor) -> RegionNoise:
    """Mean over a region, or any linear functional, with its exact standard deviation: one VJP.

    Args:
        recon: Reconstructor or callable.
        scan: One slice or one 3D grid with known noise.
        mask: Of the image's shape. Boolean: the mean of ``|x|`` over the region. Real: the
            functional ``sum_i w_i |x_i|``. Complex: ``Re sum_i conj(w_i) x_i``.

    Returns:
        Value, standard deviation, and the share of every k-space sample in the variance.

    Raises:
        InputError: if ``mask`` does not fit the image, is empty or holds NaN, or the derivative is
            not that of finite differences.
    """
    return Functional.of(recon, scan, mask).noise()


@dataclass(frozen=True, eq=False)
class Functional:
    """A linear functional of the image, and its gradient with respect to the measured samples."""

    problem: Problem
    weights: Tensor
    """``(*image)``: the functional is ``Re sum_i conj(w_i) x_i``."""
    gradient: Tensor
    """``(coil, *grid)``, 0 where nothing is measured."""

    @staticmethod
    def of(recon: Reconstruction, scan: Scan, mask: Tensor) -> Functional:
        """One VJP; arguments and errors as of :func:`roi`."""
        problem = Problem.of(recon, scan)
        cotangent = _weights(problem, mask)
        _checked(problem, transposed=True)
        gradient = problem.linearization.vjp(cotangent[None])[0] * problem.scan.sampled
        return Functional(problem, cotangent, gradient)

    def variance(self, scale: Tensor | float = 1.0) -> float:
        """Due to noise of the scan times ``scale`` ``(*grid)``, to first order."""
        row = self.problem.colouring.H(self.gradient * scale)
        return float((row.abs().double() ** 2).sum()) / 2

    def noise(self) -> RegionNoise:
        """Its value, standard deviation and attribution."""
        return RegionNoise(
            value=float((self.weights.conj() * self.problem.image).real.double().sum()),
            sd=self.variance() ** 0.5,
            attribution=_shares(self.problem, self.gradient),
            voxels=int((self.weights != 0).sum()),
        )


def attribution(recon: Reconstruction, scan: Scan, mask: Tensor) -> Tensor:
    """Share of every measured sample in the variance of a region's mean, ``(coil, *grid)`` real.

    ``mask`` as for :func:`roi`. Sum over coils and readout for the share of each k-space line, over
    the grid for the share of each coil. Shares add up to 1; with correlated coils they may be
    negative: ``Re(conj(a_c) (Psi a)_c)``. Averaging a line twice lowers the variance by half its
    share (exact for linear f); dropping a line is not predicted by its share.
    """
    return roi(recon, scan, mask).attribution


def psf(recon: Reconstruction, scan: Scan, voxel: tuple[int, ...]) -> Tensor:
    """Noise correlation pattern around a voxel: one VJP and one JVP.

    Args:
        recon: Reconstructor or callable.
        scan: One slice or one 3D grid with known noise.
        voxel: Index into the image.

    Returns:
        ``(*image)`` real: correlation coefficient of the noise of ``|x|`` at every voxel with that
        at ``voxel``, first order, scaled by the noise there: ``Cov(|x_j|, |x_i|) / Var(|x_i|)``;
        1 at the voxel itself.
    """
    problem = Problem.of(recon, scan)
    unit = _unit(problem, voxel)
    _checked(problem, transposed=True)
    row = rows(problem, unit[None])
    variance = (row.abs() ** 2).sum() / 2
    if float(variance) == 0:
        raise InputError(f"voxel {voxel} carries no noise: the image is exactly zero there.")
    response = problem.linearization.jvp(problem.colouring(row))[0] / 2
    along, _ = problem.project(response)
    return along / variance


def local_response(recon: Reconstruction, scan: Scan, voxel: tuple[int, ...]) -> Tensor:
    """How a small true change at a voxel comes through: ``J A (u e_i)``.

    Noise is not accuracy: a method may have low noise because it passes little signal. The value at
    the voxel itself (times ``conj(u)``) is 1 for an unbiased reconstruction.

    Args:
        recon: Reconstructor or callable.
        scan: One slice or one 3D grid with known noise. Maps are the scan's, or those of the
            reconstruction.
        voxel: Index into the image.

    Returns:
        ``(*image)``, of the image's dtype, in units of the change.
    """
    problem = Problem.of(recon, scan)
    unit = _unit(problem, voxel)
    maps = scan.maps
    if maps is None and problem.bound.maps is not None:
        maps = scan.require_noise().unwhiten(problem.bound.maps)
    if maps is None:
        raise InputError("the signal response needs coil maps: give them with the scan.")
    if tuple(unit.shape) != tuple(maps.shape[1:]):
        raise InputError("the signal response needs an image on the grid of the coil maps.")
    _checked(problem, transposed=False)
    change = Encoding(maps, scan.sampled)(unit.to(maps.dtype))
    return problem.linearization.jvp(change[None])[0]


def _checked(problem: Problem, transposed: bool) -> None:
    """InputError where the Jacobian products are not to be trusted."""
    try:
        require_derivative(problem, transposed=transposed)
    except NotDifferentiableError as error:
        raise InputError(f"{problem.scan.source}: {error}.") from error


def _unit(problem: Problem, voxel: tuple[int, ...]) -> Tensor:
    shape = problem.image.shape
    try:
        place = tuple(operator.index(i) for i in voxel)
    except TypeError:
        raise InputError(
            f"voxel must be {len(shape)} whole numbers, an index into the image, not {voxel!r}."
        ) from None
    if len(place) != len(shape) or not all(-n <= i < n for i, n in zip(place, shape, strict=True)):
        raise InputError(f"voxel {place} is not in the image of shape {tuple(shape)}.")
    unit = torch.zeros_like(problem.image)
    unit[place] = problem.direction[place]
    return unit


def _weights(problem: Problem, mask: Tensor) -> Tensor:
    image = problem.image
    mask = weights(mask, image)
    if mask.is_complex():
        return mask.to(image.dtype) if image.is_complex() else mask.real.to(image.dtype)
    if mask.dtype == torch.bool:
        mask = mask / mask.sum()
    return mask.to(image.dtype) * problem.direction


def _shares(problem: Problem, gradient: Tensor) -> Tensor:
    colouring = problem.colouring
    contribution = (gradient.conj() * colouring(colouring.H(gradient))).real.double()
    total = contribution.sum()
    return contribution / total if float(total) > 0 else contribution
