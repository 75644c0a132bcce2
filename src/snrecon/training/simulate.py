"""Simulated multi-coil measurements of magnitude images: phase, coils, masks, noise."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from snrecon.data import NoiseModel, Scan
from snrecon.physics.fourier import fft, ifft
from snrecon.training.batch import Batch
from snrecon.training.config import SimulationConfig
from snrecon.training.drawn_mask import draw_mask


def smooth_phase(
    grid: tuple[int, int], generator: torch.Generator, window: float = 1.0
) -> Tensor:
    """A random smooth phase in radians ``(*grid)``.

    Slope (an echo off the centre), second and third order (the shim's residue in gradient-echo
    images, often several turns between the centre and the edge of the head), and a few waves.

    Args:
        grid: ``(ky, kx)``.
        generator: Source of randomness.
        window: Share of the field of view along kx that the grid covers.
    """
    y, x = _coordinates(grid)
    x = x * window + (1 - window) * (2 * float(torch.rand((), generator=generator)) - 1)
    detail = int(torch.randint(2, 7, (), generator=generator))
    waves = _smooth((1,), grid, detail, generator)[0]
    size = torch.rand(2, generator=generator)
    c = torch.randn(10, generator=generator)
    round_part, strength = 0.7 * c[0], 20 * size[0] ** 2
    bowl = (round_part + 0.5 * c[1]) * x**2 + (round_part + 0.5 * c[2]) * y**2 + 0.7 * c[3] * x * y
    cubic = 0.3 * (c[4] * x**3 + c[5] * x**2 * y + c[6] * x * y**2 + c[7] * y**3)
    slope = 4.0 * (c[8] * x + c[9] * y)
    turn = 6.2832 * float(torch.rand((), generator=generator))
    return 3 * size[1] * waves + strength * (bowl + cubic) + slope + turn


def tissue_phase(picture: Tensor, generator: torch.Generator) -> Tensor:
    """A random phase in radians that follows the anatomy, as in gradient-echo images: contrast
    between tissues, an offset of the rim (fat), bumps where air disturbs the field.

    Args:
        picture: Magnitude image ``(ky, kx)``, not negative, mean about 1 where it is bright.
        generator: Source of randomness.
    """

    def chance(share: float) -> bool:
        return float(torch.rand((), generator=generator)) < share

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    phase = torch.zeros_like(picture)
    if chance(0.5):
        turns, offset = uniform(0.2, 1.5), uniform(0.0, 6.2832)
        phase = phase + uniform(0.0, 2.0) * torch.cos(6.2832 * turns * picture + offset)
    if chance(0.7):
        width = 2 * int(torch.randint(2, 1 + max(3, max(picture.shape) // 14), (),
                                      generator=generator)) + 1
        inside = (picture > 0.08).float()[None, None]
        near = functional.avg_pool2d(inside, width, 1, width // 2)[0, 0]
        phase = phase + uniform(-3.1416, 3.1416) * (near < uniform(0.5, 0.95))
    if chance(0.6):
        y, x = _coordinates((int(picture.shape[0]), int(picture.shape[1])))
        for _ in range(int(torch.randint(1, 4, (), generator=generator))):
            across = (y - uniform(-0.9, 0.9)) ** 2 + (x - uniform(-0.9, 0.9)) ** 2
            phase = phase + uniform(-9.0, 9.0) * torch.exp(-across / uniform(0.01, 0.2))
    return phase


def coil_maps(
    coils: int, grid: tuple[int, int], generator: torch.Generator, window: float = 1.0
) -> Tensor:
    """Maps of a random ring of loops around the head, in a whitened basis.

    Each loop falls off with its distance and turns its phase across the field, as the transverse
    field of a small loop does (Biot-Savart, dipole limit); sharpness and radius vary. The ring is
    mixed by a random matrix near the identity, which is what whitening does.

    Args:
        coils: Number of coils.
        grid: ``(ky, kx)``.
        generator: Source of randomness.
        window: Share of the field of view along kx that the grid covers.

    Returns:
        ``(coil, *grid)`` complex64, not normalised.
    """
    y, x = _coordinates(grid)
    offset = (1 - window) * (2 * float(torch.rand((), generator=generator)) - 1)
    x = x * window + offset
    ring = torch.arange(coils) + 0.35 * torch.randn(coils, generator=generator)
    angle = 2 * torch.pi * (ring / coils + torch.rand((), generator=generator))
    closeness = torch.rand((), generator=generator)
    radius = 0.65 + 0.6 * closeness + 0.1 * torch.rand(coils, generator=generator)
    height = (0.15 + 0.5 * closeness) * (0.8 + 0.5 * torch.rand(coils, generator=generator))
    fall = 0.8 + 0.9 * float(torch.rand((), generator=generator))
    view = (coils, 1, 1)
    cos, sin = angle.cos().reshape(view), angle.sin().reshape(view)
    dx, dy = x - radius.reshape(view) * cos, y - radius.reshape(view) * sin
    near, across = -(dx * cos + dy * sin), dx * sin - dy * cos
    deep = height.reshape(view)
    size = (dx**2 + dy**2 + deep**2).pow(-fall - 0.5)
    twist = 0.4 + 1.2 * float(torch.rand((), generator=generator))
    field = torch.complex((near + deep) * size, twist * across * size)
    turn = torch.polar(torch.ones(coils), 6.2832 * torch.rand(coils, generator=generator))
    field = field * turn.reshape(view)
    if float(torch.rand((), generator=generator)) < 0.6:
        # Measured arrays are less regular than rings of ideal loops: shields, overlaps, loading.
        detail = int(torch.randint(2, 7, (), generator=generator))
        strength = 0.2 + 0.8 * float(torch.rand((), generator=generator))
        uneven = strength * _smooth((2, coils), grid, detail, generator)
        field = field * torch.polar(uneven[0].exp(), uneven[1])
    mixing = torch.eye(coils) + 0.12 * torch.randn(
        coils, coils, generator=generator, dtype=torch.complex64)
    return torch.einsum("ab,byx->ayx", mixing, field)


def simulate_measurement(
    image: Tensor, maps: Tensor, estimated: Tensor, mask: Tensor, target: str,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Measure an image with noise of SD 1 and bring the data back to the image.

    Args:
        image: ``(ky, kx)`` complex, in units of the noise SD.
        maps: True maps ``(coil, ky, kx)``.
        estimated: Maps of the reconstruction, ``sum |S|^2 = 1`` on their support.
        mask: Boolean ``(ky, kx)``.
        target: ``reference`` or ``clean``.
        generator: Source of the noise.

    Returns:
        k-space ``(coil, ky, kx)`` and the target ``(ky, kx)``.
    """
    # Along a fully sampled axis the transform and its inverse cancel, and white noise stays white.
    axes = (-2, -1) if bool((mask != mask[:, :1]).any()) else (-2,)
    coil_images = maps * image
    noise = torch.randn(maps.shape, generator=generator, dtype=torch.complex64) * mask
    kspace = fft(coil_images, axes) * mask + noise
    wanted = coil_images + ifft(noise, axes) if target == "reference" else coil_images
    rest = tuple({-2, -1} - set(axes))
    kspace = fft(kspace, rest) if rest else kspace
    return kspace, (estimated.conj() * wanted).sum(dim=0)


