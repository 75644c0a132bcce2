"""Scheme ``score_matching``: a network learns the score of images at every noise level.

Source: Vincent, Neural Comput 23:1661 (2011), denoising score matching, with the variance-exploding
noise of Song et al., ICLR 2021, as score-MRI trains it (Chung and Ye, Med Image Anal 80:102479,
2022): the mean of ``1/2 (sigma s + z)^2`` over voxels. A preconditioned network has the same loss
weighted with ``2 (sigma^2 + SD^2) / SD^2``, which asks the same of its layers at every level
(Karras et al., NeurIPS 2022, equation 8).
"""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from snrecon.networks.ncsnpp import DATA_SD, NCSNpp
from snrecon.networks.score import Score, sigma_range
from snrecon.training.config import Config, PriorConfig, TrainerConfig
from snrecon.training.loop import Item, Source, step_generator
from snrecon.training.prior import Images, PriorLoop

LEVELS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 4.0)
"""Noise levels of the validation errors."""


class ScoreMatching(PriorLoop):
    """The run: what :class:`PriorLoop` says, and a file ``samples.png`` of images that the prior
    draws by itself, renewed with every line of the log."""

    def __init__(self, config: Config, mixed: bool) -> None:
        super().__init__(config, mixed)
        for network in (self.network, self.average):
            assert isinstance(network, NCSNpp)
            network.get_buffer("range").copy_(torch.tensor(config.prior.sigma))
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def source(self) -> Source:
        return partial(_noisy, self.images, self.config.prior, self.config.trainer)

    def loss(self, item: Item) -> Tensor:
        images, sigma, noise = item
        assert isinstance(self.network, NCSNpp)
        with self.precision():
            return score_loss(self.network, images, sigma, noise).mean()

    def scores(self) -> dict[str, float]:
        assert isinstance(self.average, NCSNpp)
        errors = {}
        if self.held_out is not None:
            generator = torch.Generator().manual_seed(1)
            noise = torch.randn(self.held_out.shape, generator=generator)
            for level in LEVELS:
                error = denoising_error(self.average, self.held_out, level, noise)
                errors[f"val_error_{level:g}"] = error
        return errors

    def record(self, folder: Path, name: str) -> None:
        super().record(folder, name)
        assert isinstance(self.average, NCSNpp)
        rows, columns = self.images.grids[0]
        drawn = samples(self.average, (6, rows, columns), seed=0)
        picture = drawn.clamp(0, 1).permute(1, 0, 2).reshape(rows, -1)
        from matplotlib.image import imsave

        unfinished = folder / "samples.partial.png"
        imsave(unfinished, picture.cpu().numpy(), cmap="gray", vmin=0, vmax=1)
        unfinished.replace(folder / "samples.png")


def _noisy(images: Images, prior: PriorConfig, trainer: TrainerConfig, step: int) -> Item:
    """Images, their noise levels and noise of SD 1."""
    generator = step_generator(trainer.seed, step)
    drawn = images.draw(trainer.batch, generator)
    sigma = draw_levels(prior, drawn.shape[0], generator)
    return drawn, sigma, torch.randn(drawn.shape, generator=generator)


def draw_levels(prior: PriorConfig, count: int, generator: torch.Generator) -> Tensor:
    """Random noise levels ``(count,)``, as ``[prior]`` says."""
    low, high = (math.log(level) for level in prior.sigma)
    even = low + (high - low) * torch.rand(count, generator=generator)
    dense = math.log(prior.centre) + prior.spread * torch.randn(count, generator=generator)
    take = torch.rand(count, generator=generator) < prior.even
    return torch.where(take, even, dense.clamp(low, high)).exp()


def score_loss(network: NCSNpp, images: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Loss ``(batch,)`` of real images ``(batch, ky, kx)`` with noise ``sigma`` ``(batch,)`` times
    ``noise``, white of SD 1."""
    spread = sigma.reshape(-1, 1, 1)
    noisy = images + spread * noise
    if network.preconditioned:
        weight = (spread.square() + DATA_SD**2) / (spread * DATA_SD).square()
        error = weight * (network.denoised(noisy, sigma) - images).square()
    else:
        error = 0.5 * (spread * network(noisy, sigma) + noise).square()
    return error.flatten(1).mean(1)


@torch.no_grad()
def denoising_error(score: Score, images: Tensor, level: float, noise: Tensor) -> float:
    """``|denoised - image| / |image|`` over a batch of images at one noise level."""
    sigma = torch.tensor(level)
    device = next(score.parameters()).device if isinstance(score, torch.nn.Module) else "cpu"
    noisy = (images + level * noise).to(device)
    found = (noisy + level**2 * score(noisy, sigma.to(device))).cpu()
    return float((found - images).norm() / images.norm())


@torch.no_grad()
def samples(score: Score, shape: tuple[int, int, int], seed: int = 0, steps: int = 24) -> Tensor:
    """Images that the prior draws, ``shape`` = ``(count, ky, kx)``: the probability flow from pure
    noise by Heun's rule (Karras et al., NeurIPS 2022, algorithm 1, rho = 7), without churn.

    Args:
        score: The prior.
        shape: How many, and of which size.
        seed: Of the noise that they start from.
        steps: Noise levels; a score is evaluated twice at each but the last.
    """
    low, high = sigma_range(score)
    ramp = torch.linspace(high ** (1 / 7), low ** (1 / 7), steps, dtype=torch.float64)
    levels = torch.cat([ramp**7, torch.zeros(1, dtype=torch.float64)]).float()
    generator = torch.Generator().manual_seed(seed)
    x = levels[0] * torch.randn(shape, generator=generator)
    if isinstance(score, torch.nn.Module):
        device = next(score.parameters()).device
        x, levels = x.to(device), levels.to(device)
    for now, after in pairwise(levels):
        slope = -now * score(x, now)
        there = x + (after - now) * slope
        if after > 0:
            slope = (slope - after * score(there, after)) / 2
            there = x + (after - now) * slope
        x = there
    return x
