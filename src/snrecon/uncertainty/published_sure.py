"""The published form of the risk estimate for undersampled scans.

V. Edupuganti, M. Mardani, S. Vasanawala and J. Pauly, Uncertainty Quantification in Deep MRI
Reconstruction, arXiv:1901.11228 (2019): undersampling is taken for noise. Weighted by the inverse
of the sampling density, the zero-filled image ``x_zf`` is treated as the object plus white noise of
variance ``s^2`` per real component, so that with n real components

    SURE = -n s^2 + |x_hat - x_zf|^2 + 2 s^2 div,    s^2 = |x_hat - x_zf|^2 / n.

With that ``s^2`` the first two terms cancel and what is left is the divergence. The paper's network
maps ``x_zf`` to ``x_hat``; a function of k-space is given the k-space ``A b`` of a perturbation b
of the image. Neither is aliasing noise, nor is the residual its level, so this is biased: by how
much is measured in the benchmarks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from snrecon.errors import InputError
from snrecon.noise.problem import Problem, Progress, probe_generator
from snrecon.physics.density import sampling_density
from snrecon.recon.forward_model import ForwardModel
from snrecon.recon.risk import inner, random_phases
from snrecon.recon.zero_filled import map_power, matched_filter
from snrecon.uncertainty.probing import Plan, probed
from snrecon.uncertainty.risk_estimate import RiskEstimate, RiskPart

STREAM = 42
STATEMENT = (
    "error of the image if aliasing were white noise, whose level is the distance from the "
    "density-compensated zero-filled image; a published heuristic, not an unbiased estimate"
)


def published(
    problem: Problem,
    model: ForwardModel,
    regions: Mapping[str, Tensor],
    plan: Plan,
    seed: int,
    progress: Progress | None,
    facts: dict[str, object],
) -> RiskEstimate:
    """The published estimate, with a divergence over all real components.

    Args:
        problem: Function, scan and noise.
        model: The measurement of which the image is the object.
        regions: Boolean ``(*grid)`` by name; the noise level is that of the whole image.
        plan: Number of probes.
        seed: Of the probes.
        progress: Called with the probes done.
        facts: For the metadata.
    """
    support = model.support
    parts = [support, *(support & region for region in regions.values())]
    for name, part in zip(regions, parts[1:], strict=True):
        if not bool(part.any()):
            raise InputError(f"the region {name!r} has no voxel where any coil map is non-zero.")
    zero_filled = compensated(model, problem.scan.kspace)
    misfit = (problem.image - zero_filled)[None]
    voxels = int(support.sum())
    variance = float(inner(misfit, misfit, support)[0]) / (2 * voxels)
    encoding = model.encoding
    colour = problem.scan.require_noise().cholesky

    def sampler(indices: range) -> Tensor:
        probes = support * torch.stack(
            [random_phases(problem.image, probe_generator(seed, k, STREAM)) for k in indices]
        )
        kspace = torch.einsum("ab,nb...->na...", colour.to(probes), encoding(probes))
        response = problem.linearization.jvp(kspace)
        return torch.stack([inner(probes, response, part) for part in parts], dim=1)

    def gathered(rows: Tensor) -> list[RiskPart]:
        return [_part(rows[:, k], misfit, zero_filled, part, variance)
                for k, part in enumerate(parts)]

    def relative(rows: Tensor) -> float:
        whole = gathered(rows)[0]
        return whole.standard_error / abs(whole.risk) if whole.risk else math.inf

    rows = probed(problem, sampler, plan, relative, progress)
    whole, *others = gathered(rows)
    return RiskEstimate(
        kind="published",
        overall=whole,
        regions=dict(zip(regions, others, strict=True)),
        noise_error=None,
        degrees_of_freedom=float(2 * rows[:, 0].mean()),
        degrees_of_freedom_error=float(2 * rows[:, 0].std()) / math.sqrt(len(rows)),
        components=2 * voxels,
        statement=STATEMENT,
        units=problem.bound.units,
        method=problem.bound.method,
        probes=len(rows),
        passes=len(rows),
        seed=seed,
        frozen=problem.bound.frozen,
        details={**problem.bound.details, **facts, "variance_per_component": variance},
    )


def compensated(model: ForwardModel, kspace: Tensor) -> Tensor:
    """Density-compensated zero-filled image in the units of the object, zero off the support.

    Args:
        model: Of the scan.
        kspace: ``(..., coil, *grid)``.

    Returns:
        ``(..., *grid)``.
    """
    power = map_power(model.maps)
    density = sampling_density(model.mask).to(power.dtype)
    image = matched_filter(model, kspace / density)
    return torch.where(model.support, image / torch.where(model.support, power, 1), 0)


def _part(
    responses: Tensor, misfit: Tensor, zero_filled: Tensor, where: Tensor, variance: float
) -> RiskPart:
    """``-n s^2 + |x_hat - x_zf|^2 + 2 s^2 div`` over some voxels, as means; ``responses`` are the
    ``Re <b, J A b>``, of which twice the mean is the real divergence."""
    elements = int(where.sum())
    residual = float(inner(misfit, misfit, where)[0]) / elements
    power = float(inner(zero_filled[None], zero_filled[None], where)[0]) / elements
    penalty = 2 * variance * float(responses.mean()) / elements
    error = 4 * variance * float(responses.std()) / math.sqrt(len(responses)) / elements
    noise = 2 * variance
    return RiskPart(
        risk=residual + 2 * penalty - noise,
        standard_error=error,
        residual=residual,
        penalty=penalty,
        noise=noise,
        signal=power - noise,
        elements=elements,
    )