def simulate_scan(
    image: Tensor, coils: int = 8, snr: float = 30.0, mask: Tensor | None = None, seed: int = 0
) -> tuple[Scan, Tensor]:
    """A whole scan of a magnitude image ``(ky, kx)``, with its true maps and white noise.

    Args:
        image: Real or complex.
        coils: Number of coils.
        snr: Mean SNR (complex noise SD 1) of the fully sampled image where it is brighter than
            15 % of its maximum.
        mask: Boolean ``(ky, kx)``; None samples everything.
        seed: Seed of phase (of a real image), coils and noise.

    Returns:
        The scan, with identity noise covariance, and the true image in its units.
    """
    generator = torch.Generator().manual_seed(seed)
    grid = (int(image.shape[-2]), int(image.shape[-1]))
    if not image.is_complex():
        image = torch.polar(image.float(), smooth_phase(grid, generator))
    maps = _normalised(coil_maps(coils, grid, generator))
    bright = image.abs() > 0.15 * image.abs().max()
    truth = image.to(torch.complex64) * (snr / image[bright].abs().mean())
    sampled = torch.ones(grid, dtype=torch.bool) if mask is None else mask
    noise = torch.randn(maps.shape, generator=generator, dtype=torch.complex64)
    kspace = (fft(maps * truth, (-2, -1)) + noise) * sampled
    model = NoiseModel(torch.eye(coils, dtype=torch.complex64), source="identity")
    scan = Scan(kspace=kspace, mask=sampled, maps=maps, noise=model, source="simulation")
    return scan, truth


