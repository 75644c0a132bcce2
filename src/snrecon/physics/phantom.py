"""A brain-like multi-coil scan from formulas alone: nothing to download, the same on every machine.

The head is a function of position, drawn from a seed before any grid is chosen, so the same seed is
the same head at every matrix size. Intensities are those of a T1-weighted image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from snrecon.data import Geometry, NoiseModel, Scan
from snrecon.errors import InputError
from snrecon.physics.fourier import fft, grid_axes
from snrecon.physics.thermal import NoiseColouring

FIELD_OF_VIEW = 0.22
"""Edge of the simulated field of view, metres."""

WHITE, GREY, DEEP_GREY, FLUID, BONE, SCALP = 1.0, 0.68, 0.8, 0.2, 0.04, 1.1
"""Intensities of white and grey matter, deep nuclei, cerebrospinal fluid, bone and scalp fat."""


def brain_phantom(
    shape: tuple[int, ...], generator: torch.Generator, supersampling: int = 3
) -> Tensor:
    """Complex image of a head with smooth phase.

    Scalp, skull, fluid, a folded cortex with sulci, white matter, ventricles, deep nuclei and the
    fissure between the hemispheres; peak magnitude about 1.1.

    Args:
        shape: ``(ky, kx)`` or ``(kz, ky, kx)``; nose towards small ky.
        generator: Source of the folding pattern, the shading and the phase; the draws do not
            depend on ``shape``.
        supersampling: Points per voxel edge in the plane that are averaged, so that edges are
            partial volumes.

    Returns:
        complex64 ``shape``.
    """
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise InputError(f"a phantom has a shape (ky, kx) or (kz, ky, kx), not {tuple(shape)}.")
    folds = _RandomField.draw(generator, wavelength=0.24, waves=24)
    cortex = _RandomField.draw(generator, wavelength=0.5, waves=12)
    shading = _RandomField.draw(generator, wavelength=1.6, waves=8)
    phase = _RandomField.draw(generator, wavelength=2.5, waves=8)
    fine = tuple(n * (supersampling if i >= len(shape) - 2 else 1) for i, n in enumerate(shape))
    z, y, x = _coordinates(fine)
    edge = 2.0 / max(fine[-2:])  # transition of one fine point
    tissue = _head(z, y, x, edge, folds, cortex)
    tissue = tissue * (1 + 0.04 * shading(z, y, x))
    image = torch.polar(tissue, 0.9 * phase(z, y, x) + 0.6 * y - 0.3 * x)
    if supersampling > 1:
        s = supersampling
        blocks = image.reshape(*shape[:-2], shape[-2], s, shape[-1], s)
        image = blocks.mean(dim=(-3, -1))
    return image.to(torch.complex64)


@dataclass(frozen=True)
class _RandomField:
    """A smooth random function of position with about unit variance: a sum of plane waves."""

    waves: Tensor
    """``(wave, 3)`` wave vectors along (z, y, x), radians per half field of view."""
    phases: Tensor
    """``(wave,)``."""

    @staticmethod
    def draw(generator: torch.Generator, wavelength: float, waves: int) -> _RandomField:
        angle = 2 * math.pi * _uniform(waves, generator)
        tilt = 0.5 * _normal(waves, generator)
        size = 2 * math.pi / wavelength * (0.75 + 0.5 * _uniform(waves, generator))
        vectors = torch.stack([tilt * size, size * angle.sin(), size * angle.cos()], dim=1)
        return _RandomField(vectors, 2 * math.pi * _uniform(waves, generator))

    def __call__(self, z: Tensor, y: Tensor, x: Tensor) -> Tensor:
        total = torch.zeros_like(z + y + x)
        for (kz, ky, kx), phase in zip(self.waves.tolist(), self.phases.tolist(), strict=True):
            total = total + torch.cos(kz * z + ky * y + kx * x + phase)
        return total * math.sqrt(2 / len(self.phases))


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, dtype=torch.float64)


def _normal(count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, generator=generator, dtype=torch.float64)


def _coordinates(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Positions along (z, y, x) that broadcast to ``shape``; the field of view is [-1, 1)."""
    lines = [(torch.arange(n, dtype=torch.float64) + 0.5) / n * 2 - 1 for n in shape]
    axes = [
        line.reshape([-1 if i == j else 1 for j in range(len(shape))])
        for i, line in enumerate(lines)
    ]
    z = axes[0] * 0.9 if len(shape) == 3 else torch.zeros(1, 1, dtype=torch.float64)
    return z, axes[-2], axes[-1]


