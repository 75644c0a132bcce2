"""A small variational autoencoder: a few numbers to a magnitude image, and back."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from snrecon.errors import InputError

COARSEST = 16
"""Image size over the size of the coarsest level: four halvings."""
GROUPS = 4
"""Groups of channels that are normalised together."""
SHARPNESS = 8.0
"""Of the softplus at the end: above about 0.3 it is the identity, below 0 it is nearly 0."""


class Autoencoder(nn.Module):
    """Encoder and decoder of square magnitude images through a Gaussian latent vector.

    Four convolutions with stride 2 lead to a grid of ``size / 16``, a matrix from there to mean and
    log-variance of ``z``. The decoder goes back by a matrix and four transposed convolutions, with
    a residual 3x3 convolution at every level. Activations are SiLU and the output a softplus, so
    that images are positive and have second derivatives in ``z``, which
    :class:`snrecon.recon.latent.Latent` uses. Groups of channels are normalised (group
    normalisation); nothing depends on the rest of a batch.

    Source: Kingma and Welling, Auto-encoding variational Bayes, ICLR 2014.

    Args:
        features: Channels at full resolution, a multiple of 4; 2, 3, 4 and 4 times as many on the
            coarser levels.
        latent: Length of ``z``.
        size: Rows and columns of the images, a multiple of 16.

    Raises:
        InputError: for other features or sizes.
    """

    def __init__(self, features: int = 16, latent: int = 128, size: int = 128) -> None:
        super().__init__()
        if size < COARSEST or size % COARSEST:
            raise InputError(f"the size of the images must be a multiple of 16, not {size}.")
        if features < GROUPS or features % GROUPS:
            raise InputError(f"the features must be a multiple of 4, not {features}.")
        self.features, self.latent, self.size = features, latent, size
        widths = [features * factor for factor in (1, 2, 3, 4, 4)]
        self.coarse = size // COARSEST
        self.enter = nn.Conv2d(1, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            _Down(fine, coarse) for fine, coarse in pairwise(widths))
        self.gather = nn.Conv2d(widths[-1], features // 2, 1)
        self.encoded = nn.Linear(features // 2 * self.coarse**2, 2 * latent)
        self.decoded = nn.Linear(latent, features * self.coarse**2)
        self.spread = nn.Conv2d(features, widths[-1], 1)
        self.up = nn.ModuleList(
            _Up(coarse, fine) for coarse, fine in pairwise(widths[::-1]))
        self.last = nn.Conv2d(widths[0], 1, 3, padding=1)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of ``z``, ``(batch, latent)`` each.

        Args:
            images: ``(batch, size, size)`` real, not negative, of order 1.
        """
        x = self.enter(images.unsqueeze(1))
        for level in self.down:
            x = level(x)
        mean, spread = self.encoded(self.gather(_silu(x)).flatten(1)).chunk(2, dim=1)
        # Between 1e-4 and 1e2 in variance: what is outside stops a training that starts badly.
        return mean, spread.clamp(-9.2, 4.6)

    def decode(self, z: Tensor) -> Tensor:
        """Images ``(batch, size, size)`` real, positive, of latent vectors ``(batch, latent)``."""
        x = self.decoded(z).unflatten(1, (-1, self.coarse, self.coarse))
        x = self.spread(x)
        for level in self.up:
            x = level(x)
        y = SHARPNESS * self.last(_silu(x)).squeeze(1)
        return torch.logaddexp(y, torch.zeros_like(y)) / SHARPNESS

    def forward(self, images: Tensor) -> Tensor:
        """The images as the decoder sees them: ``decode(mean)``, ``(batch, size, size)``."""
        return self.decode(self.encode(images)[0])


class _Down(nn.Module):
    """Half the resolution."""

    def __init__(self, fine: int, coarse: int) -> None:
        super().__init__()
        self.halve = nn.Conv2d(fine, coarse, 4, padding=1, stride=2)
        self.mix = _Residual(coarse)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, fine, 2 n, 2 n)`` to ``(batch, coarse, n, n)``."""
        mixed: Tensor = self.mix(self.halve(_silu(x)))
        return mixed


class _Up(nn.Module):
    """Twice the resolution."""

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        self.mix = _Residual(coarse)
        self.enlarge = nn.ConvTranspose2d(coarse, fine, 4, padding=1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, coarse, n, n)`` to ``(batch, fine, 2 n, 2 n)``."""
        larger: Tensor = self.enlarge(_silu(self.mix(x)))
        return larger


class _Residual(nn.Module):
    """``x + conv(silu(normalised x))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width, 1, 1))
        self.shift = nn.Parameter(torch.zeros(width, 1, 1))
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, width, n, n)`` to the same."""
        groups = x.unflatten(1, (GROUPS, -1))
        centred = groups - groups.mean(dim=(2, 3, 4), keepdim=True)
        power = centred.square().mean(dim=(2, 3, 4), keepdim=True)
        normal = (centred * (power + 1e-5).rsqrt()).flatten(1, 2)
        added: Tensor = self.conv(_silu(normal * self.scale + self.shift))
        return x + added


def _silu(x: Tensor) -> Tensor:
    """Of elementary operations, like the normalisation above: the gradients of torch's own layers
    cannot be differentiated in forward mode."""
    return x * torch.sigmoid(x)