class Simulator:
    """Draws training batches from a pool of images; batch ``i`` depends on the seed and i only.

    Args:
        pools: Images ``(image, size, size)`` real by their size.
        settings: What is simulated.
        seed: Seed of the stream.
        labelled: Share of the images, the first of each pool, whose target is known; the target of
            the others is zero.
        balance: Where some images have a target and some none: chance that a measurement is of one
            with a target. None: as many as there are.
    """

    def __init__(
        self, pools: dict[int, Tensor], settings: SimulationConfig, seed: int,
        labelled: float = 1.0, balance: float | None = None,
    ) -> None:
        self.pools, self.settings, self.seed, self.labelled = pools, settings, seed, labelled
        self.balance = balance

    def draw(self, index: int, count: int) -> Batch:
        """Batch ``index`` with ``count`` measurements."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        settings = self.settings
        grids = settings.grids
        rows, columns = grids[int(torch.randint(len(grids), (), generator=generator))]
        low, high = settings.coils
        coils = int(torch.randint(low, high + 1, (), generator=generator))
        items = [self._item((rows, columns), coils, generator) for _ in range(count)]
        kspace, maps, mask, target, known = (
            torch.stack(parts) for parts in zip(*items, strict=True))
        batch = Batch.of(kspace, maps, mask, target * known.reshape(-1, 1, 1))
        return replace(batch, labelled=known)

    def _number(self, count: int, generator: torch.Generator) -> int:
        """Which of ``count`` images."""
        known = sum(self._known(number, count) for number in range(count))
        if self.balance is None or known in (0, count):
            return int(torch.randint(count, (), generator=generator))
        taught = float(torch.rand((), generator=generator)) < self.balance
        low, high = (0, known) if taught else (known, count)
        return int(torch.randint(low, high, (), generator=generator))

    def _known(self, number: int, count: int) -> bool:
        return number < self.labelled * count

    def _item(
        self, grid: tuple[int, int], coils: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        settings = self.settings
        pool = self.pools[max(grid)]
        number = self._number(pool.shape[0], generator)
        picture = pool[number]
        if float(torch.rand((), generator=generator)) < 0.5:
            picture = picture.flip(0)
        rows, columns = grid
        top = int(torch.randint(picture.shape[0] - rows + 1, (), generator=generator))
        # Strips lie where the head is rather than in the air beside it.
        spare = picture.shape[1] - columns
        left = int(spare * (0.15 + 0.7 * float(torch.rand((), generator=generator))))
        picture = picture[top : top + rows, left : left + columns]
        maps = coil_maps(coils, grid, generator, columns / pool.shape[-1])
        power = maps.abs().square().sum(dim=0).sqrt()
        shading = (power / power.mean()).pow(float(torch.rand((), generator=generator)))
        maps = maps / power
        low, high = settings.snr
        level = low * (high / low) ** float(torch.rand((), generator=generator))
        phase = smooth_phase(grid, generator, columns / pool.shape[-1])
        phase = phase + tissue_phase(picture, generator)
        image = torch.polar(torch.ones(grid), phase) * (picture * shading * level)
        estimated = self._estimated(maps, picture, generator)
        # A strip has no full kx axis, so it cannot be undersampled along it.
        mask = draw_mask(settings, grid, generator, strip=grid[0] != grid[1])
        kspace, target = simulate_measurement(
            image, maps, estimated, mask, settings.target, generator)
        known = torch.tensor(self._known(number, pool.shape[0]))
        return kspace, estimated, mask, target, known

    def _estimated(self, maps: Tensor, picture: Tensor, generator: torch.Generator) -> Tensor:
        """Maps as an estimate from calibration lines would give them: a few per cent off, and
        often only known near the head."""
        grid = (int(maps.shape[-2]), int(maps.shape[-1]))
        if float(torch.rand((), generator=generator)) < 0.75:
            detail = int(torch.randint(3, 13, (), generator=generator))
            size = self.settings.map_error * float(torch.rand((), generator=generator))
            parts = _smooth((2, maps.shape[0]), grid, detail, generator)
            typical = 1.0 / maps.shape[0] ** 0.5
            maps = maps + size * typical / 2**0.5 * torch.complex(parts[0], parts[1])
        maps = _normalised(maps)
        if float(torch.rand((), generator=generator)) < 0.7:
            width = 2 * (max(grid) // int(torch.randint(12, 32, (), generator=generator))) + 1
            near = functional.avg_pool2d(picture.abs()[None, None], width, 1, width // 2)[0, 0]
            maps = maps * (near > 0.06)
        return maps


def _normalised(maps: Tensor) -> Tensor:
    """``sum |S|^2 = 1`` over the coils."""
    return maps / maps.abs().square().sum(dim=-3, keepdim=True).sqrt()


def _coordinates(grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """``(ky, 1)`` and ``(kx,)`` from -1 to 1."""
    y, x = (torch.linspace(-1, 1, n) for n in grid)
    return y[:, None], x


def _smooth(
    lead: tuple[int, ...], grid: tuple[int, int], detail: int, generator: torch.Generator
) -> Tensor:
    """Random smooth real fields ``(*lead, *grid)`` of about unit variance; ``detail`` bumps over
    the longer side."""
    longest = max(grid)
    coarse = [max(2, round(detail * n / longest) + 1) for n in grid]
    knots = torch.randn(1, int(torch.tensor(lead).prod()), *coarse, generator=generator)
    field = functional.interpolate(knots, size=grid, mode="bicubic", align_corners=True)
    return field.reshape(*lead, *grid)
