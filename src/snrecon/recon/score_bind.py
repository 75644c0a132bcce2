"""The samplers of the score methods on one scan."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.errors import InputError, SnreconWarning
from snrecon.networks.regularised import sense_image
from snrecon.networks.score import Score
from snrecon.physics.compression import compress
from snrecon.physics.fourier import grid_axes, ifft
from snrecon.physics.safe import safe_root
from snrecon.recon.base import Reconstructor
from snrecon.recon.coil_diffusion import ALGORITHMS, CoilDiffusion
from snrecon.recon.consistency import PublishedSenseStep, SenseStep, asymmetry
from snrecon.recon.forward_model import KSPACE, ForwardModel, forward_model
from snrecon.recon.image_diffusion import FIRST_STEPS, ImageDiffusion
from snrecon.recon.image_scale import bright
from snrecon.recon.score_prior import Prior
from snrecon.recon.score_settings import Settings
from snrecon.recon.score_start import Start, coil_start, image_start
from snrecon.recon.snr_units import SnrUnits

AXES = grid_axes(2)
NOT_REAL = 0.1
"""Share of the energy of paired samples that is not a real image's, from which on there is a
warning."""


@dataclass(frozen=True, eq=False)
class Sampler:
    """A sampler of one scan and what is to be said about it."""

    chain: CoilDiffusion | ImageDiffusion
    units: str
    maps: Tensor | None
    """Whitened maps that set the image's units; None for others."""
    frozen: tuple[str, ...]
    start: Start | None
    details: dict[str, Any]


@dataclass(frozen=True, eq=False)
class VirtualCoils:
    """A scan with fewer, virtual coils."""

    scan: Scan
    matrix: Tensor
    """k-space of the coils as stored to that of the virtual coils, ``(virtual, coil)``."""
    back: Tensor
    """Whitened maps of the virtual coils to those of all coils that say the same of an image,
    ``(coil, virtual)``: columns are orthonormal."""


def compressed(scan: Scan, coils: int, white: bool) -> VirtualCoils:
    """Fewer virtual coils that keep most of the signal.

    Args:
        scan: One slice.
        coils: How many to keep.
        white: Of whitened data, so that what counts is signal over noise; needs the noise. Else of
            the data as stored, whose sum of squares is kept best.

    Raises:
        InputError: for more coils than the scan has.
    """
    noise, maps = scan.noise, scan.maps
    if white:
        noise = scan.require_noise()
        kspace, vectors = compress(noise.whiten(scan.kspace), coils)
        matrix = vectors @ noise.whitening_matrix.to(vectors)
        noise = replace(noise, covariance=torch.eye(coils).to(noise.covariance))
    else:
        kspace, matrix = compress(scan.kspace, coils)
        vectors = matrix
        if noise is not None:
            virtual = matrix.to(noise.covariance)
            before = torch.linalg.inv(noise.whitening_matrix)
            noise = replace(noise, covariance=virtual @ noise.covariance @ virtual.mH)
            vectors = noise.whitening_matrix.to(matrix) @ matrix @ before.to(matrix)
    if maps is not None:
        maps = torch.einsum("vc,c...->v...", matrix.to(maps), maps)
    found = replace(scan, kspace=kspace, maps=maps, noise=noise, repetitions=None)
    return VirtualCoils(found, matrix, vectors.mH)


def bind_image(
    settings: Settings, score: Score, scan: Scan, begin: Reconstructor | None
) -> Sampler:
    """dds on a 2D scan.

    Raises:
        InputError: if the noise of the scan is not known, or the start does not fit.
    """
    units = SnrUnits.of(scan)
    start = None if begin is None else image_start(begin, scan, units)
    chain = ImageDiffusion(
        units, Prior(score, units.normalised, settings.at_once), settings.levels,
        settings.cg_steps, settings.eta, settings.demodulate, settings.scale,
        None if start is None else start.function,
    )
    model = units.model
    details = {"maps": model.maps_source, "cg_steps": settings.cg_steps, "eta": settings.eta,
               "images": 2}
    return Sampler(chain, model.units, model.maps, model.frozen, start, details)


