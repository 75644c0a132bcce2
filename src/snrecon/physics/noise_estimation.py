"""Noise covariance of a scan: from a noise-only scan, or from the background of its images."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from snrecon.data import NoiseModel
from snrecon.errors import InputError, SnreconWarning
from snrecon.physics.background import (
    ADVICE,
    SMALL,
    background_pixels,
    coil_planes,
    sampled_fraction,
)
from snrecon.physics.calibration import periphery
from snrecon.physics.noise_spectrum import fit_spectrum

__all__ = ["covariance_from_background", "covariance_from_noise_scan"]

PLENTY = 20
"""Samples a coil from which on a covariance understates the SD of optimal combinations by 5 % at
most."""
PERIPHERY_MARGIN = 2.0
"""Largest noise variance from the background, relative to the bound from the edge of k-space."""
LARGEST_PEAK = 3.0
"""Largest value of a spectrum over its mean on a small grid; receivers pass most of the readout."""


def covariance_from_noise_scan(
    noise: Tensor,
    dwell_ratio: float = 1.0,
    averages: float = 1,
    bandwidth_factor: float = 1.0,
) -> NoiseModel:
    """Noise covariance of a scan from noise samples without signal.

    ``Psi = N N^H / samples * dwell_ratio * bandwidth_factor / averages``; no mean is subtracted.
    Kellman and McVeigh, Image reconstruction in SNR units, Magn Reson Med 54:1439 (2005).

    Args:
        noise: ``(coil, samples)`` complex; further axes count as samples.
        dwell_ratio: Dwell time of the noise scan over dwell time of the scan.
        averages: How often the scan was averaged (the mean taken).
        bandwidth_factor: Equivalent noise bandwidth of the receiver over its sampling bandwidth,
            for the scan relative to the noise scan.

    Warns:
        SnreconWarning: if there are so few samples that noise maps understate the noise.

    Raises:
        InputError: for values that are not finite, fewer samples than coils, factors that are not
            positive, or a covariance that is not positive definite.
    """
    if noise.ndim < 2 or not noise.is_complex() or 0 in noise.shape:
        raise InputError(
            f"the noise scan must be a complex array (coil, samples), not {noise.dtype} of shape "
            f"{tuple(noise.shape)}."
        )
    samples = noise.resolve_conj().flatten(1)
    coils, count = samples.shape
    if count < coils:
        raise InputError(
            f"the noise scan has {count} samples for {coils} coils, too few for a covariance; at "
            f"least {coils} are needed, and some thousand for a good one."
        )
    if not bool(torch.isfinite(torch.view_as_real(samples)).all()):
        raise InputError("the noise scan contains NaN or infinite values.")
    factors = {
        "the dwell-time ratio": dwell_ratio,
        "the number of averages": averages,
        "the noise bandwidth factor": bandwidth_factor,
    }
    for name, factor in factors.items():
        if not (math.isfinite(factor) and factor > 0):
            raise InputError(f"{name} of the noise scan must be positive, not {factor}.")
    short = understated(count, coils)
    if count < PLENTY * coils:
        warnings.warn(
            f"the noise scan has {count} samples for {coils} coils: what is combined with a "
            "covariance of so few looks less noisy than it is, by a factor of about "
            f"{short:.2f}, or more; measure at least {PLENTY * coils}.",
            SnreconWarning,
            stacklevel=2,
        )
    precise = samples.to(torch.complex128)
    psi = precise @ precise.mH / count * (dwell_ratio * bandwidth_factor / averages)
    details = {
        "samples": count,
        "dwell_ratio": dwell_ratio,
        "averages": averages,
        "bandwidth_factor": bandwidth_factor,
        "relative_accuracy": count**-0.5,
        "understated": short,
    }
    return NoiseModel(psi.to(noise.dtype), source="noise scan", details=details)


def understated(samples: int, coils: int) -> float:
    """By how much the SD of an optimal combination is understated, on average, if it is computed
    from the sample covariance that was optimised with.

    The sample covariance is complex Wishart. By it, the variance of an optimal combination built
    on it is on average ``(n - C + 1) / n`` of the best there is; in truth it is on average
    ``n / (n - C + 1)`` of that (the mean of an inverse beta variate; Reed, Mallett and Brennan,
    IEEE Trans Aerosp Electron Syst 10:853, 1974).

    Args:
        samples: ``n``, at least as many as coils.
        coils: ``C``.
    """
    return samples / (samples - coils + 1)


def covariance_from_background(
    kspace: Tensor, mask: Tensor, layout: str = "grid"
) -> NoiseModel:
    """Noise covariance of a fully sampled scan from those parts of its images that hold only noise.

    The images are cut into tiles. At every readout position the lowest level that many tiles share
    within their statistical spread is the noise; tiles off it on either side are left out, so that
    the choice does not bias the level, and so are tiles beside signal, positions whose noise is
    correlated between neighbouring rows, and positions with a direction in coil space stronger than
    noise has. Along the readout the noise may be coloured by the receiver's filter: where this is
    significant a smooth spectrum is fitted.

    Args:
        kspace: ``(coil, *grid)``, or ``(slice, coil, ky, kx)`` with ``layout="stack"``.
        mask: Boolean ``(*grid)``, or ``(slice, ky, kx)`` for a stack.
        layout: ``"grid"`` or ``"stack"``.

    Returns:
        Noise model with source ``"background"``; ``details`` holds the number of samples, the
        relative accuracy (one standard deviation) of each variance, the share of the readout with
        background, and what was found about the colour.

    Raises:
        InputError: if the scan is undersampled, its images show no background, or what they show
            has more energy than the edge of k-space, or on a small grid a peaked spectrum.
    """
    fraction = sampled_fraction(mask, layout)
    planes = coil_planes(kspace, layout)
    chosen = background_pixels(planes, fraction)
    coils = planes.shape[1]
    if int(chosen.sum()) * fraction < 10 * coils:
        raise InputError(
            f"the images show no background free of signal in which noise can be measured: {ADVICE}"
        )

    pixels = planes.movedim(1, -1)  # (plane, y, x, coil)
    values = pixels[chosen]
    column = chosen.nonzero()[:, -1]
    columns = planes.shape[-1]
    count = torch.bincount(column, minlength=columns)
    shape = _covariance(values, torch.ones_like(column, dtype=values.real.dtype))
    spectrum, verdict = None, ""
    for _ in range(3):  # covariance and spectrum in turn, each given the other
        energy = _whitened_energy(values, shape)
        per_column = torch.zeros(columns, dtype=energy.dtype, device=energy.device)
        per_column = per_column.index_add(0, column, energy) / count.clamp_min(1)
        spectrum, verdict = fit_spectrum(per_column.cpu(), count.cpu(), fraction * coils)
        if spectrum is None:
            break
        level = spectrum.to(energy)
        shape = _covariance(values, 1 / level[column])
    if spectrum is not None and min(planes.shape[-2:]) < SMALL:
        peak = float(spectrum.max() / spectrum.mean())
        if peak > LARGEST_PEAK:
            raise InputError(
                f"the background of the images seems to hold signal (its energy along the readout "
                f"peaks at {peak:.3g} times the mean), so noise cannot be measured in it: {ADVICE}"
            )
    samples = int(len(values) * fraction)
    psi = shape * (1 if spectrum is None else spectrum.mean().to(shape.real)) / fraction
    _check_against_periphery(psi, kspace, mask, layout)
    details = {
        "samples": samples,
        "relative_accuracy": samples**-0.5,
        "readout_covered": float((count > 0).double().mean()),
        "colour": verdict,
    }
    return NoiseModel(
        psi.to(kspace.dtype), spectrum=spectrum, source="background", details=details
    )


def _check_against_periphery(psi: Tensor, kspace: Tensor, mask: Tensor, layout: str) -> None:
    """Refuse noise that clearly exceeds the samples at the edge of k-space, which contain it."""
    energies = []  # (coil,) of every slice
    if layout == "stack":
        outer = [periphery(grid) for grid in (mask if mask.ndim == 3 else mask[None])]
        for index, part in enumerate(kspace):
            energies.append(part[:, outer[index % len(outer)]])
    else:
        energies.append(kspace[:, periphery(mask)])
    medians = [part.abs().square().median(dim=1).values for part in energies if part.shape[1]]
    if not medians:
        return
    # The energy of a sample is exponentially distributed: its median is log 2 of its mean.
    bounds = torch.stack(medians).median(dim=0).values / math.log(2)
    for coil, (variance, bound) in enumerate(
        zip(psi.diagonal().real.tolist(), bounds.tolist(), strict=True)
    ):
        if 0 < bound * PERIPHERY_MARGIN < variance:  # samples that are zero tell nothing
            raise InputError(
                f"the background of the images seems to hold signal (in coil {coil} its SD is "
                f"{variance**0.5:.3g}, that of the samples at the edge of k-space "
                f"{bound**0.5:.3g}), so noise cannot be measured in it: {ADVICE}"
            )


def _covariance(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of ``z z^H`` over ``(sample, coil)``, double precision."""
    precise = values.to(torch.complex128)
    return torch.einsum("n,na,nb->ab", weight.to(precise), precise, precise.conj()) / len(values)


def _whitened_energy(values: Tensor, covariance: Tensor) -> Tensor:
    """``z^H Psi^-1 z / coils`` for ``(sample, coil)``, mean 1 for noise of that covariance."""
    lower = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(lower, values.to(covariance).mT, upper=False)
    return white.abs().square().mean(0)