def _ellipse(y: Tensor, x: Tensor, cy: float, cx: float, ry: float, rx: float) -> Tensor:
    """About the signed distance to an ellipse, positive inside."""
    radius = torch.sqrt(((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 + 1e-12)
    return (1 - radius) * min(ry, rx)


def _head(
    z: Tensor, y: Tensor, x: Tensor, edge: float, folds: _RandomField, cortex: _RandomField
) -> Tensor:
    """Magnitude of the head at the given positions."""

    def inside(distance: Tensor) -> Tensor:
        return torch.sigmoid(4 * distance / edge)

    # Upper slices are smaller; the plane z = 0 goes through the ventricles.
    size = torch.sqrt(torch.clamp(1 - z**2, min=0.02))
    y, x = y / size, x / size
    # Narrower at the front, as heads are.
    x = x * (1 - 0.12 * y)
    scalp = _ellipse(y, x, 0.0, 0.0, 0.90, 0.74)
    skull = scalp - 0.045
    dura = scalp - 0.105
    depth = scalp - 0.12
    # Sulci run along the zero lines of a random field; they reach in from the surface and fade.
    # The grey matter lines them, so its inner border follows the same lines, wider and deeper.
    level = folds(z, y, x)
    fade = torch.exp(-((depth / 0.25) ** 2))
    thickness = 0.052 + 0.008 * cortex(z, y, x)
    pial = depth - 0.19 * torch.exp(-((level / 0.16) ** 2)) * fade
    border = depth - thickness - 0.24 * torch.exp(-((level / 0.62) ** 2)) * fade
    # The fissure between the hemispheres is open in front and behind.
    open_ends = torch.exp(-((depth / 0.28) ** 4))
    pial = pial - 0.4 * torch.exp(-((x / 0.016) ** 2)) * open_ends
    border = border - 0.45 * torch.exp(-((x / 0.06) ** 2)) * open_ends
    # Lateral ventricles: a horn on either side of the midline, parting to the front and back.
    along = (y + 0.02) / 0.29
    width = 0.052 * torch.sqrt(torch.clamp(1 - along**2, min=0)) * (1 - 0.25 * along)
    ventricles = width - (x.abs() - 0.062 - 0.10 * along**2).abs() - 0.02 * (along**2 > 1)
    third = _ellipse(y, x, 0.10, 0.0, 0.10, 0.018)
    nuclei = [
        _ellipse(y, x.abs(), -0.14, 0.175, 0.11, 0.045),  # caudate
        _ellipse(y, x.abs(), 0.14, 0.115, 0.12, 0.075),  # thalamus
        _ellipse(y + 0.5 * (x.abs() - 0.31), x.abs(), 0.0, 0.31, 0.19, 0.06),  # putamen
    ]
    layers = [
        (scalp, SCALP),
        (skull, BONE),
        (dura, FLUID),
        (pial, GREY),
        (border, WHITE),
        *((nucleus, DEEP_GREY) for nucleus in nuclei),
        (ventricles, FLUID),
        (third, FLUID),
    ]
    image = torch.zeros_like(scalp + z)
    for distance, value in layers:
        share = inside(distance)
        image = image * (1 - share) + value * share
    return image


def coil_maps(coils: int, shape: tuple[int, ...]) -> Tensor:
    """Receive sensitivities of loops on a cylinder around the head, ``(coil, *shape)`` complex64.

    In the plane each loop is a pair of long straight wires with opposite currents, whose rotating
    field is ``1/(r - a) - 1/(r - b)`` in complex coordinates (Biot-Savart); along z the loops are
    staggered in two rings with a Lorentzian profile. Scaled so that the root sum of squares is 1
    in the centre of the head.
    """
    if coils < 1:
        raise InputError(f"a simulated scan needs at least one coil, not {coils}.")
    z, y, x = _coordinates(shape)
    position = torch.complex(x + 0 * y, y + 0 * x)
    half = min(1.0, 2.2 / coils)  # half the opening angle of a loop; neighbours overlap slightly
    maps = []
    for coil in range(coils):
        angle = 2 * math.pi * (coil + 0.5) / coils
        a = 1.15 * complex(math.cos(angle - half), math.sin(angle - half))
        b = 1.15 * complex(math.cos(angle + half), math.sin(angle + half))
        field = 1 / (position - a) - 1 / (position - b)
        ring = 0.4 if coil % 2 else -0.4
        maps.append(field / (1 + (z - ring) ** 2))
    stacked = torch.stack([m.expand(shape) for m in maps])
    centre = stacked
    for n in shape:
        centre = centre.select(1, n // 2)
    scale = torch.linalg.vector_norm(centre)
    return (stacked / scale).to(torch.complex64)


def noise_covariance(coils: int, generator: torch.Generator, level: float = 1.0) -> NoiseModel:
    """A covariance as of a real array: unequal gains, complex coupling that falls with distance.

    Args:
        coils: Number of coils on a ring.
        generator: Source of gains and coupling phases.
        level: Root of the mean variance ``E|n_c|^2`` of a k-space sample.
    """
    gains = 1 + 0.15 * _normal(coils, generator)
    phases = torch.polar(torch.ones(coils, dtype=torch.float64), _normal(coils, generator))
    index = torch.arange(coils)
    distance = (index[:, None] - index[None, :]).abs()
    distance = torch.minimum(distance, coils - distance).double()
    # 0.35^distance on a ring is a positive definite correlation; phases keep it so.
    mix = phases * gains.abs().clamp(min=0.3)
    psi = 0.35**distance * mix[:, None] * mix[None, :].conj()
    psi = psi * (level**2 / psi.diagonal().real.mean())
    return NoiseModel(psi.to(torch.complex64), source="given")


def simulate_scan(
    shape: tuple[int, ...] = (160, 160),
    coils: int = 8,
    acceleration: float = 4.0,
    calibration: int | None = 20,
    mask: str = "poisson1d",
    snr: float = 40.0,
    seed: int = 0,
    with_maps: bool = False,
) -> Scan:
    """A noisy undersampled scan of the phantom.

    Args:
        shape: ``(ky, kx)`` or ``(kz, ky, kx)``.
        coils: Number of coils.
        acceleration: Nominal acceleration; 1 is fully sampled.
        calibration: Fully sampled lines in the centre of k-space.
        mask: Kind of mask, as in :func:`snrecon.physics.masks.make_mask`.
        snr: About the SNR of white matter in the centre, were the scan fully sampled.
        seed: Of head, mask, covariance and noise.
        with_maps: Put the true coil maps into the scan; else they are estimated from the
            calibration lines, as for a measured scan.
    """
    generator = torch.Generator().manual_seed(seed)
    image = brain_phantom(shape, generator)
    maps = coil_maps(coils, shape)
    # sum |S|^2 = 1 in the centre: white noise of level s gives sigma = s / sqrt(2) there.
    noise = noise_covariance(coils, generator, level=math.sqrt(2) * WHITE / snr)
    kspace = fft(maps * image, grid_axes(len(shape)))
    if acceleration > 1:
        from snrecon.physics.masks import make_mask

        sampled = make_mask(mask, shape, acceleration, calibration, seed).tensor
    else:
        sampled = torch.ones(shape, dtype=torch.bool)
    measured = kspace * sampled + NoiseColouring(noise, sampled).sample(generator, kspace.dtype)
    return Scan(
        kspace=measured,
        mask=sampled,
        maps=maps if with_maps else None,
        noise=noise,
        geometry=_geometry(shape),
        source="simulated brain",
        attributes={"seed": seed, "nominal_acceleration": acceleration},
    )


def _geometry(shape: tuple[int, ...]) -> Geometry:
    along_slice = 5e-3 if len(shape) == 2 else FIELD_OF_VIEW / shape[0]
    return Geometry((along_slice, FIELD_OF_VIEW / shape[-2], FIELD_OF_VIEW / shape[-1]))