def bind_coils(
    settings: Settings, score: Score, scan: Scan, begin: Reconstructor | None
) -> Sampler:
    """Algorithms 2 to 5 on a 2D scan.

    Raises:
        InputError: for several coils with algorithms 2 and 3, a map with a phase with algorithm 2,
            too few calibration lines for the maps of algorithm 5, or a start that does not fit.
    """
    algorithm, number = ALGORITHMS[settings.algorithm], settings.algorithm
    model, sense = None, None
    if number in ("2", "3"):
        if scan.coils > 1:
            raise InputError(
                f"{scan.source}: algorithm {number} of score is for one coil, but the scan has "
                f"{scan.coils}; use 4 (ssos), 5 (hybrid) or dds."
            )
        model = forward_model(scan)
        combine = _one_coil(model, algorithm.real, scan)
    else:
        combine = _sum_of_squares
        if algorithm.hybrid:
            model = forward_model(scan)
            sense = (PublishedSenseStep if settings.as_published else SenseStep)(model)
    start = None if begin is None else coil_start(begin, scan)
    levels = settings.levels
    chain = CoilDiffusion(
        algorithm, Prior(score, scan.kspace, settings.at_once), levels, settings.corrector_steps,
        settings.snr, settings.as_published, scan.sampled, _scale(settings, scan, model), combine,
        None if start is None else start.function, sense,
        (settings.lambda_start, settings.lambda_end), settings.sense_every,
    )
    details: dict[str, Any] = {
        "corrector_steps": settings.corrector_steps, "snr": settings.snr,
        "as_published": settings.as_published, "images": scan.coils * (1 if algorithm.real else 2),
    }
    if sense is not None:
        details |= {"m": settings.sense_every, "lambda_start": settings.lambda_start,
                    "lambda_end": settings.lambda_end}
    if number not in ("2", "3"):
        details["combine"] = "rss"
    if model is None:
        return Sampler(chain, KSPACE, None, (), start, details)
    details["maps"] = model.maps_source
    one = number in ("2", "3")
    return Sampler(
        chain, model.units if one else KSPACE, model.maps if one else None, model.frozen, start,
        details)


def _one_coil(model: ForwardModel, real: bool, scan: Scan) -> Callable[[Tensor], Tensor]:
    """From the coil's image ``(..., 1, ky, kx)`` to that in the units of the map."""
    power = model.maps.abs().square()
    inverse = torch.where(power > 0, model.maps.conj() / torch.where(power > 0, power, 1), 0)
    inverse = (inverse * model.whitening[0, 0])[0]
    if not real:
        return lambda coils: inverse * coils.squeeze(-3)
    if bool((inverse.imag.abs() > 1e-6 * inverse.abs().max()).any()):
        raise InputError(
            f"{scan.source}: algorithm 2 of score is for a real image, but the coil's map has a "
            "phase; use 3 or dds."
        )
    if asymmetry(scan.kspace, scan.sampled) > NOT_REAL:
        warnings.warn(
            f"{scan.source}: the data are not those of a real image, which algorithm 2 of score "
            "takes them for; use 3 or dds.",
            SnreconWarning,
            stacklevel=4,
        )
    return lambda coils: inverse.real * coils.squeeze(-3)


def _sum_of_squares(coils: Tensor) -> Tensor:
    return safe_root((coils.real.square() + coils.imag.square()).sum(dim=-3))


def _scale(
    settings: Settings, scan: Scan, model: ForwardModel | None
) -> Callable[[Tensor], Tensor]:
    """k-space ``(..., coil, ky, kx)`` to ``(..., 1, 1)``: a given number, or the 99th percentile of
    the brightest coil's magnitude, of coil images from a few steps of SENSE where there are maps of
    several coils, else of the zero-filled ones."""
    if settings.scale is not None:
        fixed = settings.scale
        return lambda kspace: torch.full_like(kspace.real[..., 0, :1, :1], fixed)
    if model is None or scan.coils == 1:
        mask = scan.sampled
        return lambda kspace: bright(ifft(kspace * mask, AXES).abs().amax(dim=-3))
    step = SenseStep(model)

    def scale(kspace: Tensor) -> Tensor:
        first = sense_image(step.gram, step.data(kspace), FIRST_STEPS)
        return bright(step.spread(first).abs().amax(dim=-3))

    return scale
