"""Disturbances of measurements, and symmetries that a reconstruction must follow."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from snrecon.physics.fourier import fft, ifft
from snrecon.training.batch import Batch
from snrecon.training.motion import draw_motion, move_shots, shot_of_line

PHASE = 0.6
"""Largest phase error of a shot, radians, for a motion of one voxel."""


def uniform(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    """One draw."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def add_noise(
    batch: Batch, sigma: tuple[float, float], generator: torch.Generator
) -> tuple[Batch, Tensor]:
    """Measurements with more white noise on their samples, scaled back to noise of SD 1.

    Args:
        batch: Whitened measurements, noise SD 1.
        sigma: Range of the added SD, relative to the root mean square of ``b`` on the support,
            drawn uniformly for every measurement.
        generator: Source of randomness.

    Returns:
        The noisier measurements, and the scale ``(batch, 1, 1)`` that was divided by: multiply
        their images by it.
    """
    size = batch.size
    low, high = sigma
    draw = low + (high - low) * torch.rand(size.shape, generator=generator).to(size)
    added = (draw * size).reshape(-1, 1, 1, 1)
    noise = torch.randn(batch.kspace.shape, generator=generator, dtype=batch.kspace.dtype)
    scale = torch.sqrt(1 + added.square())
    kspace = (batch.kspace + added * noise.to(batch.kspace.device)) / scale
    noisier = replace(batch, kspace=kspace * batch.mask.unsqueeze(1)).with_adjoint()
    return noisier, scale[:, 0]


def disturb_shots(
    batch: Batch, motion: float, shots: int, generator: torch.Generator
) -> Batch:
    """The sampled lines of k-space spread over interleaved shots, each with its own rigid shift and
    phase.

    Args:
        batch: Measurements.
        motion: Largest shift along either axis, voxels; the first shot stays where it is.
        shots: Number of shots.
        generator: Source of randomness.
    """
    moved = []
    for one, mask in zip(batch.kspace, batch.mask, strict=True):
        # Counted are lines that were acquired: of every fourth line, each in turn is another shot.
        acquired = mask.any(dim=-1).cpu()
        order = shot_of_line(len(acquired), shots)[(acquired.cumsum(0) - 1).clamp_min(0)]
        seed = int(torch.randint(2**31, (), generator=generator))
        # No rotation: it would need the samples that were not acquired.
        poses = draw_motion(shots, seed, motion, angle=0.0, phase=PHASE * motion)
        moved.append(move_shots(one, order, poses.relative_to(0)))
    return replace(batch, kspace=torch.stack(moved)).with_adjoint()


@dataclass(frozen=True)
class Symmetry:
    """A circular shift and reflections about voxel 0 of the grid, which map one measurement to
    another exactly: sampled images and k-space both live on a torus."""

    shift: tuple[int, int]
    reflect: tuple[bool, bool]

    def image(self, x: Tensor) -> Tensor:
        """Moves images or maps ``(..., ky, kx)``."""
        return self._reflected(x).roll(self.shift, dims=(-2, -1))

    def samples(self, mask: Tensor) -> Tensor:
        """What becomes of sampled points ``(..., ky, kx)``, counted from the centre: a reflection
        of the image reflects k-space, a shift leaves it where it is."""
        centred = torch.fft.ifftshift(mask, dim=(-2, -1))
        return torch.fft.fftshift(self._reflected(centred), dim=(-2, -1))

    def _reflected(self, x: Tensor) -> Tensor:
        for axis, wanted in zip((-2, -1), self.reflect, strict=True):
            if wanted:
                x = x.flip(axis).roll(1, axis)
        return x


def draw_symmetry(grid: tuple[int, ...], generator: torch.Generator) -> Symmetry:
    """A random symmetry of a grid ``(ky, kx)``; shifts of up to a tenth of the field of view."""
    shift = tuple(round(uniform(generator, -0.1, 0.1) * n) for n in grid)
    reflect = (uniform(generator) < 0.5, uniform(generator) < 0.5)
    return Symmetry((shift[0], shift[1]), reflect)


def move(batch: Batch, symmetry: Symmetry) -> Batch:
    """The measurements of the moved objects with the moved coils."""
    maps = symmetry.image(batch.maps)
    mask = symmetry.samples(batch.mask)
    kspace = fft(symmetry.image(ifft(batch.kspace, (-2, -1))), (-2, -1))
    return replace(batch, kspace=kspace * mask.unsqueeze(1), maps=maps, mask=mask,
                   target=symmetry.image(batch.target)).with_adjoint()
