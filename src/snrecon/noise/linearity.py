"""Is first order enough? Real reconstructions of noisy data against Jacobian products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.noise.options import chosen
from snrecon.noise.problem import Problem, Reconstruction, probe_generator
from snrecon.noise.replicas import evaluate
from snrecon.physics.jacobian import NotDifferentiableError
from snrecon.physics.precision import full_precision
from snrecon.recon.option_types import number, seed_number, whole_number

STREAM = 4


@dataclass(frozen=True, eq=False)
class Linearity:
    """How far ``f(y + n) - f(y)`` is from ``J n``, measured on pairs ``+n, -n``."""

    residual: Tensor
    """``(*image)`` real: RMS of ``f(y + n) - f(y) - J n`` over RMS of ``J n``, per voxel."""
    overall: float
    """The same over all voxels together."""
    even: float
    """Part of it that is even in n (a shift of the mean), RMS over all voxels."""
    ratio: float
    """Predicted SD of replicas over first-order sigma (root of the ratio of mean squares)."""
    ratio_error: float
    """Standard error of ``ratio``, from the spread over pairs."""
    ratio_complex: float
    """The same of ``sigma_complex``, both components together."""
    ratio_complex_error: float
    draws: int
    """Noise draws, two reconstructions each."""

    def trusted(self, limit: float = 0.2) -> Tensor:
        """Boolean: voxels where the residual is below ``limit``."""
        return self.residual < limit

    def __repr__(self) -> str:
        return (
            f"Linearity(residual {self.overall:.1%}, even part {self.even:.1%}, replicas/first "
            f"order {self.ratio:.4f} +- {self.ratio_error:.4f}, {self.draws} pairs)"
        )


def linearity_check(
    recon: Reconstruction,
    scan: Scan,
    *,
    draws: int = 8,
    seed: int = 0,
    noise_scale: float = 1.0,
    region: Tensor | None = None,
) -> Linearity:
    """Compare the reconstruction of noisier data with its linearisation.

    Args:
        recon: Reconstructor or callable.
        scan: One slice or one 3D grid with known noise.
        draws: Pairs of noise draws; each costs two reconstructions and one JVP.
        seed: Seed of the noise.
        noise_scale: Noise level in units of the scan's own.
        region: Boolean ``(*image)`` over which the overall figures are taken; all by default.

    Returns:
        Residual per voxel and overall. ``ratio`` predicts how much larger the SD of pseudo-replicas
        is than the first-order sigma; sharing the draws makes it far less noisy than two maps.

    Raises:
        InputError: if the reconstruction cannot be differentiated, the region does not fit the
            image or has no noise, or an option is no such number.
    """
    draws, seed = whole_number("draws", draws, least=1), seed_number(seed)
    if not number("noise_scale", noise_scale) > 0:
        raise InputError(f"noise_scale must be positive, not {noise_scale}.")
    problem = Problem.of(recon, scan)
    first: list[Tensor] = []
    odd: list[Tensor] = []
    even: list[Tensor] = []
    with torch.no_grad(), full_precision():
        kspace, image = scan.kspace, problem.image
        everywhere = torch.ones_like(image, dtype=torch.bool)
        inside = everywhere if region is None else chosen(region, image)
        for k in range(draws):
            generator = probe_generator(seed, k, STREAM)
            noise = noise_scale * problem.colouring.sample(generator, kspace.dtype)
            plus, minus = evaluate(problem, torch.stack([kspace + noise, kspace - noise]))
            first.append(_product(problem, noise))
            odd.append((plus - minus) / 2)
            even.append((plus + minus) / 2 - image)
    jn, o, e = torch.stack(first), torch.stack(odd), torch.stack(even)
    # Mean square of f(y + n) - f(y) - J n over +n and -n: odd and even parts do not mix.
    gap = ((o - jn).abs().double() ** 2 + e.abs().double() ** 2).mean(0)
    size = (jn.abs().double() ** 2).mean(0)
    if not bool(size[inside].any()):
        raise InputError(f"{scan.source}: nowhere in the region is there any noise.")
    residual = torch.where(size > 0, (gap / size.clamp_min(1e-300)).sqrt(), 0)
    components = list(zip(*(problem.project(part) for part in (jn, o, e)), strict=True))
    ratio, error = _ratio(components[:1], inside)
    both, both_error = _ratio(components, inside)
    total = size[inside].sum()
    return Linearity(
        residual=residual.to(image.abs().dtype),
        overall=float((gap[inside].sum() / total).sqrt()),
        even=float(((e.abs().double() ** 2).mean(0)[inside].sum() / total).sqrt()),
        ratio=ratio,
        ratio_error=error,
        ratio_complex=both,
        ratio_complex_error=both_error,
        draws=draws,
    )


def _product(problem: Problem, noise: Tensor) -> Tensor:
    try:
        return problem.linearization.jvp(noise[None])[0]
    except NotDifferentiableError as error:
        raise InputError(
            f"{problem.scan.source}: without derivatives there is no first order to check "
            f"({error}); replicas do without it."
        ) from error


def _ratio(
    components: Sequence[tuple[Tensor | None, ...]], inside: Tensor
) -> tuple[float, float]:
    """Root of the mean square over the region of what replicas show over that of first order, and
    its standard error.

    Args:
        components: For each component of the image (None: it has no such one) ``J n`` and the odd
            and even parts, all ``(draw, *image)``.
        inside: The region.
    """
    spread, base = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for first, odd, even in components:
        if first is None or odd is None or even is None:
            continue
        draws = len(even)
        base = _mean_square(first, inside) + base
        spread = _mean_square(odd, inside) + _mean_square(even, inside) + spread
        if draws > 1:
            # The spread of replicas is about their mean: products of distinct draws estimate its
            # square.
            shift = even[:, inside].double()
            square = (shift.sum(0) ** 2 - (shift**2).sum(0)) / (draws * (draws - 1))
            spread = spread - square.mean()
    ratio = float((spread.mean() / base.mean()).clamp_min(0).sqrt())
    if len(base) < 2:
        return ratio, 0.0
    deviations = (spread - base * (spread.mean() / base.mean())) / base.mean()
    return ratio, float(deviations.std()) / len(base) ** 0.5 / (2 * max(ratio, 1e-12))


def _mean_square(values: Tensor, inside: Tensor) -> Tensor:
    """Mean over the region of the square, one number a draw."""
    return (values[:, inside].double() ** 2).mean(1)
