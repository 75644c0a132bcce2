"""The variational network: unrolled gradient descent whose regulariser is a small CNN.

Form of Hammernik et al., Magn Reson Med 79:3055 (2018), in the image domain:
``x <- x - a_k (G x - b) + CNN_k(x)`` with ``b = A^H y`` and ``G = A^H A`` of whitened data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from snrecon.networks.blocks import HourglassCNN

Gram = Callable[[Tensor], Tensor]

FLOOR = 1e-6
"""Added to the mean square of ``b``. Whitened noise alone gives about 1 over the acceleration, so
this only keeps an all-zero input from dividing by zero."""


class VarNet(nn.Module):
    """Unrolled reconstruction with learned step sizes, in SNR units.

    The input must be whitened (noise variance 1 for a complex k-space sample) and the coil maps
    normalised to ``sum |S|^2 = 1``, so that the size of the image is its SNR. Inside, the image is
    divided by the root mean square of ``b``, a smooth function that is differentiated like
    everything else, and the network is told the logarithm of that size: the noise level relative
    to the image. Beside the image, each CNN sees the data-consistency gradient and the last
    update, from which it can accelerate the descent.

    Args:
        unrolls: Number of iterations.
        features: Channels of each CNN at full resolution (twice as many at half resolution).
    """

    def __init__(self, unrolls: int = 8, features: int = 24) -> None:
        super().__init__()
        self.unrolls, self.features = unrolls, features
        self.steps = nn.Parameter(torch.ones(unrolls))
        self.cnns = nn.ModuleList(HourglassCNN(7, 2, features) for _ in range(unrolls))

    def _stages(self) -> Iterator[tuple[Tensor, HourglassCNN]]:
        """Step size and CNN of every unroll."""
        for step, cnn in zip(self.steps, self.cnns, strict=True):
            assert isinstance(cnn, HourglassCNN)
            yield step, cnn

    def forward(self, b: Tensor, gram: Gram, support: Tensor) -> Tensor:
        """Reconstruct.

        Args:
            b: ``A^H y`` of whitened data, ``(..., ky, kx)`` complex, zero off the support.
            gram: ``A^H A`` on arrays ``(..., ky, kx)``.
            support: Boolean ``(ky, kx)`` (or with batch axes like ``b``): where the maps are
                non-zero.

        Returns:
            Image ``(..., ky, kx)``, exactly zero off the support.
        """
        shape = b.shape
        # One explicit batch axis from the start: it keeps the channels last in memory.
        b = b.reshape(-1, *shape[-2:])
        if support.ndim > 2:
            support = support.expand(shape).reshape(b.shape)
        size = root_mean_square(b, support)
        b = b / size
        level = noise_level(size)
        x, update = b, torch.zeros_like(b)
        for step, cnn in self._stages():
            gradient = gram(x) - b
            update = _to_complex(cnn(_channels(x, gradient, update, level)), x) * support
            update = update - step * gradient
            x = x + update
        return (x * size).reshape(shape)

    def linearize(
        self, b: Tensor, gram: Gram, support: Tensor
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The output and the derivative at one ``b`` ``(ky, kx)``, without any graph.

        The network is piecewise linear apart from its normalisation, so the derivative is a pass
        through the same layers without biases, each rectifier replaced by where it was open. This
        costs one forward pass for each tangent and equals ``torch.func.jvp``.

        Returns:
            The image ``(ky, kx)`` and a function from tangents ``(batch, ky, kx)`` of ``b`` to
            tangents ``(batch, ky, kx)`` of the image. Both without gradients.
        """
        with torch.no_grad():
            b = b.unsqueeze(0)
            size = root_mean_square(b, support)
            point = b / size
            level = noise_level(size)
            x, update = point, torch.zeros_like(point)
            gates = []
            for step, cnn in self._stages():
                gradient = gram(x) - point
                output, gate = cnn.linearize(_channels(x, gradient, update, level))
                gates.append(gate)
                update = _to_complex(output, x) * support - step * gradient
                x = x + update
            points = int(support.sum())
            image = x

        def jvp(tangents: Tensor) -> Tensor:
            with torch.no_grad():
                d_b, d_size, d_level = d_normalised(tangents, point, size, points)
                dx, d_update = d_b, torch.zeros_like(d_b)
                for (step, cnn), gate in zip(self._stages(), gates, strict=True):
                    d_gradient = gram(dx) - d_b  # gram may give its argument back
                    channels = _channels(dx, d_gradient, d_update, d_level)
                    d_update = _to_complex(cnn.tangent(channels, gate), dx).mul_(support)
                    d_update.sub_(step * d_gradient)
                    dx = dx + d_update
                return dx.mul_(size).add_(image * d_size)

        return (image * size).squeeze(0), jvp


def root_mean_square(b: Tensor, support: Tensor) -> Tensor:
    """Root of the mean of ``|b|^2`` over the support, ``(..., 1, 1)``; smooth in ``b``."""
    power = (b.real**2 + b.imag**2).sum(dim=(-2, -1), keepdim=True)
    points = support.sum(dim=(-2, -1), keepdim=True).clamp(min=1)
    return torch.sqrt(power / points + FLOOR)


def noise_level(size: Tensor) -> Tensor:
    """The channel that tells the network how strong the noise is: minus the logarithm of the
    image's size in SNR units, shifted and scaled to order 1 for sizes of 1 to 1000."""
    return (3.0 - torch.log(size)) / 2.0


def d_normalised(
    tangents: Tensor, point: Tensor, size: Tensor, points: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of ``b / size``, ``size`` and the noise level along tangents of ``b``.

    Args:
        tangents: ``(batch, ky, kx)``.
        point: ``b / size``, ``(1, ky, kx)``.
        size: :func:`root_mean_square` of ``b``.
        points: Voxels of the support; without any, b and its tangents are zero, and so are these.
    """
    inner = (point.conj() * tangents).real.sum(dim=(-2, -1), keepdim=True)
    d_size = inner / max(points, 1)
    return (tangents - point * d_size) / size, d_size, -d_size / (2.0 * size)


def _channels(x: Tensor, gradient: Tensor, update: Tensor, level: Tensor) -> Tensor:
    """Real channels ``(batch, 7, ky, kx)``, laid out with the channels last in memory."""
    parts = [torch.view_as_real(part) for part in (x, gradient, update)]
    parts.append(level.expand(x.shape).unsqueeze(-1))
    return torch.cat(parts, dim=-1).movedim(-1, -3)


def _to_complex(channels: Tensor, like: Tensor) -> Tensor:
    # Not a view of the pairs, which would depend on the layout in memory.
    return torch.complex(*channels.to(like.real.dtype).unbind(-3))
