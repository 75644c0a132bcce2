"""A small scan of a known object, and a reconstruction that is real-linear only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from snrecon.data import NoiseModel, Scan
from snrecon.physics.fourier import fft
from snrecon.physics.proximal import soft_threshold
from snrecon.physics.thermal import NoiseColouring
from snrecon.recon.base import Bound
from snrecon.recon.forward_model import forward_model
from snrecon.recon.zero_filled import matched_filter

GRID = (12, 10)
LINES = [0, 3, 5, 6, 7, 10]
COILS = 3


def random(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.complex128, generator=generator)


def scan_of(full: bool = False, spectrum: bool = False, plane: bool = False) -> Scan:
    """Noisy data of a known object ``truth()``; correlated coils, a corner without any map."""
    y, x = torch.meshgrid(
        *(torch.linspace(-1, 1, n, dtype=torch.float64) for n in GRID), indexing="ij"
    )
    centres = ((-1.0, 0.2), (0.7, -0.9), (0.5, 1.0))
    maps = torch.stack([
        torch.polar(torch.exp(-((y - a) ** 2) - (x - b) ** 2), a * x - b * y) for a, b in centres
    ])
    maps[:, :2, :2] = 0
    mask = torch.ones(GRID, dtype=torch.bool)
    if plane:
        mask = torch.rand(GRID, generator=torch.Generator().manual_seed(8)) < 0.6
    elif not full:
        mask[:] = False
        mask[LINES] = True
    mixing = random(COILS, COILS, seed=1)
    psi = 0.05 * (mixing @ mixing.mH + COILS * torch.eye(COILS))
    colour = torch.linspace(0.4, 1.6, GRID[1], dtype=torch.float64) if spectrum else None
    noise = NoiseModel(psi, colour)
    scan = Scan(fft(maps * truth(), (-2, -1)) * mask, mask, maps, noise, source="known object")
    return noisy(scan, 0)


def truth() -> Tensor:
    return 2 * random(*GRID, seed=2) * (torch.arange(GRID[1]) > 3)


def clean(scan: Scan) -> Tensor:
    assert scan.maps is not None
    return fft(scan.maps * truth(), (-2, -1)) * scan.sampled


def noisy(scan: Scan, index: int) -> Scan:
    generator = torch.Generator().manual_seed(1000 + index)
    return replace(scan, kspace=clean(scan) + NoiseColouring.of(scan).sample(generator))


class Conjugating:
    """Real-linear, not complex-linear: complex and real traces differ."""

    name = "conjugating"

    def __init__(self, strength: float = 0.4, threshold: float | None = None) -> None:
        self.strength, self.threshold = strength, threshold

    def bind(self, scan: Scan, generator: torch.Generator | None = None) -> Bound:
        model = forward_model(scan)
        scale = 1 / float((model.maps.abs() ** 2).sum(0).max())

        def function(y: Tensor) -> Tensor:
            x = scale * matched_filter(model, y)
            x = x - self.strength * x.conj().roll(1, -1) - 0.2 * x.conj()
            if self.threshold is not None:
                x = soft_threshold(x, self.threshold)
            return x * model.support

        def linearize(y: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            def product(tangents: Tensor) -> Tensor:
                return torch.vmap(lambda v: torch.func.jvp(function, (y,), (v,))[1])(tangents)

            return function(y), product

        return Bound(
            function,
            self.name,
            linear=self.threshold is None,
            maps=model.maps,
            linearize=linearize,
            at_once=64,
        )


def real_matrix(function: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """Matrix of a real-linear function of complex arrays over real and imaginary parts; it takes a
    batch."""
    n = like.numel()
    eye = torch.eye(n, dtype=torch.complex128).reshape(n, *like.shape)
    out = function(torch.cat([eye, 1j * eye])).flatten(1)
    return torch.cat([out.real, out.imag], dim=1).mT
