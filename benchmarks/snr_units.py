"""SNR units: noise alone through every linear reconstruction has the SD that the map states.

Noise-only scans (no object) are reconstructed, and the SD is measured on the real channel over
voxels and draws, relative to the analytic sigma of each voxel, so that 1 is right. Homodyne keeps
the phase of a separate object scan; its noise is measured along that phase.

    python -m benchmarks.snr_units [--quick]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.table import publish, table
from snrecon.data import NoiseModel, Scan
from snrecon.noise import noise_map
from snrecon.physics.phantom import coil_maps
from snrecon.recon.base import Reconstructor
from snrecon.recon.partial_fourier import PartialFourier, asymmetric_sampling
from snrecon.recon.sense import Sense
from snrecon.recon.zero_filled import ZeroFilled

GRID = (96, 96)
COILS = 8
FRACTION = 0.625


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    case: str
    noise: str
    ratio: float
    """Measured SD over analytic sigma, RMS over voxels with noise."""
    error: float
    """Standard error of the ratio from the spread over draws."""
    snr_unit: float
    """Median of sigma * sqrt(2): 1 is fully sampled SENSE with normalised whitened maps."""


def noise_models() -> dict[str, NoiseModel]:
    """White, correlated, and correlated noise coloured along the readout."""
    generator = torch.Generator().manual_seed(11)
    mixing = torch.randn(COILS, COILS, dtype=torch.complex64, generator=generator)
    gains = torch.diag(torch.linspace(0.7, 1.6, COILS)).to(torch.complex64)
    correlated = gains @ (torch.eye(COILS) + 0.3 * mixing @ mixing.mH / COILS) @ gains
    position = torch.linspace(-1, 1, GRID[1])
    spectrum = 1 - 0.75 * position**2
    return {
        "white": NoiseModel(torch.eye(COILS, dtype=torch.complex64)),
        "correlated": NoiseModel(correlated),
        "correlated, coloured": NoiseModel(correlated, spectrum),
    }


def cases() -> dict[str, tuple[Reconstructor, Tensor]]:
    """Reconstructions with their masks."""
    ky = torch.arange(GRID[0])
    table = {}
    for step in (1, 2, 3, 4):
        lines = ky % step == (GRID[0] // 2) % step
        name = "SENSE, fully sampled" if step == 1 else f"SENSE, R = {step}"
        table[name] = (Sense(), lines)
    part = ky < round(FRACTION * GRID[0])
    table[f"partial Fourier {FRACTION:g}, zero-filled"] = (PartialFourier("zero_filled"), part)
    table[f"partial Fourier {FRACTION:g}, homodyne"] = (PartialFourier("homodyne"), part)
    table["zero-filled, R = 3"] = (ZeroFilled(), ky % 3 == (GRID[0] // 2) % 3)
    return {
        name: (recon, lines[:, None].expand(*GRID).clone())
        for name, (recon, lines) in table.items()
    }


def run(draws: int = 200, seed: int = 0) -> list[Row]:
    """Measure every case with every noise model."""
    rows = []
    for noise_name, noise in noise_models().items():
        maps = coil_maps(COILS, GRID)
        white = noise.whiten(maps)
        maps = maps / (white.abs() ** 2).sum(0).sqrt()
        for name, (recon, mask) in cases().items():
            rows.append(measure(name, recon, mask, maps, noise_name, noise, draws, seed))
    return rows


def measure(
    name: str,
    recon: Reconstructor,
    mask: Tensor,
    maps: Tensor,
    noise_name: str,
    noise: NoiseModel,
    draws: int,
    seed: int,
) -> Row:
    """Noise-only scans through one reconstruction."""
    generator = torch.Generator().manual_seed(seed)
    scan = Scan(draw_noise(noise, mask, generator), mask, maps, noise)
    if isinstance(recon, PartialFourier) and recon.kind == "homodyne":
        y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in GRID), indexing="ij")
        phase = 0.8 * x - 0.5 * y + 0.4 * x * y
        bound = PartialFourier("homodyne", phase=phase).bind(scan)
        sigma = homodyne_sigma(scan)
        turn = torch.polar(torch.ones_like(phase), -phase)
    else:
        bound = recon.bind(scan)
        sigma = noise_map(recon, scan, estimator="analytic").sigma
        turn = torch.ones(GRID, dtype=torch.complex64)
    noisy = sigma > 0
    squares = []
    for _ in range(draws):
        image = bound(draw_noise(noise, mask, generator)) * turn
        squares.append(float(((image.real[noisy] / sigma[noisy]).double() ** 2).mean()))
    values = torch.tensor(squares, dtype=torch.float64)
    ratio = float(values.mean().sqrt())
    error = float(values.std()) / draws**0.5 / (2 * ratio)
    return Row(name, noise_name, ratio, error, float(sigma[noisy].median()) * 2**0.5)


def draw_noise(noise: NoiseModel, mask: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of one scan from the definitions: ``n = L w``, ``L L^H = Psi``, with the power spectrum
    over image position as the readout's filter leaves it."""
    lower = torch.linalg.cholesky(noise.covariance)
    white = torch.randn(COILS, *GRID, dtype=torch.complex64, generator=generator)
    samples = torch.einsum("ab,byx->ayx", lower, white)
    if noise.spectrum is not None:
        gain = torch.fft.ifftshift(noise.spectrum.sqrt())
        samples = torch.fft.fft(torch.fft.ifft(samples, dim=-1) * gain, dim=-1)
    return samples * mask


def homodyne_sigma(scan: Scan) -> Tensor:
    """Closed form for homodyne with a fixed phase: the weights' mean square over k-space takes the
    place of the sampled fraction; all noise is along the phase."""
    weights = asymmetric_sampling(scan.sampled).weights("ramp")
    assert scan.noise is not None
    assert scan.maps is not None
    mean_square = float((weights.expand(scan.grid) ** 2 * scan.sampled).mean())
    power = (scan.noise.whiten(scan.maps).abs() ** 2).sum(0)
    spectrum = scan.noise.spectrum
    variance = mean_square * power / 2
    return (variance if spectrum is None else variance * spectrum).sqrt()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the draws")
    quick = parser.parse_args().quick
    rows = run(20 if quick else 200)
    worst = max(abs(row.ratio - 1) for row in rows)
    body = table(
        ["case", "noise", "measured SD / analytic sigma", "+-", "median sigma in SNR units"],
        [
            (r.case, r.noise, f"{r.ratio:.4f}", f"{r.error:.4f}", f"{r.snr_unit:.4f}")
            for r in rows
        ],
    )
    body += f"\n\nLargest deviation from 1: {worst:.2%} (1 % allowed)."
    publish("snr_units", "Noise-only scans in SNR units", body, keep=not quick)


if __name__ == "__main__":
    main()
