"""NCSN++: the noise-conditional score network of score-based diffusion.

Design: Song et al., Score-based generative modeling through stochastic differential equations, ICLR
2021, as score-MRI uses it (Chung and Ye, Med Image Anal 80:102479, 2022): BigGAN residual blocks,
resampling with a binomial filter, progressive residual input, sums divided by sqrt(2), attention on
the coarsest level, Fourier features of the logarithm of the noise level. Plain PyTorch throughout;
any image size. With ``preconditioned`` the same layers predict a denoised image in the form of
Karras et al., NeurIPS 2022, equations 7 and 8, which trains in far fewer steps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from snrecon.errors import InputError
from snrecon.networks.resample import doubled, halved, smoothed
from snrecon.networks.score import PUBLISHED_RANGE

DATA_SD = 0.3
"""Standard deviation of the images about 0 that the preconditioning assumes."""
FOURIER_SCALE = 16.0
"""Spread of the frequencies of the published embedding of log sigma."""
PRECONDITIONED_SCALE = 1.0
"""The same for the embedding of a quarter of log sigma."""
HALF = math.sqrt(0.5)


class NCSNpp(nn.Module):
    """A score of real images at any noise level; see :class:`snrecon.networks.score.Score`.

    Args:
        features: Channels of the finest level.
        multipliers: One digit for each level, from fine to coarse: what the channels are multiplied
            with. 1222: four levels.
        blocks: Residual blocks at each level on the way down; one more on the way up.
        patch: Side of the squares of pixels that enter as channels; 2 makes a network four times
            as cheap. 1: as published.
        preconditioned: 1: the layers predict a denoised image from an input of unit variance;
            0: as published, the score times sigma from ``2 x - 1``.
        low, high: Noise levels that it is trained for.

    Raises:
        InputError: if a multiplier is 0.
    """

    def __init__(
        self, features: int = 128, multipliers: int = 1222, blocks: int = 4,
        patch: int = 1, preconditioned: int = 0, low: float = PUBLISHED_RANGE[0],
        high: float = PUBLISHED_RANGE[1],
    ) -> None:
        super().__init__()
        self.features, self.multipliers, self.blocks = features, multipliers, blocks
        self.patch, self.preconditioned = patch, preconditioned
        self.register_buffer("range", torch.tensor([low, high]))
        digits = [int(digit) for digit in str(multipliers)]
        if 0 in digits:
            raise InputError(f"multipliers = {multipliers}: write one digit from 1 to 9 for each "
                             "level, 1222 for instance.")
        widths = [features * digit for digit in digits]
        self.levels = len(widths)
        scale = PRECONDITIONED_SCALE if preconditioned else FOURIER_SCALE
        self.frequencies = nn.Parameter(torch.randn(features) * scale, requires_grad=False)
        embedded = 4 * features
        self.embed1 = _linear(2 * features, embedded)
        self.embed2 = _linear(embedded, embedded)
        self.first = _conv(patch**2, features)
        kept = [features]
        before = features
        self.down, self.shrink, self.pyramid = (nn.ModuleList() for _ in range(3))
        coming = patch**2
        for level, width in enumerate(widths):
            stage = nn.ModuleList()
            for _ in range(blocks):
                stage.append(Residual(before, width, embedded))
                before = width
                kept.append(before)
            self.down.append(stage)
            if level < self.levels - 1:
                self.shrink.append(Residual(before, before, embedded, "halve"))
                self.pyramid.append(Shrink(coming, before))
                coming = before
                kept.append(before)
        self.middle = nn.ModuleList([
            Residual(before, before, embedded), Attention(before),
            Residual(before, before, embedded)])
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for width in reversed(widths):
            stage = nn.ModuleList()
            for _ in range(blocks + 1):
                stage.append(Residual(before + kept.pop(), width, embedded))
                before = width
            self.up.append(stage)
            if len(self.up) < self.levels:
                self.grow.append(Residual(before, before, embedded, "double"))
        self.norm = _norm(before)
        self.last = _conv(before, patch**2, 0.0)

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The smallest and the largest noise level it is trained for."""
        low, high = self.get_buffer("range").tolist()
        return float(low), float(high)

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """The score of images in a unit in which magnitudes lie in about [0, 1].

        Args:
            x: ``(batch, ky, kx)`` real.
            sigma: Noise level, ``()`` or ``(batch,)``.

        Returns:
            ``(batch, ky, kx)``.
        """
        level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(x.shape[0])
        spread = level.reshape(-1, 1, 1)
        if not self.preconditioned:
            return self._layers(2 * x - 1, level.log()).to(x.dtype) / spread
        power = spread.square() + DATA_SD**2
        # Not the denoised image's difference from x, which would be lost to rounding.
        return DATA_SD * power.rsqrt() / spread * self._unit(x, level) - x / power

    def denoised(self, x: Tensor, level: Tensor) -> Tensor:
        """``x + sigma^2 score``, of a preconditioned network; ``level`` is ``(batch,)``."""
        spread = level.reshape(-1, 1, 1)
        power = spread.square() + DATA_SD**2
        answer = spread * DATA_SD * power.rsqrt() * self._unit(x, level)
        return DATA_SD**2 / power * x + answer

    def _unit(self, x: Tensor, level: Tensor) -> Tensor:
        """The layers between an input and an output of unit variance."""
        power = level.reshape(-1, 1, 1).square() + DATA_SD**2
        return self._layers(x * power.rsqrt(), level.log() / 4).to(x.dtype)

    def _layers(self, x: Tensor, level: Tensor) -> Tensor:
        rows, columns = x.shape[-2:]
        x = x.to(self.first.weight.dtype).unsqueeze(1)
        x = _padded(x, self.patch * 2 ** (self.levels - 1))
        x = functional.pixel_unshuffle(x, self.patch)
        phase = 2 * math.pi * level.to(x.dtype).unsqueeze(1) * self.frequencies
        code = torch.cat([phase.sin(), phase.cos()], dim=1)
        code = functional.silu(self.embed2(functional.silu(self.embed1(code))))
        coming = x
        h = self.first(x)
        kept = [h]
        for number, stage in enumerate(self.down):
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                h = block(h, code)
                kept.append(h)
            if number < self.levels - 1:
                coming = HALF * (self.pyramid[number](coming) + self.shrink[number](h, code))
                h = coming
                kept.append(h)
        h = self.middle[2](self.middle[1](self.middle[0](h, code)), code)
        for number, stage in enumerate(self.up):
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                h = block(torch.cat([h, kept.pop()], dim=1), code)
            if number < self.levels - 1:
                h = self.grow[number](h, code)
        answer = functional.pixel_shuffle(self.last(functional.silu(self.norm(h))), self.patch)
        return answer[:, 0, :rows, :columns]


