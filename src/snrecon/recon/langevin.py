"""Annealed Langevin dynamics: samples of the posterior, by a score network."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.errors import InputError, SnreconWarning
from snrecon.networks.score import Score as ScoreFunction
from snrecon.networks.score import sigma_range
from snrecon.physics.chebyshev import chebyshev_solve
from snrecon.physics.safe import transformed
from snrecon.recon.base import Bound, Reconstructor, seed_of
from snrecon.recon.draws import NormalDraws
from snrecon.recon.image_scale import bright
from snrecon.recon.langevin_schedule import Schedule
from snrecon.recon.option_types import number, whole_number
from snrecon.recon.score import linearized
from snrecon.recon.score_prior import Prior, join, named_score, split
from snrecon.recon.snr_units import SnrUnits

Progress = Callable[[int, int, Tensor], None]
"""``progress(step, steps, image)``."""

HELD_STEPS = 20
"""Of the solver that holds the last denoising step to the data."""
PUBLISHED = {"levels": 1156, "steps": 3, "settle": 0, "step": 5e-5, "denoise": False}


class Langevin(Reconstructor):
    """Posterior sampling by annealed Langevin dynamics (Jalal et al., Robust Compressed Sensing MRI
    with Deep Generative Priors, NeurIPS 2021): one complex image, the score of a prior of real
    images, and the data through coil maps. 2D.

    **What is sampled.** With whitened data and maps normalised to ``sum |S|^2 = 1`` (SNR units) let
    ``u`` be the image divided by a scale, by default the 99th percentile of the magnitude of the
    zero-filled matched-filter image, so that ``|u|`` lies in about [0, 1] as the prior's images do.
    Then ``y = A u + n``, and n is circular: its real and imaginary parts have variance
    ``gamma^2 = 1 / (2 scale^2)`` each. The likelihood is ``exp(-|A u - y|^2 / (2 gamma^2))``, and
    its gradient in the 2N real unknowns ``(Re u, Im u)``, written as a complex number, is
    ``-A^H (A u - y) / gamma^2``: no factor 2, since gamma^2 is that of a component. The prior is
    ``q(Re u) q(Im u)``, so its gradient is ``s(Re u) + i s(Im u)``. A step is that of Langevin
    dynamics in 2N real dimensions,

        u <- u + a (s(Re u) + i s(Im u) - A^H (A u - y) / (gamma^2 + sigma^2)) + sqrt(2 a) z,

    where both parts of z have variance 1 (``E|z|^2 = 2``). It begins as noise of SD ``sigma_max``
    and goes through noise levels sigma of the score, from large to small.

    **The end.** The score is known down to its smallest level ``sigma_L`` only, but the data's
    variance need not be ``gamma^2 + sigma_L^2`` for that. In the last ``settle`` steps the score
    stays at ``sigma_L`` while first the data's extra variance and then the step shrink. What is
    sampled then is the posterior under the prior blurred by sigma_L. At last (``denoise``) that
    blur is taken out where the data do not speak: the image moves by the w of least
    ``|A w|^2 / gamma^2 + |w - sigma_L^2 s(u)|^2 / sigma_L^2``.

    **The step.** No prior makes the force steeper than ``L = 1/sigma^2 + 1/(gamma^2 + sigma^2)``,
    as ``A^H A <= 1``, and a step of more than ``1/L`` overshoots in some direction (of ``2/L``
    diverges). By default ``a = 1/L``: the published ``5e-5 (sigma / sigma_L)^2`` for
    ``sigma_L = 0.01``, where sigma exceeds gamma. A ``step`` is held to that limit, with a warning.

    At fixed seed the sample is a smooth function of k-space: draws do not depend on it, the scale
    does and is differentiated. Noise coloured along the readout counts as white in the data term.

    Args:
        weights: Name of shipped weights, a file, or a score of one's own
            (:class:`snrecon.networks.score.Score`).
        levels: Noise levels, in geometric sequence.
        steps: Steps at each.
        settle: Steps after the last level, see above.
        step: ``a = step (sigma / sigma_L)^2``; None takes the largest that overshoots nowhere.
        sigma_max: Largest noise level, in the prior's unit, held to those that the score knows.
        sigma_min: Smallest; None takes the score's.
        denoise: Take the noise of SD ``sigma_L`` out of the result.
        scale: What 1 in the prior's images is in SNR units; None takes the percentile.
        as_published: 1156 levels (those of the published spacing from 2 down, 3468 steps),
            ``step=5e-5``, neither settling nor denoising; overrides these five options.
        at_once: Most real images that go through the score together.
        progress: ``progress(step, steps, image)`` after every step with the image as it is then,
            ``(seed, ky, kx)``; not for the Jacobian products of noise maps.
        score: The same as a callable given as ``weights``.

    Raises:
        InputError: for unknown weights or settings out of range, and (when bound) for 3D grids, or
            a scan whose noise is not known.
    """

    name = "langevin"

    def __init__(
        self,
        weights: str | Path | ScoreFunction = "brain",
        levels: int = 60,
        steps: int = 3,
        settle: int = 180,
        step: float | None = None,
        sigma_max: float = 2.0,
        sigma_min: float | None = None,
        denoise: bool = True,
        scale: float | None = None,
        as_published: bool = False,
        at_once: int = 16,
        progress: Progress | None = None,
        score: ScoreFunction | None = None,
    ) -> None:
        for what, size in (("scale", scale), ("sigma_max", sigma_max), ("sigma_min", sigma_min)):
            if size is not None and number(f"{what} of langevin", size) <= 0:
                raise InputError(f"{what} of langevin must be positive, not {size}.")
        self.weights, self._score = named_score(weights if score is None else score)
        self._progress = progress
        self.at_once = whole_number("at_once of langevin", at_once, 1)
        self.as_published, self.scale = as_published, scale
        settings: dict[str, Any] = {"levels": levels, "steps": steps, "settle": settle,
                                    "step": step, "denoise": denoise}
        if as_published:
            settings |= PUBLISHED
        self.denoise = bool(settings.pop("denoise"))
        low, high = sigma_range(self._score)
        smallest = low if sigma_min is None else sigma_min
        if not low <= smallest <= high:
            raise InputError(
                f"sigma_min of langevin must lie between {low:g} and {high:g}, the noise levels "
                f"that the score knows, not {smallest:g}."
            )
        self.schedule = Schedule(
            sigma_max=max(min(sigma_max, high), smallest), sigma_min=smallest, **settings)

    def bind(self, scan: Scan, generator: torch.Generator | None = None) -> Bound:
        """k-space ``(..., coil, ky, kx)`` to image ``(..., ky, kx)``."""
        if len(scan.grid) != 2:
            raise InputError(
                f"{scan.source}: langevin samples 2D images, but the grid is {scan.grid}; "
                "reconstruct slices, or use tv or wavelet."
            )
        units = SnrUnits.of(scan)
        chain = _Chain(self, units, Prior(self._score, units.normalised, self.at_once))
        seed = seed_of(generator)

        def function(kspace: Tensor) -> Tensor:
            shown = kspace.ndim == 3 and not transformed(kspace)
            return chain.run(kspace, [seed], self._progress if shown else None).squeeze(-3)

        def silent(kspace: Tensor) -> Tensor:
            return chain.run(kspace, [seed], None).squeeze(-3)

        def sample(kspace: Tensor, seeds: Sequence[int]) -> Tensor:
            drawn = [seed_of(torch.Generator().manual_seed(s)) for s in seeds]
            with torch.no_grad():
                return chain.run(kspace, drawn, self._progress)

        with torch.no_grad():
            scale = float(chain.scale_of(units.adjoint(scan.kspace)))
        limited = self.schedule.limited(0.5 / scale**2)
        if limited:
            warnings.warn(
                f"step={self.schedule.step:g} overshoots at {limited} of {self.schedule.total} "
                "steps of langevin, which are held to the largest that does not; give a smaller "
                "step, or none.",
                SnreconWarning,
                stacklevel=2,
            )
        return Bound(
            function,
            self.name,
            frozen=units.model.frozen,
            maps=units.model.maps,
            units=units.model.units,
            linearize=lambda kspace: linearized(silent, kspace),
            stochastic=True,
            sample=sample,
            details={
                "weights": self.weights, "seed": seed, "scale": scale,
                "evaluations": self.schedule.total + self.denoise,
                "maps": units.model.maps_source, "steps_limited": limited,
                "options": {**asdict(self.schedule), "denoise": self.denoise, "scale": self.scale},
            },
        )


class _Chain:
    """The dynamics on one scan."""

    def __init__(self, method: Langevin, units: SnrUnits, prior: Prior) -> None:
        self.schedule, self.denoise = method.schedule, method.denoise
        self.fixed_scale = method.scale
        self.units, self.prior, self.gram = units, prior, units.gram

    def scale_of(self, zero_filled: Tensor) -> Tensor:
        """What 1 in the prior's images is: of ``(..., ky, kx)``, ``(..., 1, 1)``."""
        if self.fixed_scale is None:
            return bright(zero_filled.abs())
        return torch.full_like(zero_filled.real[..., :1, :1], self.fixed_scale)

    def run(self, kspace: Tensor, seeds: Sequence[int], progress: Progress | None) -> Tensor:
        """Samples ``(..., seed, ky, kx)`` of k-space ``(..., coil, ky, kx)``; every item of the
        batch gets the same draws."""
        zero_filled = self.units.adjoint(kspace).unsqueeze(-3)
        scale = self.scale_of(zero_filled)
        data, gamma2 = zero_filled / scale, 0.5 / scale**2
        draws = NormalDraws(seeds, (2, *data.shape[-2:]), data.real)
        back = scale * self.units.inverse
        u = self.schedule.sigma_max * join(draws()) + torch.zeros_like(data)
        for index, level in enumerate(self.schedule):
            variance = gamma2 + level.data_variance
            a = self.schedule.step_size(level, gamma2)
            score = join(self.prior(split(u), level.sigma))
            u = u + a * (score - (self.gram(u) - data) / variance) + (2 * a).sqrt() * join(draws())
            if progress is not None:
                progress(index + 1, self.schedule.total, back * u)
        if self.denoise:
            u = u + self._held(u, gamma2 / self.schedule.sigma_min**2)
        return back * u

    def _held(self, u: Tensor, ratio: Tensor) -> Tensor:
        """The denoising step d, as far as the data let it: the w of least
        ``|A w|^2 + ratio |w - d|^2``."""
        level = self.schedule.sigma_min
        step = level**2 * join(self.prior(split(u), level))
        return chebyshev_solve(self.gram, ratio * step, ratio, HELD_STEPS, step)
