"""Diffusion of one complex image whose data go through coil maps and are noisy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snrecon.networks.regularised import consistent_image, sense_image
from snrecon.recon.coil_diffusion import Progress
from snrecon.recon.draws import NormalDraws
from snrecon.recon.image_scale import bright, smooth_phase
from snrecon.recon.score_prior import Prior, join, split
from snrecon.recon.snr_units import SnrUnits

FIRST_STEPS = 5
"""Conjugate-gradient steps of the first image, which tells scale and phase."""
PRIOR_VARIANCE = 0.1
"""Of a real component of a normalised image around what the prior expects without data: how far
a denoised image is trusted where all is noise."""


@dataclass(frozen=True, eq=False)
class ImageDiffusion:
    """Decomposed diffusion sampling of one scan: denoise, solve, and put noise back, level by level
    (Chung, Lee and Ye, Decomposed diffusion sampler, ICLR 2024; the noise that is put back as in
    Zhu et al., DiffPIR, CVPRW 2023, and Song, Meng and Ermon, DDIM, ICLR 2021).

    The unknown is ``u``, the image in SNR units divided by a scale, so that ``y = A u + n`` with
    noise of variance ``t^2 = 1 / (2 scale^2)`` per real component. At level sigma:

    1. denoise: ``d = x + sigma^2 s(x)``, real and imaginary part apart, after the smooth phase of
       the first image was taken off;
    2. data: the posterior mean of u for ``u ~ N(d, r^2)``, from
       ``(A^H A + t^2/r^2) u = A^H y + (t^2/r^2) d``, by a fixed number of conjugate-gradient steps
       from d. ``1/r^2 = 1/sigma^2 + 1/0.1``: what x leaves open, at most the prior's own spread;
    3. noise of the next level sigma': ``u + sqrt(sigma'^2 - e^2) (x - u)/sigma + e z`` with
       ``e = eta sigma' sqrt(1 - sigma'^2/sigma^2)``.

    The last level ends with step 2. As ``t^2/r^2`` compares thermal noise with what is open, noisy
    data are never reproduced exactly, and precise data nearly so.
    """

    units: SnrUnits
    prior: Prior
    levels: Sequence[float]
    cg_steps: int
    eta: float
    demodulate: bool
    fixed_scale: float | None = None
    """In SNR units; None takes that of the first image."""
    start: Callable[[Tensor], Tensor] | None = None
    """k-space to the image, in SNR units, begun from; None takes the first image."""

    @property
    def evaluations(self) -> int:
        """How often each real image goes through the score."""
        return len(self.levels)

    def first_image(self, kspace: Tensor) -> Tensor:
        """A few steps of SENSE, in SNR units, ``(..., ky, kx)``."""
        return sense_image(self.units.gram, self.units.adjoint(kspace), FIRST_STEPS)

    def scale(self, kspace: Tensor) -> Tensor:
        """What 1 in the prior's images is, ``(..., 1, 1)``."""
        first = self.first_image(kspace)
        if self.fixed_scale is not None:
            return torch.full_like(first.real[..., :1, :1], self.fixed_scale)
        return bright(first.abs())

    def run(self, kspace: Tensor, seeds: Sequence[int], progress: Progress | None = None) -> Tensor:
        """Samples ``(..., seed, ky, kx)`` of k-space ``(..., coil, ky, kx)``, in the units of the
        maps; every item of the batch gets the same draws."""
        units, gram = self.units, self.units.gram
        first = self.first_image(kspace).unsqueeze(-3)
        size = self.scale(kspace).unsqueeze(-3)
        data = units.adjoint(kspace).unsqueeze(-3) / size
        noise = 0.5 / size.square()
        turn = smooth_phase(first) if self.demodulate else torch.ones_like(first)
        back = size * units.inverse
        draws = NormalDraws(seeds, (2, *first.shape[-2:]), first.real)
        begin = first if self.start is None else self.start(kspace).unsqueeze(-3)
        x = begin / size + self.levels[0] * join(draws())
        total = len(self.levels)
        for i, sigma in enumerate(self.levels):
            parts = split(turn.conj() * x)
            u = turn * join(self.prior.denoised(parts, sigma)) * units.support
            weight = noise * (1 / sigma**2 + 1 / PRIOR_VARIANCE)
            u = consistent_image(gram, data, u, weight, self.cg_steps)
            if progress is not None:
                progress(i + 1, total, back * u)
            if i + 1 == total:
                break
            following = self.levels[i + 1]
            fresh = self.eta * following * (1 - (following / sigma) ** 2) ** 0.5
            x = u + (following**2 - fresh**2) ** 0.5 / sigma * (x - u)
            if fresh > 0:
                x = x + fresh * join(draws())
        return back * u
