"""fastMRI's U-Net, with the parameter names of its published weights.

Zbontar et al., arXiv:1811.08839 (2018), after Ronneberger et al., MICCAI 2015: at every level two
3x3 convolutions, each followed by instance normalisation and a leaky rectifier; average pooling
down, transposed convolution up, the levels joined by concatenation. Instance normalisation uses
the mean and variance of the whole image, which makes a voxel's output depend on every voxel; that
dependence is differentiated like everything else.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from snrecon.errors import InputError
from snrecon.networks.linearized import Tangent, halved, linearize_layers
from snrecon.networks.normalisation import (
    InstanceNorm,
    center_and_scale,
    channels_go_last,
    channels_last,
    d_center_and_scale,
)
from snrecon.networks.varnet import d_normalised, root_mean_square

CLAMP = 6.0
"""fastMRI cuts the normalised magnitude image at this many standard deviations."""
GRID = (-2, -1)
INITIAL_LAMBDA = 0.05
TINY = 1e-11
"""fastMRI's guard of that normalisation, in the units of the image."""


class Unet(nn.Module):
    """The network itself; :func:`magnitude_unet` and :func:`complex_unet` apply it to images.

    Args:
        in_chans: Channels in: 1 for magnitude images, 2 for complex ones.
        out_chans: Channels out, the same.
        chans: Channels of the finest level, doubled at every pooling (fastMRI: 32, leaderboard
            256).
        pools: Number of poolings.
        drop: Probability of dropping a channel while training; no part of stored weights.
        sense_steps: What images it is for: 0, zero-filled ones (fastMRI); else those after so many
            steps of :func:`snrecon.networks.regularised.sense_image`. A record that goes with the
            weights; who applies the network makes the images.
        consistency_steps: By how many steps of
            :func:`snrecon.networks.regularised.consistent_image` its image is drawn to the data,
            as Hyun et al., Phys Med Biol 63:135007 (2018), put the measured samples back; 0: none
            (fastMRI). Their lambda, :attr:`lamda`, is learned.

    Raises:
        InputError: for ``sense_steps`` or ``consistency_steps`` with magnitude images.
    """

    def __init__(
        self,
        in_chans: int = 2,
        out_chans: int = 2,
        chans: int = 32,
        pools: int = 4,
        drop: float = 0.0,
        sense_steps: int = 0,
        consistency_steps: int = 0,
    ) -> None:
        super().__init__()
        if (sense_steps or consistency_steps) and in_chans != 2:
            raise InputError("SENSE images are complex: sense_steps and consistency_steps need a "
                             "U-Net of two channels.")
        self.sense_steps, self.consistency_steps = sense_steps, consistency_steps
        if consistency_steps:
            self.log_lamda = nn.Parameter(torch.tensor(math.log(INITIAL_LAMBDA)))
        self.in_chans, self.out_chans, self.chans, self.pools = in_chans, out_chans, chans, pools
        self.drop = drop
        widths = [chans * 2**level for level in range(pools + 1)]
        self.down_sample_layers = nn.ModuleList(
            _ConvBlock(before, after, drop)
            for before, after in zip([in_chans, *widths], widths[:-1])
        )
        self.conv = _ConvBlock(widths[-2], widths[-1], drop)
        self.up_transpose_conv = nn.ModuleList()
        self.up_conv = nn.ModuleList()
        for width in reversed(widths[:-1]):
            self.up_transpose_conv.append(_TransposeBlock(2 * width, width))
            self.up_conv.append(_ConvBlock(2 * width, width, drop))
        last = self.up_conv[-1]
        self.up_conv[-1] = nn.Sequential(last, nn.Conv2d(chans, out_chans, kernel_size=1))

    @property
    def lamda(self) -> Tensor:
        """Weight of the image against the data's, positive; 1 is that of fully sampled data."""
        return self.log_lamda.exp()

    def start_small(self, deviation: float = 1e-3) -> None:
        """Draw the last layer's weights so small that the output is next to nothing."""
        last = self.up_conv[-1]
        assert isinstance(last, nn.Sequential)
        assert isinstance(last[-1], nn.Conv2d)
        assert last[-1].bias is not None
        nn.init.normal_(last[-1].weight, std=deviation)
        nn.init.zeros_(last[-1].bias)

    def fits(self, grid: tuple[int, ...]) -> bool:
        """Whether images ``(ky, kx)`` are large enough: two voxels at the coarsest level, for one
        has no variance."""
        coarsest = [n >> self.pools for n in grid]
        return min(coarsest) >= 1 and math.prod(coarsest) >= 2

    def forward(self, image: Tensor) -> Tensor:
        """``(batch, in_chans, ky, kx)`` real to ``(batch, out_chans, ky, kx)``."""
        # With the channels last, as views of complex images have them, a training step takes half
        # as long again.
        x = channels_last(image) if channels_go_last(image) else image.contiguous()
        levels = []
        for layer in self.down_sample_layers:
            x = layer(x)
            levels.append(x)
            x = functional.avg_pool2d(x, kernel_size=2)
        x = self.conv(x)
        for up, conv in zip(self.up_transpose_conv, self.up_conv, strict=True):
            skip = levels.pop()
            x = _reflected(up(x), skip)
            x = conv(torch.cat([x, skip], dim=1))
        return x

    def linearize(self, image: Tensor) -> tuple[Tensor, Tangent]:
        """The output and the derivative at given images, without any graph.

        Equal to ``torch.func.jvp``, dropout left out, at the cost of one forward pass for each
        tangent: see :mod:`snrecon.networks.linearized`.

        Args:
            image: ``(items, in_chans, ky, kx)`` real.

        Returns:
            The output ``(items, out_chans, ky, kx)`` and a function from tangents
            ``(batch, items, in_chans, ky, kx)`` to ``(batch, items, out_chans, ky, kx)``. Both
            without gradients.
        """
        down, up, levels = [], [], []
        with torch.no_grad():
            x = image
            for layer in self.down_sample_layers:
                x, tangent = linearize_layers(layer, x)
                down.append(tangent)
                levels.append(x)
                x = functional.avg_pool2d(x, kernel_size=2)
            x, coarsest = linearize_layers(self.conv, x)
            for transpose, conv in zip(self.up_transpose_conv, self.up_conv, strict=True):
                skip = levels.pop()
                x, rise = linearize_layers(transpose, x)
                x, join = linearize_layers(conv, torch.cat([_reflected(x, skip), skip], dim=1))
                up.append((rise, join))

        def jvp(tangents: Tensor) -> Tensor:
            with torch.no_grad():
                dx = tangents.flatten(0, 1).contiguous(memory_format=torch.channels_last)
                d_levels = []
                for layer in down:
                    d_levels.append(layer(dx))
                    dx = halved(d_levels[-1])
                dx = coarsest(dx)
                for rise, join in up:
                    d_skip = d_levels.pop()
                    dx = join(torch.cat([_reflected(rise(dx), d_skip), d_skip], dim=1))
                return dx.unflatten(0, tangents.shape[:2])

        return x, jvp


