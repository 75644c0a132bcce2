"""Score-based diffusion: images drawn from a learned prior and held to the measured k-space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.networks.score import Score as ScoreFunction
from snrecon.networks.score import sigma_range
from snrecon.physics.safe import transformed
from snrecon.recon.base import Bound, Reconstructor, seed_of
from snrecon.recon.coil_diffusion import Progress
from snrecon.recon.score_bind import bind_coils, bind_image, compressed
from snrecon.recon.score_prior import named_score
from snrecon.recon.score_settings import Settings
from snrecon.recon.score_start import named_start

AT_ONCE = 8
"""Jacobian products that a CPU makes together: each batch computes the sample itself again."""


class Score(Reconstructor):
    """Diffusion sampling with the score of a prior of real images. 2D.

    ``algorithm``:

    - ``"dds"``: one complex image and coil maps, 50 evaluations; thermal noise has its weight
      (:class:`snrecon.recon.image_diffusion.ImageDiffusion`, with the formulas). Complex image in
      the units of the maps. The noise of the scan must be known.
    - ``"2"`` or ``"real"``, ``"3"`` or ``"complex"``, ``"4"`` or ``"ssos"``, ``"5"`` or
      ``"hybrid"``: the algorithms of score-MRI (Chung and Ye, Med Image Anal 80:102479, 2022;
      :class:`snrecon.recon.coil_diffusion.CoilDiffusion`). 2 and 3 are for one coil and return its
      image, real or complex; 4 and 5 return the root sum of squares of the coils as stored. They
      reproduce the measured samples exactly, noise and all, so their samples are no posterior
      samples of noisy data; ``docs/diffusion.md`` has the bias.

    Published steps that were wrong are done right: the final denoised image is kept (and projected
    onto the data), real images are projected onto the real images that agree with the data, the
    SENSE step leaves consistent images alone, its weight ends at ``lambda_end``, the corrector
    works at the level that the predictor has reached, scale and coil maps come from measured data
    only. With ``as_published=True``:

    - 2: consistency is ``Re F^-1[(1-M) F x + y]``, and what is returned is the last step with its
      noise of SD ``sigma_min``, not its mean;
    - 3: nothing changes;
    - 4, 5: the corrector keeps to the level before the predictor's step, and the mean of the last
      corrector step is returned, denoised by its small step only;
    - 5: SENSE step and weights as published (:class:`snrecon.recon.consistency.PublishedSenseStep`;
      the weight falls over 2000 steps, so that 500 end at 0.8).

    Scale (the 99th percentile of a first image), smooth phase and the reconstruction begun from are
    part of the function that is differentiated; estimated maps and coil compression are frozen. At
    fixed seed f is smooth; Jacobian products are made in forward mode, in memory that does not grow
    with the number of steps.

    Args:
        weights: Name of shipped weights, a file, or a score of one's own
            (:class:`snrecon.networks.score.Score`).
        algorithm: See above; numbers or names.
        steps: Noise levels. None: as published (2000, 2000, 500, 500), or 50 for dds; with a start
            the share of them that lies below ``start_sigma``.
        corrector_steps: Langevin steps a level; 0 for none. Not for dds.
        snr: r of the corrector.
        m: Every how many levels algorithm 5 makes a SENSE step. None: a tenth of the steps (50 of
            500, as published), at least 1.
        lambda_start: Weight of its first SENSE step,
        lambda_end: and of its last.
        as_published: See above. Not for dds.
        start: Reconstruction to begin from, by name (``"varnet"``, ``"zero_filled"``) or as an
            object; it must not draw itself. None begins with noise (dds: a few steps of SENSE).
        start_sigma: Noise level that is added to it, in the unit of the prior. None: the largest
            level of the score without a start, for dds at most 5; 0.2 with one.
        cg_steps: Conjugate-gradient steps a level of dds.
        eta: Share of fresh noise of dds, 0 to 1; 0 draws once, at the start.
        demodulate: dds takes a smooth phase off before real and imaginary part are denoised.
        scale: What 1 in the prior's images is, in the unit of the k-space (2 to 5) or in SNR units
            (dds). None takes the 99th percentile of a first image.
        coils: Compress to so many virtual coils first: those of most signal over noise for dds, of
            most energy as stored for the root sum of squares of 4 and 5. None leaves them.
        at_once: Most real images that go through the score together.
        progress: ``progress(step, steps, image)`` after every level with the denoised image
            ``(ky, kx)``, or ``(seed, ky, kx)`` where several are sampled; not for batches of
            k-space nor while Jacobian products are made.
        score: The same as a callable given as ``weights``.

    Raises:
        InputError: for unknown weights or settings out of range, and (when bound) for 3D scans,
            several coils with 2 or 3, or too few calibration lines for maps where they are needed.
    """

    name = "score"

    def __init__(
        self,
        weights: str | Path | ScoreFunction = "brain",
        algorithm: str | int = "dds",
        steps: int | None = None,
        corrector_steps: int = 1,
        snr: float = 0.16,
        m: int | None = None,
        lambda_start: float = 1.0,
        lambda_end: float = 0.2,
        as_published: bool = False,
        start: str | Reconstructor | None = None,
        start_sigma: float | None = None,
        cg_steps: int = 8,
        eta: float = 1.0,
        demodulate: bool = True,
        scale: float | None = None,
        coils: int | None = None,
        at_once: int = 16,
        progress: Progress | None = None,
        score: ScoreFunction | None = None,
    ) -> None:
        self.weights, self._score = named_score(weights if score is None else score)
        self.settings = Settings(
            str(algorithm), steps, corrector_steps, snr, m, lambda_start, lambda_end, as_published,
            start is not None, start_sigma, cg_steps, eta, demodulate, scale, coils, at_once,
            sigma_range(self._score),
        )
        self._start, self._progress = named_start(start), progress

    def bind(self, scan: Scan, generator: torch.Generator | None = None) -> Bound:
        """k-space ``(..., coil, ky, kx)`` to image ``(..., ky, kx)``."""
        settings = self.settings
        if len(scan.grid) != 2:
            raise InputError(
                f"{scan.source}: score samples 2D images, but the grid is {scan.grid}; reconstruct "
                "slices, or use tv or wavelet."
            )
        frozen: tuple[str, ...] = ()
        virtual, dds = None, settings.algorithm == "dds"
        if settings.coils is not None and settings.coils != scan.coils:
            virtual = compressed(scan, settings.coils, white=dds)
            scan, frozen = virtual.scan, ("coil compression",)
        found = (bind_image if dds else bind_coils)(settings, self._score, scan, self._start)
        chain, begun = found.chain, None if found.start is None else found.start.bound
        seed = seed_of(generator)

        def samples(kspace: Tensor, seeds: Sequence[int], progress: Progress | None) -> Tensor:
            if virtual is not None:
                matrix = virtual.matrix.to(kspace)
                kspace = torch.einsum("vc,...cyx->...vyx", matrix, kspace)
            return chain.run(kspace, seeds, progress)

        def silent(kspace: Tensor) -> Tensor:
            return samples(kspace, [seed], None).squeeze(-3)

        def function(kspace: Tensor) -> Tensor:
            shown = kspace.ndim == 3 and not transformed(kspace)
            return samples(kspace, [seed], self._single if shown else None).squeeze(-3)

        def sample(kspace: Tensor, seeds: Sequence[int]) -> Tensor:
            drawn = [seed_of(torch.Generator().manual_seed(s)) for s in seeds]
            size = max(1, settings.at_once // found.details["images"])
            groups = [drawn[i : i + size] for i in range(0, len(drawn), size)]
            with torch.no_grad():
                return torch.cat([samples(kspace, g, self._progress) for g in groups])

        with torch.no_grad():
            size = float(chain.scale(scan.kspace).squeeze())  # as compressed
        maps = found.maps
        if maps is not None and virtual is not None:
            maps = torch.einsum("cv,v...->c...", virtual.back.to(maps), maps)
        return Bound(
            function,
            self.name,
            frozen=tuple(dict.fromkeys(
                (*frozen, *found.frozen, *(begun.frozen if begun is not None else ())))),
            maps=maps,
            linearize=lambda kspace: linearized(silent, kspace),
            batched=begun is None or begun.batched,
            units=found.units,
            at_once=AT_ONCE,
            differentiable=begun is None or begun.differentiable,
            stochastic=True,
            sample=sample,
            details={
                "algorithm": settings.algorithm,
                "weights": self.weights,
                "seed": seed,
                "steps": len(chain.levels),
                "evaluations": chain.evaluations,
                "levels": (chain.levels[0], chain.levels[-1]),
                "scale": size,
                "options": settings.stated,
                **found.details,
                **({} if self._start is None else {"start": self._start.name}),
                **({} if virtual is None else {"coils": scan.coils}),
            },
        )

    @property
    def _single(self) -> Progress | None:
        """The user's progress for one sample: without the axis of seeds."""
        tell = self._progress
        if tell is None:
            return None
        return lambda step, steps, image: tell(step, steps, image.detach().squeeze(-3))


def linearized(
    function: Callable[[Tensor], Tensor], kspace: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The value of a long iteration, and its derivative in forward mode, from the beginning for
    every batch of tangents: a trace of the iteration would grow with the number of steps.

    Args:
        function: k-space ``(coil, *grid)`` to image.
        kspace: The point.

    Returns:
        The image ``(*grid)`` and a function from tangents ``(batch, coil, *grid)`` to
        ``(batch, *grid)``. Both without gradients.
    """

    def along(tangent: Tensor) -> Tensor:
        product: Tensor = torch.func.jvp(function, (kspace,), (tangent,))[1]
        return product

    def product(tangents: Tensor) -> Tensor:
        with torch.no_grad():
            try:
                return torch.vmap(along)(tangents)
            except RuntimeError as error:
                if "vmap" not in str(error):
                    raise
                # A user's score with an operation that has no batching rule.
                return torch.stack([along(tangent) for tangent in tangents])

    with torch.no_grad():
        return function(kspace), product
