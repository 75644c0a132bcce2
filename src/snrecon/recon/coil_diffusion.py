"""The published score-MRI samplers: predictor and corrector on every coil image, with measured
samples put back after each half-step.

Chung and Ye, Score-based diffusion models for accelerated MRI, Med Image Anal 80:102479 (2022),
algorithms 2 to 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from snrecon.recon.consistency import (
    Projection,
    PublishedSenseStep,
    SenseStep,
    complex_projection,
    real_part_projection,
    real_projection,
)
from snrecon.recon.diffusion import langevin_step, reverse_step
from snrecon.recon.draws import NormalDraws
from snrecon.recon.score_prior import Prior, join, split

Progress = Callable[[int, int, Tensor], None]
"""``progress(step, steps, image)``."""
PUBLISHED_TOTAL = 2000
"""Steps over which the published weight of the SENSE step falls, however many are made."""


@dataclass(frozen=True)
class Algorithm:
    """What sets the four algorithms apart."""

    steps: int
    """Published number of noise levels."""
    corrector_first: bool
    """Corrector, then predictor; else the other way round."""
    real: bool = False
    """The image is real."""
    hybrid: bool = False
    """A SENSE step from time to time."""


ALGORITHMS = {
    "2": Algorithm(2000, corrector_first=True, real=True),
    "3": Algorithm(2000, corrector_first=True),
    "4": Algorithm(500, corrector_first=False),
    "5": Algorithm(500, corrector_first=False, hybrid=True),
}


@dataclass(frozen=True, eq=False)
class CoilDiffusion:
    """One of the algorithms on one scan.

    From noise of SD ``levels[0]`` that agrees with the data, for every level sigma_i:

    - algorithms 2 and 3: corrector steps at sigma_i, predictor to sigma_(i+1);
    - algorithms 4 and 5: predictor to sigma_(i+1), corrector steps at sigma_(i+1), the level that
      the image is at then; in algorithm 5 every ``every`` levels a SENSE step,

    each followed by the projection onto the data. The last predictor leads to level 0 and adds no
    noise: it returns the denoised image, which is projected once more.
    """

    algorithm: Algorithm
    prior: Prior
    levels: Sequence[float]
    corrector_steps: int
    snr: float
    published: bool
    """Work as the published code does; see :class:`snrecon.recon.score.Score`."""
    mask: Tensor
    """Boolean ``(ky, kx)``."""
    scale: Callable[[Tensor], Tensor]
    """k-space ``(..., coil, ky, kx)`` to what 1 in the prior's images is, ``(..., 1, 1)``."""
    combine: Callable[[Tensor], Tensor]
    """Coil images ``(..., coil, ky, kx)`` to the image ``(..., ky, kx)``."""
    start: Callable[[Tensor], Tensor] | None = None
    """k-space to the coil images begun from; None begins with noise."""
    sense: SenseStep | PublishedSenseStep | None = None
    weights: tuple[float, float] = (1.0, 0.2)
    """Weight of the first and of the last SENSE step, linear between."""
    every: int = 50

    @property
    def evaluations(self) -> int:
        """How often each real image goes through the score."""
        steps = len(self.levels)
        shorter = not self.algorithm.corrector_first and not self.published
        return steps + (steps - shorter) * self.corrector_steps

    @property
    def sense_weights(self) -> dict[int, float]:
        """Levels after which a SENSE step is made, and its weight."""
        if self.sense is None:
            return {}
        first, last = self.weights
        if self.published:
            return {i: first + (last - first) * i / PUBLISHED_TOTAL
                    for i in range(0, len(self.levels), self.every)}
        when = range(0, len(self.levels) - 1, self.every)
        return {i: first + (last - first) * n / max(len(when) - 1, 1) for n, i in enumerate(when)}

    def run(self, kspace: Tensor, seeds: Sequence[int], progress: Progress | None = None) -> Tensor:
        """Samples ``(..., seed, ky, kx)`` of k-space ``(..., coil, ky, kx)``; every item of the
        batch gets the same draws."""
        return self.combine(self.coil_images(kspace, seeds, progress))

    def coil_images(
        self, kspace: Tensor, seeds: Sequence[int], progress: Progress | None = None
    ) -> Tensor:
        """The samples before coils are combined, ``(..., seed, coil, ky, kx)``, real for algorithm
        2; in the coils and units of the k-space."""
        size = self.scale(kspace).unsqueeze(-3).unsqueeze(-3)  # (..., 1, 1, 1, 1)
        scaled = kspace.unsqueeze(-4) / size
        project = self._projection(scaled)
        shape = (kspace.shape[-3], 1 if self.algorithm.real else 2, *kspace.shape[-2:])
        draws = NormalDraws(seeds, shape, kspace.real)
        x = self.levels[0] * draws()
        if self.start is not None:
            x = x + self._parts(self.start(kspace).unsqueeze(-4) / size)
        x = project(x)
        pulled = None if self.sense is None else self.sense.data(scaled)
        sense_weights, total = self.sense_weights, len(self.levels)

        def correct(x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
            mean = x
            for _ in range(self.corrector_steps):
                moved, mean = langevin_step(x, self.prior, sigma, self.snr, draws())
                x = project(moved)
            return x, project(mean)

        for i, sigma in enumerate(self.levels):
            following = self.levels[i + 1] if i + 1 < total else 0.0
            if self.algorithm.corrector_first:
                x, _ = correct(x, sigma)
            mean, spread = reverse_step(x, self.prior, sigma, following)
            if progress is not None:
                progress(i + 1, total, self.combine(self._images(project(mean), size)))
            if following == 0 and not self.published:
                return self._images(project(mean), size)
            x, mean = project(mean + spread * draws()), project(mean)
            if not self.algorithm.corrector_first:
                x, corrected = correct(x, sigma if self.published else following)
                mean = corrected if self.corrector_steps else mean
            if i in sense_weights:
                x, mean = (self._pulled(v, pulled, sense_weights[i]) for v in (x, mean))
        return self._images(x if self.algorithm.real else mean, size)

    def _projection(self, kspace: Tensor) -> Projection:
        if not self.algorithm.real:
            return complex_projection(kspace, self.mask)
        return (real_part_projection if self.published else real_projection)(kspace, self.mask)

    def _pulled(self, parts: Tensor, data: Tensor | None, weight: float) -> Tensor:
        assert self.sense is not None
        assert data is not None
        return split(self.sense(join(parts), data, weight))

    def _parts(self, coils: Tensor) -> Tensor:
        return coils.real.unsqueeze(-3) if self.algorithm.real else split(coils)

    def _images(self, parts: Tensor, size: Tensor) -> Tensor:
        coils = parts.squeeze(-3) if self.algorithm.real else join(parts)
        return coils * size
