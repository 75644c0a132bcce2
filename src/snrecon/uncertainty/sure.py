"""Stein's unbiased risk estimate: the squared error of an image, from its own noisy data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.noise.derivative import require_derivative
from snrecon.noise.problem import Problem, Progress, Reconstruction, probe_generator
from snrecon.recon.forward_model import ForwardModel
from snrecon.recon.option_types import number, seed_number
from snrecon.recon.risk import (
    CUTOFF,
    PredictionRisk,
    ProjectedRisk,
    Risk,
    inner,
    random_phases,
)
from snrecon.uncertainty.probing import Plan, probed
from snrecon.uncertainty.published_sure import published
from snrecon.uncertainty.regions import Mask, regions_of
from snrecon.uncertainty.risk_estimate import RiskEstimate, RiskPart

Kind = Literal["projected", "prediction", "published"]
KINDS = ("projected", "prediction", "published")
STREAM = 41
CURVATURE_PROBES = 4
"""Probes, of two Jacobian products each, for the error that the noise of the measurement makes."""


def sure(
    recon: Reconstruction,
    scan: Scan,
    *,
    risk: Kind = "projected",
    regions: Mapping[str, Mask] | None = None,
    probes: int = 16,
    tolerance: float | None = None,
    max_probes: int = 256,
    cutoff: float = CUTOFF,
    maps: Tensor | np.ndarray | None = None,
    noise_error: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> RiskEstimate:
    """Estimate the mean squared error of a reconstruction without knowing the truth.

    What can be known depends on the sampling, and is stated in the result:

    - ``"projected"``: of the image, the part that the samples determine
      (:class:`snrecon.recon.risk.ProjectedRisk`); with full sampling the whole image. Unbiased
      overall and in each region.
    - ``"prediction"``: of the noiseless k-space samples
      (:class:`snrecon.recon.risk.PredictionRisk`), in units of the noise variance.
    - ``"published"``: as in the paper (:func:`snrecon.uncertainty.published_sure.published`), with
      the noise level set by the residual; it is not unbiased, and is there for comparison.

    The divergence comes from Jacobian products with random probes, all real components counted.
    Unbiased over repeated measurements with maps and lambda held fixed; a stochastic method is
    taken with the draws that it is bound to.

    Args:
        recon: Reconstructor, or callable together with ``maps``; its image is complex.
        scan: One slice or one 3D grid with known noise.
        risk: Which one.
        regions: Boolean ``(*grid)`` by name: the risk within each, from the same probes. The
            projected image at a voxel is ``P`` of its surroundings, so aliases reach in.
        probes: Jacobian products for the divergence.
        tolerance: Go on in blocks of ``probes`` until the standard error is this small relative to
            the risk.
        max_probes: With ``tolerance``: where to stop all the same.
        cutoff: Of the projected risk: where "measured" ends, relative to the largest map power.
        maps: Coil maps ``(coil, *grid)`` in the basis of ``scan.kspace`` that turn the image into
            k-space, for callables (``scan.maps``, say); reconstructions know theirs.
        noise_error: Also estimate how far the risk is from the actual error of this one image
            (P. Bellec and C.-H. Zhang, Ann. Stat. 49 (2021) 1864), for 8 more products.
        seed: Of the probes.
        progress: Called with the probes done.

    Returns:
        The risk, overall and by region, each with its standard error.

    Raises:
        InputError: if the scan is a stack or its noise is unknown, the image is not one that coil
            maps turn into k-space, or an option or region does not fit.
        NotDifferentiableError: if the Jacobian products of f fail, or are wrong.

    Source: C. Stein, Ann. Stat. 9 (1981) 1135; Y. C. Eldar, IEEE Trans. Signal Process. 57 (2009)
    471; for reconstructions V. Edupuganti et al., arXiv:1901.11228 (2019).
    """
    if risk not in KINDS:
        raise InputError(f"the risk is one of {', '.join(KINDS)}, not {risk!r}.")
    if not 0 < number("the cutoff", cutoff) < 1:
        raise InputError(f"the cutoff must lie between 0 and 1, not {cutoff:g}.")
    plan, seed = Plan(probes, tolerance, max_probes), seed_number(seed)
    problem = Problem.of(recon, scan)
    if not problem.bound.differentiable:  # said before anything long is computed
        raise InputError(
            f"{scan.source}: the risk of {problem.bound.method} cannot be estimated: that needs "
            "its derivative, which it does not have."
        )
    model = _model(problem, maps)
    if risk == "prediction" and regions:
        raise InputError(
            "the prediction risk lives in k-space and has no regions; use risk='projected'."
        )
    where = {name: mask.to(scan.sampled.device)
             for name, mask in regions_of(regions, scan.grid).items()}
    facts = require_derivative(problem, seed)
    if risk == "published":
        return published(problem, model, where, plan, seed, progress, facts)
    target: Risk = PredictionRisk(model)
    if risk == "projected":
        target = ProjectedRisk(model, cutoff)
        facts["cutoff"] = cutoff
    return _estimated(problem, target, where, plan, seed, noise_error, progress, facts)


def _estimated(
    problem: Problem,
    target: Risk,
    regions: Mapping[str, Tensor],
    plan: Plan,
    seed: int,
    noise_error: bool,
    progress: Progress | None,
    facts: dict[str, object],
) -> RiskEstimate:
    parts = [target.counted, *(target.counted & region for region in regions.values())]
    for name, part in zip(regions, parts[1:], strict=True):
        if not bool(part.any()):
            raise InputError(f"the region {name!r} has no voxel where any coil map is non-zero.")
    direct = PredictionRisk(target.model)

    def sampler(indices: range) -> Tensor:
        noise = problem.colouring(_white(problem, seed, indices))
        dx = problem.linearization.jvp(noise)
        seen, response = target.data(noise), target.image(dx)
        columns = [inner(direct.data(noise), direct.image(dx), direct.counted)]
        for part in parts:
            columns += [inner(seen, response, part), inner(seen, seen, part)]
        return torch.stack(columns, dim=1)

    with torch.no_grad():
        shown, data = target.image(problem.image[None]), target.data(problem.scan.kspace[None])
    residuals = [float(inner(shown - data, shown - data, part)[0]) for part in parts]
    powers = [float(inner(data, data, part)[0]) for part in parts]

    def gathered(rows: Tensor) -> list[RiskPart]:
        return [
            part_of(rows[:, 1 + 2 * k], rows[:, 2 + 2 * k], residuals[k], powers[k],
                    int(parts[k].sum()))
            for k in range(len(parts))
        ]  # fmt: skip

    def relative(rows: Tensor) -> float:
        whole = gathered(rows)[0]
        return whole.standard_error / abs(whole.risk) if whole.risk else math.inf

    rows = probed(problem, sampler, plan, relative, progress)
    whole, *others = gathered(rows)
    passes, distance = len(rows), None
    if noise_error:
        used = min(CURVATURE_PROBES, len(rows))
        distance = _distance(problem, target, shown - data, seed, used) / whole.elements
        passes += 2 * used
    freedom = 2 * rows[:, 0]
    return RiskEstimate(
        kind=target.name,
        overall=whole,
        regions=dict(zip(regions, others, strict=True)),
        noise_error=distance,
        degrees_of_freedom=float(freedom.mean()),
        degrees_of_freedom_error=standard_error(freedom),
        components=2 * int(direct.counted.sum()),
        statement=target.statement,
        units="the noise (variance 1 per complex sample)" if target.name == "prediction"
        else problem.bound.units,
        method=problem.bound.method,
        probes=len(rows),
        passes=passes,
        seed=seed,
        frozen=problem.bound.frozen,
        details={**problem.details, **facts},
    )  # fmt: skip


def part_of(
    penalties: Tensor, noises: Tensor, residual: float, power: float, elements: int
) -> RiskPart:
    """Sums over elements, ``penalties`` and ``noises`` for each probe, as means with an error."""
    penalty, noise = float(penalties.mean()), float(noises.mean())
    return RiskPart(
        risk=(residual + 2 * penalty - noise) / elements,
        standard_error=standard_error(2 * penalties - noises) / elements,
        residual=residual / elements,
        penalty=penalty / elements,
        noise=noise / elements,
        signal=(power - noise) / elements,
        elements=elements,
    )


def standard_error(values: Tensor) -> float:
    """Of the mean of independent values ``(n,)``, n at least 2."""
    return float(values.std()) / math.sqrt(len(values))


def _distance(problem: Problem, target: Risk, misfit: Tensor, seed: int, probes: int) -> float:
    """RMS of (estimate - actual squared error) over the noise, sums over all elements.

    With ``K = T L``, ``B = K^H H J L`` and ``S = K^H K`` its mean square is the expectation of
    ``2 |K^H g|^2 + tr_R(B B) - tr_R(S S) / 2`` for the misfit ``g = h - T y``: the second-order
    form of Stein's lemma with the variance 1/2 of a real component. The traces take two Jacobian
    products a probe.
    """

    def pulled(values: Tensor) -> Tensor:
        return problem.colouring.H(target.back(values))

    def fitted(white: Tensor) -> Tensor:
        return pulled(target.image(problem.linearization.jvp(problem.colouring(white))))

    everywhere = torch.ones_like(problem.scan.kspace, dtype=torch.bool)
    with torch.no_grad():
        v = _white(problem, seed, range(probes))
        twice = inner(v, fitted(fitted(v)), everywhere).mean()
        own = pulled(target.data(problem.colouring(v)))
        spread = inner(own, own, everywhere).mean()
        pull = pulled(misfit * target.counted)
        square = 2 * inner(pull, pull, everywhere)[0] + 2 * twice - spread
    return math.sqrt(max(float(square), 0.0))


def _white(problem: Problem, seed: int, indices: range) -> Tensor:
    kspace = problem.scan.kspace
    return torch.stack(
        [random_phases(kspace, probe_generator(seed, k, STREAM)) for k in indices]
    )


def _model(problem: Problem, maps: Tensor | np.ndarray | None) -> ForwardModel:
    """The measurement of which the reconstruction's image is the object."""
    scan, bound = problem.scan, problem.bound
    noise = scan.require_noise()
    if maps is not None:
        if not isinstance(maps, Tensor | np.ndarray):
            raise InputError(f"maps must be a tensor or an array, not {type(maps).__name__}.")
        maps = torch.as_tensor(maps)
        if tuple(maps.shape) != tuple(scan.kspace.shape):
            raise InputError(
                f"maps of shape {tuple(maps.shape)} do not fit k-space of shape "
                f"{tuple(scan.kspace.shape)}."
            )
        white = noise.whiten(maps.to(scan.kspace))
    elif bound.maps is None:
        raise InputError(
            f"the risk of {bound.method} needs the coil maps that turn its image into k-space, and "
            "it has none; give maps= for an image in their units (no root sum of squares)."
        )
    else:
        white = bound.maps.to(scan.kspace)
    image = problem.image
    if not image.is_complex() or tuple(image.shape) != scan.grid:
        kind = "complex" if image.is_complex() else "real"
        raise InputError(
            f"the risk needs a complex image on the grid {scan.grid}, but {bound.method} gives a "
            f"{kind} one of shape {tuple(image.shape)}."
        )
    return ForwardModel(noise.whitening_matrix, white, scan.sampled, "of the image", True)
