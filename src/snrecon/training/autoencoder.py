"""Scheme ``autoencoder``: a variational autoencoder, taught with the evidence of its images."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from snrecon.errors import InputError
from snrecon.networks.autoencoder import Autoencoder
from snrecon.training.config import Config, TrainerConfig
from snrecon.training.loop import Item, Source, step_generator
from snrecon.training.prior import Images, PriorLoop
from snrecon.training.stream import Found, full_volumes

SMALLEST = 1e-5
"""Mean squared error over mean square of an image below which a better fit earns nothing."""


def autoencoder_loss(
    network: Autoencoder, images: Tensor, generator: torch.Generator, beta: float = 1.0
) -> Tensor:
    """Negative lower bound of the evidence, in nats a pixel, up to a constant, ``(batch,)``.

    ``1/2 log(mean |x - G(z)|^2 / mean |x|^2) + beta KL(q(z|x) || N(0, I)) / pixels`` with one draw
    of ``z`` from the encoder's Gaussian. The first part is the Gaussian log-likelihood with the
    noise level that suits each image best, so that no level has to be chosen and bright images
    count as dark ones (Rybkin et al., Simple and effective VAE training with calibrated decoders,
    ICML 2021); the second is the Kullback-Leibler divergence of Kingma and Welling (ICLR 2014).

    Args:
        network: In training.
        images: ``(batch, size, size)`` real, not negative.
        generator: Of the draws of ``z``.
        beta: Weight of the divergence.
    """
    mean, spread = network.encode(images)
    draw = torch.randn(mean.shape, generator=generator, device=generator.device, dtype=mean.dtype)
    found = network.decode(mean + (spread / 2).exp() * draw.to(mean.device))
    power = images.square().mean(dim=(-2, -1)).clamp_min(torch.finfo(images.dtype).tiny)
    error = (found - images).square().mean(dim=(-2, -1)) / power
    divergence = (mean.square() + spread.exp() - 1 - spread).sum(dim=1) / 2
    return (error + SMALLEST).log() / 2 + beta * divergence / images[0].numel()


class Autoencoding(PriorLoop):
    """The run: magnitude images of the size of the network.

    Raises:
        InputError: if the training grids, or the measured scans, have another size.
    """

    def __init__(self, config: Config, mixed: bool) -> None:
        super().__init__(replace(config, prior=replace(config.prior, signed=0.0)), mixed)
        assert isinstance(self.network, Autoencoder)
        size = self.network.size
        if self.images.scans is None and any(n != size for g in self.images.grids for n in g):
            raise InputError(
                f"simulation.grids must be [[{size}, {size}]]: network.size is {size}.")

    def check(self, found: Found) -> None:
        assert isinstance(self.network, Autoencoder)
        size = self.network.size
        strip = self.config.data.columns
        for volume in full_volumes(found.volumes):
            rows, columns = volume.shape[-2:]
            columns = min(columns, strip) if strip else columns
            if (rows, columns) != (size, size):
                raise InputError(f"{volume.name} has images of {rows}x{columns}, but network.size "
                                 f"is {size}: an autoencoder is for images of one size.")

    def source(self) -> Source:
        return partial(_magnitudes, self.images, self.config.trainer)

    def loss(self, item: Item) -> Tensor:
        images, seed = item
        assert isinstance(self.network, Autoencoder)
        with self.precision():
            return autoencoder_loss(self.network, images, torch.Generator().manual_seed(int(seed)),
                                    self.config.prior.divergence).mean()

    def scores(self) -> dict[str, float]:
        if self.held_out is None:
            return {}
        assert isinstance(self.average, Autoencoder)
        images = self.held_out.clamp_min(0).to(self.device)
        with torch.no_grad():
            found = self.average(images)
            losses = autoencoder_loss(self.average, images, torch.Generator().manual_seed(1),
                                      self.config.prior.divergence)
        return {"val_loss": float(losses.mean()),
                "val_error": float((found - images).norm() / images.norm())}


def _magnitudes(images: Images, trainer: TrainerConfig, step: int) -> Item:
    """Images, and the seed of the draws of their codes."""
    generator = step_generator(trainer.seed, step)
    drawn = images.draw(trainer.batch, generator).clamp_min(0)
    return drawn, torch.randint(2**62, (), generator=generator)
