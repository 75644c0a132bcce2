"""Data consistency of samplers that hold images to the data exactly: projections onto the images
whose k-space has the measured values at the measured points."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from snrecon.physics.fourier import fft, grid_axes, ifft
from snrecon.physics.gram import encoding_gram
from snrecon.recon.forward_model import ForwardModel
from snrecon.recon.score_prior import join, split
from snrecon.recon.zero_filled import matched_filter

AXES = grid_axes(2)
Projection = Callable[[Tensor], Tensor]
"""Parts of coil images ``(..., coil, part, ky, kx)`` to parts of consistent ones."""


def complex_projection(kspace: Tensor, mask: Tensor) -> Projection:
    """Onto complex images, coil by coil: ``F^-1[(1 - M) F x + M y]``.

    Args:
        kspace: ``(..., coil, ky, kx)``.
        mask: Boolean ``(ky, kx)``.
    """
    measured = kspace * mask

    def project(parts: Tensor) -> Tensor:
        return split(ifft(fft(join(parts), AXES) * ~mask + measured, AXES))

    return project


def real_projection(kspace: Tensor, mask: Tensor) -> Projection:
    """Onto real images: the nearest real image among those nearest to the data.

    The spectrum of a real image has ``X(-k) = conj(X(k))``, so a sample at k is one at -k as well,
    and a pair that was measured on both sides is held to its mean (noise makes the two differ).
    What is replaced is symmetric then, and the result is real by itself: the real part taken of
    ``F^-1[(1 - M) F x + M y]`` instead halves the correction at every unpaired point.

    Args:
        kspace: ``(..., coil, ky, kx)``.
        mask: Boolean ``(ky, kx)``.
    """
    count = mask.to(kspace.real.dtype)
    count = count + opposite(count)
    sampled = kspace * mask
    measured = (sampled + opposite(sampled).conj()) / count.clamp_min(1)
    free = count == 0

    def project(parts: Tensor) -> Tensor:
        spectrum = fft(parts.squeeze(-3).to(kspace.dtype), AXES)
        return ifft(spectrum * free + measured, AXES).real.unsqueeze(-3)

    return project


def real_part_projection(kspace: Tensor, mask: Tensor) -> Projection:
    """``Re F^-1[(1 - M) F x + M y]``, as published: not a projection, and not consistent."""
    measured = kspace * mask

    def project(parts: Tensor) -> Tensor:
        spectrum = fft(parts.squeeze(-3).to(kspace.dtype), AXES)
        return ifft(spectrum * ~mask + measured, AXES).real.unsqueeze(-3)

    return project


def opposite(x: Tensor) -> Tensor:
    """The value at the opposite point of k-space, centre at ``n // 2``."""
    turned = x.flip(AXES)
    return torch.roll(turned, [1 - n % 2 for n in x.shape[-2:]], AXES)


def asymmetry(kspace: Tensor, mask: Tensor) -> float:
    """How far the data are from those of a real image: energy of ``(y(k) - conj(y(-k))) / 2`` over
    that of the samples, of pairs measured on both sides. 0 for real images, 1 for imaginary ones,
    1/2 for a phase at random; 0 where there are no pairs."""
    paired = mask & opposite(mask)
    samples = kspace * paired
    energy = float(samples.abs().square().sum())
    apart = float((samples - opposite(samples).conj()).abs().square().sum())
    return apart / (4 * energy) if energy > 0 else 0.0


class SenseStep:
    """The SENSE step of the hybrid algorithm, on coil images ``x`` of the coils as stored.

    With whitened maps ``S``, ``sum_c |S_c|^2 = 1``, the whitening W and ``A = M F S``:

        x_hat = sum_c conj(S_c) (W x)_c,    x <- x + lambda W^-1 S A^H (W y - A x_hat).

    Coil images of one object that agrees with the data stay what they are.

    Args:
        model: Of the scan.
    """

    def __init__(self, model: ForwardModel) -> None:
        power = model.maps.abs().square().sum(dim=0)
        there = power > 0
        root = torch.where(there, power, 1).sqrt()
        self.model, self._over_root = model, torch.where(there, 1 / root, 0)
        self.maps = model.maps * self._over_root
        self.gram = encoding_gram(self.maps, model.mask)
        coloured = torch.linalg.solve(model.whitening.to(self.maps), self.maps.flatten(1))
        self._stored = coloured.reshape(self.maps.shape)

    def combined(self, coils: Tensor) -> Tensor:
        """``x_hat`` of coil images ``(..., coil, ky, kx)``, ``(..., ky, kx)``."""
        return (self.maps.conj() * self.model.whiten(coils)).sum(dim=-3)

    def spread(self, image: Tensor) -> Tensor:
        """Coil images ``W^-1 S x``, as stored, of an image ``(..., ky, kx)``."""
        return self._stored * image.unsqueeze(-3)

    def data(self, kspace: Tensor) -> Tensor:
        """``A^H W y`` of k-space ``(..., coil, ky, kx)``."""
        return matched_filter(self.model, kspace) * self._over_root

    def __call__(self, coils: Tensor, data: Tensor, weight: float) -> Tensor:
        """The step with ``lambda = weight``; ``data`` as :meth:`data` gives it."""
        return coils + weight * self.spread(data - self.gram(self.combined(coils)))


class PublishedSenseStep:
    """The SENSE step as published: ``x_c <- x_c + lambda A^H (y - A x)`` with maps times coil
    images, ``(A x)_c = M F S_c x_c``, and the same correction for every coil. It moves coil images
    of an object that agrees with the data.

    Args:
        model: Of the scan; the maps are normalised in the basis of the coils as stored.
    """

    def __init__(self, model: ForwardModel) -> None:
        maps = torch.linalg.solve(model.whitening.to(model.maps), model.maps.flatten(1))
        maps = maps.reshape(model.maps.shape)
        root = maps.abs().square().sum(dim=0).sqrt()
        self.maps = torch.where(root > 0, maps / torch.where(root > 0, root, 1), 0)
        self.mask = model.mask

    def data(self, kspace: Tensor) -> Tensor:
        """``A^H y``, ``(..., ky, kx)``."""
        return (self.maps.conj() * ifft(kspace * self.mask, AXES)).sum(dim=-3)

    def __call__(self, coils: Tensor, data: Tensor, weight: float) -> Tensor:
        """The step with ``lambda = weight``."""
        again = ifft(fft(self.maps * coils, AXES) * self.mask, AXES)
        step = data - (self.maps.conj() * again).sum(dim=-3)
        return coils + weight * step.unsqueeze(-3)
