"""What a trained predictor is shown of a scan, and the noise map that it expects.

A prediction is not trusted: it is one more column of the prior that is fitted to the probes
(:mod:`snrecon.noise.crossfit`), and what it is worth the certificate finds out.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from snrecon.errors import InputError
from snrecon.networks.noise_predictor import NoisePredictor
from snrecon.networks.store import load_weights
from snrecon.noise.blur import blur
from snrecon.noise.problem import Problem
from snrecon.noise.surrogate import LineSurrogate
from snrecon.recon.snr_units import SnrUnits

FLOOR = 0.3
"""Added to moduli before their logarithm, in SDs of complex noise."""
FRAME = 1.5
"""SD in voxels of the average whose phase is taken as the image's."""


@dataclass(frozen=True, eq=False)
class Look:
    """A scan and its reconstruction as a predictor sees them."""

    channels: Tensor
    """``(16, ky, kx)``, in units of the noise of the fully sampled image, whatever the units of the
    reconstruction."""
    reference: Tensor
    """Noise variance of a component of a linear reconstruction ``(ky, kx)``, in the units of the
    reconstruction; 0 outside the coil maps."""


def look(problem: Problem, surrogate: LineSurrogate | None) -> Look:
    """Of a problem.

    Args:
        problem: A 2D scan and its reconstruction on the scan's grid.
        surrogate: Its surrogate, if it has one.

    Raises:
        InputError: if the image is not 2D or not on the grid, or there are no coil maps to be had.
    """
    scan, image = problem.scan, problem.image
    if len(scan.grid) != 2 or tuple(image.shape) != scan.grid:
        raise InputError(f"{scan.source}: a noise predictor needs a 2D image on the scan's grid.")
    units = SnrUnits.of(scan)
    inside, inverse = units.support, units.inverse.abs()
    weight = inside.to(inverse.dtype)
    rho = torch.where(inside, 1 / inverse.clamp_min(torch.finfo(inverse.dtype).tiny), 0)
    if surrogate is None:
        linear, power = units.adjoint(scan.kspace), weight / 2
    else:
        linear, power = surrogate(scan.kspace) * rho, surrogate.variance / 2 * rho**2
    # The image may be in any units: as large as the linear one, in SDs of the noise.
    x = image * rho
    size = (x.abs() * linear.abs()).sum() / x.abs().square().sum().clamp_min(1e-30)
    x = x * size
    y = x.to(linear.dtype)
    smooth = torch.complex(blur(y.real, FRAME, weight), blur(y.imag, FRAME, weight))
    frame = torch.where(smooth.abs() > 0, smooth / smooth.abs().clamp_min(1e-30), 1).conj()
    phase = torch.where(y.abs() > 0, y / y.abs().clamp_min(1e-30), 1).conj()
    level = (y.abs().square() * weight).sum() / (y.abs() * weight).sum().clamp_min(1e-30)
    turned, change = y * frame, (linear - y) * frame
    channels = [
        (power + 1e-3).log(), (y.abs() + FLOOR).log(), (change.abs() + FLOOR).log(),
        (level + FLOOR).log() * weight, weight * float(surrogate is not None),
        *(torch.asinh(part / 3) for part in (turned.real, turned.imag, change.real, change.imag)),
        *(part / level.clamp_min(1e-30) for part in (turned.real, turned.imag)),
    ]
    for axis in (-2, -1):
        ahead, behind = y.roll(-1, axis) - y, y.roll(1, axis) - y
        channels += [((ahead.abs() + behind.abs()) / 2 + FLOOR).log(),
                     torch.asinh(((ahead + behind) * phase).real)]
    channels.append((blur(y.abs(), 3.0, weight) + FLOOR).log())
    stacked = torch.stack([c.float() for c in channels]) * weight.float()
    scale = (inverse / size.clamp_min(1e-30)) ** 2
    return Look(stacked, (power * scale * weight).to(problem.image.abs().dtype))


def load_predictor(predictor: str | Path | NoisePredictor) -> NoisePredictor:
    """A shipped predictor by name, one from a ``.safetensors`` file, or the given one.

    Raises:
        InputError: if there is no such file, or it holds something else.
    """
    if isinstance(predictor, NoisePredictor):
        return predictor
    found = load_weights("noise_predictor", predictor)
    assert isinstance(found, NoisePredictor)
    return found


def predicted_variance(
    predictor: NoisePredictor, problem: Problem, surrogate: LineSurrogate | None
) -> Tensor:
    """Variance of the component along the image's phase that the predictor expects, ``(ky, kx)``.

    Raises:
        InputError: as :func:`look`, or if the prediction is not finite.
    """
    seen = look(problem, surrogate)
    device = seen.channels.device
    with torch.no_grad():
        ratio = copy.deepcopy(predictor).to(device).eval()(seen.channels[None])[0].exp()
    if not bool(ratio.isfinite().all()):
        raise InputError(
            "the noise predictor's answer is not finite; leave it out, or train it anew.")
    return seen.reference * ratio.to(seen.reference.dtype)