class _ConvBlock(nn.Module):
    """Two times [3x3 convolution, instance normalisation, leaky rectifier, dropout]."""

    def __init__(self, before: int, after: int, drop: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (before, after):
            layers += [
                nn.Conv2d(channels, after, kernel_size=3, padding=1, bias=False),
                InstanceNorm(after),
                nn.LeakyReLU(0.2),
                nn.Dropout2d(drop),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


class _TransposeBlock(nn.Module):
    """Twice the resolution: 2x2 transposed convolution, instance normalisation, rectifier."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(before, after, kernel_size=2, stride=2, bias=False),
            InstanceNorm(after),
            nn.LeakyReLU(0.2),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


def _reflected(x: Tensor, like: Tensor) -> Tensor:
    """The last row and column that pooling an odd size lost, by reflection as published."""
    if x.shape[-1] != like.shape[-1]:
        x = torch.cat([x, x[..., -2:-1]], dim=-1)
    if x.shape[-2] != like.shape[-2]:
        x = torch.cat([x, x[..., -2:-1, :]], dim=-2)
    return x


def magnitude_unet(network: nn.Module, image: Tensor) -> Tensor:
    """A real image through a one-channel network, as in fastMRI's U-Net demo.

    The image's mean and standard deviation are normalised to 0 and 1, what lies beyond 6 is cut,
    and the output is scaled back; all of it is differentiated.

    Args:
        network: ``(batch, 1, ky, kx)`` to the same.
        image: ``(..., ky, kx)`` real, not negative.

    Returns:
        ``(..., ky, kx)`` real.
    """
    flat = image.reshape(-1, 1, *image.shape[-2:])
    mean, size = center_and_scale(flat, GRID)
    x = ((flat - mean) / (size + TINY)).clamp(-CLAMP, CLAMP)
    y = network(x).to(x.dtype) * size + mean
    return y.reshape(image.shape)


def linearize_magnitude_unet(network: Unet, image: Tensor) -> tuple[Tensor, Tangent]:
    """:func:`magnitude_unet` and its derivative at one image ``(ky, kx)``, without any graph.

    Returns:
        The image ``(ky, kx)`` and a function from tangents ``(batch, ky, kx)`` to the same.
    """
    with torch.no_grad():
        flat = image[None, None]
        mean, size = center_and_scale(flat, GRID)
        centred = flat - mean
        x = centred / (size + TINY)
        inside = (x.abs() <= CLAMP).to(x.dtype)
        y, network_jvp = network.linearize(x.clamp(-CLAMP, CLAMP))

    def jvp(tangents: Tensor) -> Tensor:
        with torch.no_grad():
            dx = tangents[:, None, None]
            d_mean, d_size = d_center_and_scale(dx, centred, size, GRID)
            dx = (dx - d_mean - x * d_size).div_(size + TINY).mul_(inside)
            return (network_jvp(dx) * size + y * d_size + d_mean)[:, 0, 0]

    return (y * size + mean)[0, 0], jvp


def complex_unet(network: nn.Module, image: Tensor, support: Tensor) -> Tensor:
    """A complex image in SNR units through a two-channel network, which adds its correction.

    The image is divided by its root mean square over the support, and the network's output is
    added to it: instance normalisation loses the size of its input, so that without the direct way
    the network would have to learn to bring it back.

    Args:
        network: ``(batch, 2, ky, kx)`` to the same: real and imaginary part.
        image: ``(..., ky, kx)`` complex, zero off the support.
        support: Boolean ``(ky, kx)`` (or with batch axes like ``image``).

    Returns:
        ``(..., ky, kx)`` complex, exactly zero off the support.
    """
    shape = image.shape
    flat = image.reshape(-1, *shape[-2:])
    if support.ndim > 2:
        support = support.expand(shape).reshape(flat.shape)
    size = root_mean_square(flat, support)
    x = flat / size
    correction = complex_of(network(channels_of(x)).to(x.real.dtype))
    return ((x + correction * support) * size).reshape(shape)


def linearize_complex_unet(
    network: Unet, image: Tensor, support: Tensor
) -> tuple[Tensor, Tangent]:
    """:func:`complex_unet` and its derivative at one image ``(ky, kx)``, without any graph.

    Returns:
        The image ``(ky, kx)`` and a function from tangents ``(batch, ky, kx)`` to the same.
    """
    with torch.no_grad():
        size = root_mean_square(image, support)
        points = max(int(support.sum()), 1)
        x = image / size
        correction, network_jvp = network.linearize(channels_of(x[None]))
        y = x + complex_of(correction)[0] * support

    def jvp(tangents: Tensor) -> Tensor:
        with torch.no_grad():
            dx, d_size, _ = d_normalised(tangents, x, size, points)
            d_correction = complex_of(network_jvp(channels_of(dx.unsqueeze(1))))
            dx.add_(d_correction.squeeze(1).mul_(support))
            return dx.mul_(size).add_(y * d_size)

    return y * size, jvp


def channels_of(image: Tensor) -> Tensor:
    """Complex ``(..., ky, kx)`` to real and imaginary part ``(..., 2, ky, kx)``, a view."""
    return torch.view_as_real(image).movedim(-1, -3)


def complex_of(channels: Tensor) -> Tensor:
    """Real and imaginary part ``(..., 2, ky, kx)`` to complex ``(..., ky, kx)``."""
    return torch.complex(*channels.unbind(-3))  # a view would depend on the layout in memory