class Residual(nn.Module):
    """Norm, SiLU, 3x3 convolution, noise level, norm, SiLU, 3x3 convolution, and the input.

    Args:
        before, after: Channels.
        embedded: Length of the embedding of the noise level.
        size: ``same``, ``halve`` or ``double``.
    """

    def __init__(self, before: int, after: int, embedded: int, size: str = "same") -> None:
        super().__init__()
        self.change = {"same": None, "halve": halved, "double": doubled}[size]
        self.norm1 = _norm(before)
        self.conv1 = _conv(before, after)
        self.level = _linear(embedded, after)
        self.norm2 = _norm(after)
        self.conv2 = _conv(after, after, 0.0)
        plain = before == after and size == "same"
        self.skip = None if plain else nn.Conv2d(before, after, 1)
        if self.skip is not None:
            _initialise(self.skip, 1.0)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """``(batch, before, ky, kx)`` and ``(batch, embedded)``, after its SiLU."""
        h = functional.silu(self.norm1(x))
        if self.change is not None:
            h, x = self.change(h), self.change(x)
        h = self.conv1(h) + self.level(code)[:, :, None, None]
        h = self.conv2(functional.silu(self.norm2(h)))
        return HALF * (h + (x if self.skip is None else self.skip(x)))


class Attention(nn.Module):
    """Self-attention of one head over all positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.query, self.key, self.value, self.out = (
            _linear(channels, channels, scale) for scale in (0.1, 0.1, 0.1, 0.0))

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channel, ky, kx)``."""
        flat = self.norm(x).flatten(2).transpose(1, 2)
        query, key, value = self.query(flat), self.key(flat), self.value(flat)
        weights = (query @ key.transpose(1, 2) / math.sqrt(x.shape[1])).softmax(dim=-1)
        answer = self.out(weights @ value).transpose(1, 2).reshape(x.shape)
        return HALF * (x + answer)


class Shrink(nn.Module):
    """Filter and 3x3 convolution to half the size."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, stride=2)
        _initialise(self.conv, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, before, ky, kx)``, both axes even."""
        answer: Tensor = self.conv(smoothed(x))
        return answer


def _padded(x: Tensor, multiple: int) -> Tensor:
    """Larger, to a multiple along both axes: reflected, so that noise stays noise."""
    rows, columns = -x.shape[-2] % multiple, -x.shape[-1] % multiple
    if not rows and not columns:
        return x
    few = rows >= x.shape[-2] or columns >= x.shape[-1]
    return functional.pad(x, (0, columns, 0, rows), mode="replicate" if few else "reflect")


def _norm(channels: int) -> nn.GroupNorm:
    most = max(1, min(channels // 4, 32))
    groups = next(n for n in range(most, 0, -1) if channels % n == 0)
    return nn.GroupNorm(groups, channels, eps=1e-6)


def _conv(before: int, after: int, scale: float = 1.0) -> nn.Conv2d:
    layer = nn.Conv2d(before, after, 3, padding=1)
    _initialise(layer, scale)
    return layer


def _linear(before: int, after: int, scale: float = 1.0) -> nn.Linear:
    layer = nn.Linear(before, after)
    _initialise(layer, scale)
    return layer


def _initialise(layer: nn.Conv2d | nn.Linear, scale: float) -> None:
    """Uniform with variance ``scale / ((inputs + outputs) / 2)``, as published; 0 is nearly 0."""
    nn.init.xavier_uniform_(layer.weight, math.sqrt(max(scale, 1e-10)))
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
