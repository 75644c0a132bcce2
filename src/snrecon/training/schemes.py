"""What a network is taught with: the loss of each training scheme.

A scheme sees a batch of whitened measurements and a function that reconstructs a batch; it gives
one loss for each measurement. What it draws comes from the generator it is handed, so that a run
that is resumed draws what the whole one would.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from snrecon.networks.sensitivity import calibration_samples
from snrecon.training.augment import (
    add_noise,
    disturb_shots,
    draw_symmetry,
    move,
    uniform,
)
from snrecon.training.batch import Batch, Targets
from snrecon.training.config import Config
from snrecon.training.scores import excess_error, logarithmic_error, normalised_error

Reconstruct = Callable[[Batch], Tensor]
"""Batch to images ``(batch, ky, kx)`` in SNR units."""


class Scheme(ABC):
    """How a batch becomes a loss."""

    targets: Targets = "all"
    """How many of the measurements must have a target; ``Batch.labelled`` says which have."""

    @abstractmethod
    def loss(self, reconstruct: Reconstruct, batch: Batch, generator: torch.Generator) -> Tensor:
        """One loss for every measurement, ``(batch,)``, of the network in training."""


class Supervised(Scheme):
    """Against fully sampled images: :func:`snrecon.training.scores.logarithmic_error`."""

    def loss(self, reconstruct: Reconstruct, batch: Batch, generator: torch.Generator) -> Tensor:
        return logarithmic_error(reconstruct(batch), batch.target, batch.support)


class SSDU(Scheme):
    """Self-supervision by data undersampling: one part of the samples is reconstructed, the image
    must predict the other. Targets are never looked at.

    Args:
        share: Share of the samples, outside the centre, that are predicted.
        split: How those samples are chosen: ``uniform``, ``gaussian`` (denser towards the centre),
            or ``lines``: whole lines where the mask is of whole lines, uniform elsewhere. The
            network then trains on masks of the kind that it will meet.
        loss: ``normalised``: L1 plus L2, as published; ``logarithmic``:
            :func:`snrecon.training.scores.logarithmic_error` of the samples, which a measurement
            of good quality enters with the same weight as a poor one; ``excess``:
            :func:`snrecon.training.scores.excess_error`, which leaves out of the logarithm what the
            samples' own noise adds, so that noisy measurements keep their weight too.
        smallest: If above 0, the share is drawn between this and ``share`` for every batch, which
            prepares the network for the whole measurement that it is applied to later.
        calibration: Never choose samples of the calibration block, for networks that make coil maps
            from it: with a few of its lines only they would learn another task.

    Source: Yaman et al., Magn Reson Med 84:3172 (2020), normalised L1 plus L2 loss in k-space.
    """

    targets = "none"

    def __init__(
        self, share: float = 0.4, split: str = "uniform", loss: str = "normalised",
        smallest: float = 0.0, calibration: bool = False,
    ) -> None:
        self.share, self.split, self.kind, self.smallest = share, split, loss, smallest
        self.calibration = calibration

    def loss(self, reconstruct: Reconstruct, batch: Batch, generator: torch.Generator) -> Tensor:
        share = uniform(generator, self.smallest, self.share) if self.smallest else self.share
        kept = None
        if self.calibration:
            kept = torch.stack([calibration_samples(mask) for mask in batch.mask])
            batch = replace(batch, calibration=kept)
        predicted = split_samples(batch.mask, share, self.split, generator, kept=kept)
        image = reconstruct(batch.sampled(batch.mask & ~predicted))
        chosen = predicted.unsqueeze(1).expand(batch.kspace.shape)
        answer, wanted = batch.measure(image) * chosen, batch.kspace * chosen
        if self.kind == "normalised":
            return normalised_error(answer, wanted)
        if self.kind == "excess":
            return excess_error(answer.flatten(1), wanted.flatten(1), chosen.flatten(1))
        # All coils in one mean: a coil far from the object measures little but noise.
        return logarithmic_error(*(part.flatten(1, 2) for part in (answer, wanted, chosen)))


class Consistency(Scheme):
    """Targets for some measurements; disturbed copies of the others must give the same image.

    No gradient flows through the image of an undisturbed measurement without target.

    Args:
        weight: Of the consistency term.
    """

    targets = "some"

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def loss(self, reconstruct: Reconstruct, batch: Batch, generator: torch.Generator) -> Tensor:
        loss = torch.zeros(len(batch.labelled), device=batch.b.device)
        # Each kind on its own: neither pays for the passes that only the other needs.
        for known, of in ((True, self._taught), (False, self._same)):
            chosen = (batch.labelled == known).nonzero()[:, 0]
            if len(chosen):
                part = of(reconstruct, batch.part(chosen), generator)
                loss = loss.index_add(0, chosen, part.to(loss.dtype))
        return loss

    def _taught(
        self, reconstruct: Reconstruct, batch: Batch, generator: torch.Generator
    ) -> Tensor:
        return logarithmic_error(reconstruct(batch), batch.target, batch.support)

    def _same(self, reconstruct: Reconstruct, batch: Batch, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            answer = reconstruct(batch)
        disturbed, scale, follow = self.disturb(batch, generator)
        again = reconstruct(disturbed) * scale
        return self.weight * normalised_error(again, follow(answer))

    @abstractmethod
    def disturb(
        self, batch: Batch, generator: torch.Generator
    ) -> tuple[Batch, Tensor | float, Callable[[Tensor], Tensor]]:
        """Disturbed measurements, what their images are to be multiplied by, and what becomes of
        the undisturbed image."""


class Noise2Recon(Consistency):
    """Consistency with noisier copies.

    The copy's noise is ``sqrt(1 + s^2)`` times that of the measurement, so it is divided by that
    before the network sees it: networks work on data with noise of SD 1.

    Args:
        weight: Of the consistency term.
        sigma: Range of the added noise, relative to the root mean square of the zero-filled image
            on its support.

    Source: Desai et al., Noise2Recon, Magn Reson Med 90:2052 (2023).
    """

    def __init__(self, weight: float = 0.1, sigma: tuple[float, float] = (0.2, 0.5)) -> None:
        super().__init__(weight)
        self.sigma = sigma

    def disturb(
        self, batch: Batch, generator: torch.Generator
    ) -> tuple[Batch, Tensor | float, Callable[[Tensor], Tensor]]:
        noisy, scale = add_noise(batch, self.sigma, generator)
        return noisy, scale, lambda image: image


class Vortex(Consistency):
    """Consistency with what scanners do to data: noise, or motion between shots; followed by a
    change of the image that the reconstruction must follow (shift, reflection).

    Args:
        weight: Of the consistency term.
        sigma: Range of the added noise, as in :class:`Noise2Recon`.
        motion: Largest shift between shots in voxels.
        shots: Number of shots that the lines are spread over.

    Source: Desai et al., VORTEX, MIDL 2022.
    """

    def __init__(
        self,
        weight: float = 0.1,
        sigma: tuple[float, float] = (0.2, 0.5),
        motion: float = 1.0,
        shots: int = 4,
    ) -> None:
        super().__init__(weight)
        self.sigma, self.motion, self.shots = sigma, motion, shots

    def disturb(
        self, batch: Batch, generator: torch.Generator
    ) -> tuple[Batch, Tensor | float, Callable[[Tensor], Tensor]]:
        symmetry = draw_symmetry(batch.mask.shape[-2:], generator)
        disturbed = move(batch, symmetry)
        scale: Tensor | float = 1.0
        if uniform(generator) < 0.5:
            disturbed, scale = add_noise(disturbed, self.sigma, generator)
        else:
            disturbed = disturb_shots(disturbed, self.motion, self.shots, generator)
        return disturbed, scale, symmetry.image


def split_samples(
    mask: Tensor,
    share: float,
    split: str,
    generator: torch.Generator,
    keep: int = 4,
    kept: Tensor | None = None,
) -> Tensor:
    """A random part of the sampled points, boolean as ``mask`` ``(batch, ky, kx)``.

    Args:
        mask: What was sampled.
        share: Share of the samples that is chosen.
        split: ``uniform``; ``gaussian``, denser towards the centre; or ``lines``: whole lines of a
            mask whose lines are sampled as a whole, else uniform.
        generator: Source of randomness.
        keep: Samples nearer than half of this to the centre of k-space, along both axes, are never
            chosen.
        kept: Others that never are, boolean as ``mask``.
    """
    if split == "lines":
        whole = (mask == mask[..., :1]).flatten(1).all(dim=1).reshape(-1, 1, 1)
        if bool(whole.any()):
            lines = None if kept is None else kept.any(dim=-1, keepdim=True)
            lines = split_samples(mask[..., :1], share, "uniform", generator, keep, lines)
            if bool(whole.all()):
                return lines.expand(mask.shape)
            points = split_samples(mask, share, "uniform", generator, keep, kept)
            return torch.where(whole, lines, points)
    ky, kx = mask.shape[-2:]
    y = (torch.arange(ky, device=mask.device) - ky // 2).unsqueeze(1)
    x = torch.arange(kx, device=mask.device) - kx // 2
    free = mask & ~((y.abs() < (keep + 1) // 2) & (x.abs() < (keep + 1) // 2))
    if kept is not None:
        free = free & ~kept
    draw = torch.rand(mask.shape, generator=generator).to(mask.device).clamp_min(1e-20)
    weight = torch.ones(ky, kx, device=mask.device)
    if split == "gaussian":
        weight = torch.exp(-((y / (0.25 * ky)) ** 2 + (x / (0.25 * kx)) ** 2) / 2)
    # The largest draws raised to 1 / weight are a sample without replacement by these weights.
    keys = torch.where(free, torch.log(draw) / weight, -torch.inf).flatten(1)
    count = (share * free.flatten(1).sum(1)).round().long()
    order = keys.argsort(dim=1, descending=True).argsort(dim=1)
    return (order < count.unsqueeze(1)).reshape(mask.shape) & free


def scheme_of(config: Config) -> Scheme:
    """The scheme that a configuration names, with its settings."""
    if config.scheme == "ssdu":
        ssdu = config.ssdu
        return SSDU(ssdu.share, ssdu.split, ssdu.loss, ssdu.smallest_share,
                    calibration=config.network.name == "e2e_varnet")
    low, high = config.consistency.sigma
    if config.scheme == "noise2recon":
        return Noise2Recon(config.consistency.weight, (low, high))
    if config.scheme == "vortex":
        return Vortex(config.consistency.weight, (low, high), config.consistency.motion,
                      config.consistency.shots)
    return Supervised()

