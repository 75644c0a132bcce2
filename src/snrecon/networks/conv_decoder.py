"""A convolutional decoder that is fitted to one scan and never trained.

Darestani and Heckel, Accelerated MRI with un-trained neural networks, IEEE Trans Comput Imaging
7:724 (2021), arXiv 2007.02471: the network's architecture alone is the prior.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Activation = Literal["relu", "silu"]
LONG_SIDE = 8
"""Points of the input along the longer side of the grid, as of the published 8 x 4."""


class ConvDecoder(nn.Module):
    """From a small fixed random input to an image: ``layers - 1`` times nearest upsampling, 3x3
    convolution, ReLU and normalisation, then the same once more without upsampling and a 1x1
    convolution.

    The sizes are a geometric sequence from the input's to the grid's, rounded up. Normalisation is
    batch normalisation with the statistics of the one image at hand, during the fit and after it.
    Published: 7 layers, 160 channels, an 8 x 4 input, two outputs a coil; 1.6 million weights.

    ReLU can be exchanged for the smooth SiLU, ``x sigmoid(x)``: what is fitted to data then has a
    derivative, where with ReLU the optimum itself sits on edges between the linear pieces.

    Weights are drawn as torch draws those of its convolutions, uniform within one over the root of
    the number of inputs, but from ``generator``; the input is standard normal.

    Args:
        grid: ``(ky, kx)`` of the output; any size.
        outputs: Channels of the output.
        layers: 3x3 convolutions, at least 2.
        channels: Channels between them.
        start: ``(ky, kx)`` of the input. None: 8 along the longer side, in the grid's proportion.
        generator: Source of input and weights. None: seed 0.
        activation: ``"relu"``, or ``"silu"``.

    Attributes:
        code: The fixed input ``(1, channels, *start)``, a buffer.
    """

    code: Tensor

    def __init__(
        self,
        grid: tuple[int, int],
        outputs: int,
        layers: int = 7,
        channels: int = 160,
        start: tuple[int, int] | None = None,
        generator: torch.Generator | None = None,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        self.activate = functional.relu if activation == "relu" else functional.silu
        self.sizes = layer_sizes(grid, layers, start)
        first = (min(grid[0], start[0]), min(grid[1], start[1])) if start else start_size(grid)
        self.convolutions = nn.ModuleList(
            _drawn(generator, channels, channels, 3, padding=1) for _ in range(layers)
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(channels, track_running_stats=False) for _ in range(layers)
        )
        self.leave = _drawn(generator, channels, outputs, 1)
        self.register_buffer("code", torch.randn(1, channels, *first, generator=generator))

    def forward(self) -> Tensor:
        """``(outputs, ky, kx)`` real."""
        x = self.code
        for size, convolve, norm in zip(self.sizes, self.convolutions, self.norms, strict=True):
            if x.shape[-2:] != size:
                x = functional.interpolate(x, size=size, mode="nearest")
            x = norm(self.activate(convolve(x)))
        image: Tensor = self.leave(x)[0]
        return image


def start_size(grid: tuple[int, int]) -> tuple[int, int]:
    """Size of the input: 8 along the longer side, in the grid's proportion along the other."""
    longer = max(grid)
    first, second = (min(n, max(1, round(LONG_SIDE * n / longer))) for n in grid)
    return first, second


def layer_sizes(
    grid: tuple[int, int], layers: int, start: tuple[int, int] | None = None
) -> list[tuple[int, int]]:
    """``(ky, kx)`` after each layer: geometric up to the grid, which the last two layers share."""
    begin = start_size(grid) if start is None else start
    steps = layers - 1
    sizes = []
    for n in range(1, steps):
        # Without the small term rounding errors of the power lift exact results to the next size.
        size = [
            math.ceil(min(b, g) * (g / min(b, g)) ** (n / steps) - 1e-9)
            for g, b in zip(grid, begin, strict=True)
        ]
        sizes.append((size[0], size[1]))
    return [*sizes, (grid[0], grid[1]), (grid[0], grid[1])]


def _drawn(generator: torch.Generator, *sizes: int, **more: int) -> nn.Conv2d:
    """A convolution whose weights come from the generator."""
    layer = nn.utils.skip_init(nn.Conv2d, *sizes, **more)
    assert isinstance(layer, nn.Conv2d)
    bound = 1 / math.sqrt(layer.weight[0].numel())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    return layer
