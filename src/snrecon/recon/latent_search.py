"""Adam from several starting points at once, watched by samples that were held out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snrecon.physics.operators import Encoding
from snrecon.recon.latent_image import LatentImage

HELD_OUT = 0.05
"""Share of the sampled points that is held out."""
RATE = 0.05
"""Learning rate of Adam; entries of theta have the prior SD 1."""
MOMENTS = (0.9, 0.999)
PATIENCE = 25
"""Steps without improvement on the samples held out after which a start is given up."""


@dataclass(frozen=True, eq=False)
class Found:
    """What the search ended with."""

    theta: Tensor
    """The best of every start, ``(starts, parameters)``."""
    steps: Tensor
    """Steps to it, ``(starts,)``."""
    misfits: Tensor
    """Mean square misfit of a sample held out, ``(starts,)``; 1 is the noise alone."""

    @property
    def best(self) -> int:
        """The start that predicts the samples held out best."""
        return int(self.misfits.argmin())


class LatentSearch:
    """Descent of ``|A x(theta) - y|^2 + lamda |theta|^2`` without the samples held out.

    Args:
        image: x.
        encoding: A, of whitened maps and the whole mask.
        held_out: Boolean ``(ky, kx)``, a part of the mask.
        lamda: As in :class:`snrecon.recon.latent_fit.LatentFit`.
    """

    def __init__(
        self, image: LatentImage, encoding: Encoding, held_out: Tensor, lamda: float
    ) -> None:
        self.image, self.encoding, self.held_out = image, encoding, held_out
        self.weights = lamda * image.prior

    def start(self, z: Tensor, white: Tensor) -> Tensor:
        """Starting points ``(starts, parameters)`` of latent vectors ``(starts, latent)``, with the
        scale and the constant phase that suit the data."""
        image = self.image
        theta = torch.cat(
            [z, z.new_zeros(len(z), image.parameters - image.latent)], dim=1)
        measured = self.encoding(image(theta))
        axes = (-3, -2, -1)
        power = measured.abs().square().sum(axes).clamp_min(torch.finfo(z.dtype).tiny)
        factor = (measured.conj() * white).sum(axes) / power
        size = factor.abs().clamp_min(torch.finfo(z.dtype).tiny)
        theta[:, image.latent] = size.log() / image.shading[0, 0, 0]
        theta[:, image.latent + len(image.shading)] = factor.angle() / image.turning[0, 0, 0]
        return theta

    def run(self, theta: Tensor, white: Tensor, steps: int) -> Found:
        """Every start's best point by the samples held out.

        Args:
            theta: Starting points, ``(starts, parameters)``.
            white: Whitened k-space ``(coil, ky, kx)``.
            steps: Most steps; fewer if no start has improved for a while.
        """
        best, when = theta.clone(), torch.zeros(len(theta), dtype=torch.int64)
        least = torch.full((len(theta),), float("inf"), dtype=torch.float64)
        moments = (torch.zeros_like(theta), torch.zeros_like(theta))
        for step in range(steps + 1):
            gradient, misfit = self._gradient(theta, white)
            better = misfit.double().cpu() < least
            least = torch.where(better, misfit.double().cpu(), least)
            when[better] = step
            best[better] = theta[better]
            if step == steps or step - int(when.max()) >= PATIENCE:
                break
            theta, moments = _adam(theta, gradient, moments, step)
        return Found(best, when, least)

    def descend(self, theta: Tensor, white: Tensor, steps: int) -> Tensor:
        """Exactly ``steps`` steps of :meth:`run`, for torch.func.

        Args:
            theta: ``(batch, parameters)``.
            white: ``(batch, coil, ky, kx)``.
            steps: Their number.
        """
        moments = (torch.zeros_like(theta), torch.zeros_like(theta))
        for step in range(steps):
            gradient, _ = self._gradient(theta, white)
            theta, moments = _adam(theta, gradient, moments, step)
        return theta

    def _gradient(self, theta: Tensor, white: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient ``(batch, parameters)`` and misfit of the samples held out ``(batch,)``."""
        pulled = torch.func.vjp(self.image, theta)
        residual = self.encoding(pulled[0]) - white
        (back,) = pulled[1](2 * self.encoding.H(residual * ~self.held_out))
        apart = residual * self.held_out
        number = self.held_out.sum().clamp_min(1) * white.shape[-3]
        misfit = (apart.real**2 + apart.imag**2).sum((-3, -2, -1)) / number
        return back + 2 * self.weights * theta, misfit


def hold_out(mask: Tensor, generator: torch.Generator) -> Tensor:
    """A random part of the sampled points, boolean as the mask ``(ky, kx)``; at least one."""
    points = mask.flatten().nonzero().flatten().cpu()
    count = max(1, round(HELD_OUT * len(points)))
    chosen = points[torch.randperm(len(points), generator=generator)[:count]]
    held_out = torch.zeros(mask.numel(), dtype=torch.bool)
    held_out[chosen] = True
    return held_out.reshape(mask.shape).to(mask.device)


def _adam(
    theta: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], step: int
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One step of Kingma and Ba (ICLR 2015), differentiable everywhere."""
    first = MOMENTS[0] * moments[0] + (1 - MOMENTS[0]) * gradient
    second = MOMENTS[1] * moments[1] + (1 - MOMENTS[1]) * gradient**2
    mean = first / (1 - MOMENTS[0] ** (step + 1))
    square = second / (1 - MOMENTS[1] ** (step + 1))
    # The root of exactly 0 has no derivative.
    return theta - RATE * mean * (square + 1e-16).rsqrt(), (first, second)
