"""The floor of root sums of squares: noise alone is low SNR, however many coils there are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from snrecon.data import NoiseMap, NoiseModel, Scan
from snrecon.errors import InputError
from snrecon.noise import noise_map, rician_sigma
from snrecon.physics.fourier import fft
from snrecon.recon import ZeroFilled

GRID = (48, 48)
LEVEL = 0.05


def covariance(coils: int) -> torch.Tensor:
    """Neighbouring coils correlate by 0.3, and levels differ."""
    index = torch.arange(coils)
    shape = 0.3 ** (index[:, None] - index).abs().double()
    level = torch.linspace(0.8, 1.2, coils, dtype=torch.float64) if coils > 1 else torch.ones(1)
    return (LEVEL**2 * level[:, None] * shape * level).to(torch.complex64)


def scan_of(coils: int, amplitude: float, lines: int = 1) -> Scan:
    """Noise, and in the centre an object of ``amplitude`` sigma, seen by all coils alike."""
    generator = torch.Generator().manual_seed(coils)
    noise = NoiseModel(covariance(coils))
    white = torch.randn(coils, *GRID, dtype=torch.complex64, generator=generator)
    mask = torch.zeros(GRID, dtype=torch.bool)
    mask[::lines] = True
    images = torch.zeros(coils, *GRID, dtype=torch.complex64)
    images[:, 16:32, 16:32] = amplitude / coils**0.5
    kspace = (fft(images, (-2, -1)) + noise.unwhiten(white)) * mask
    return Scan(kspace, mask=mask, noise=noise)


@pytest.mark.parametrize("lines", [1, 3])
@pytest.mark.parametrize("coils", [1, 4, 16, 32])
def test_noise_alone_is_flagged(coils: int, lines: int) -> None:
    result = noise_map(ZeroFilled("rss"), scan_of(coils, 0.0, lines))
    assert float(result.low_snr.double().mean()) >= 0.95
    floor = result.details["rss_floor"]
    power = result.image.double() ** 2
    assert float(power.mean()) == pytest.approx(floor["mean"], rel=0.05)
    assert float(power.std()) == pytest.approx(floor["sd"], rel=0.15)


@pytest.mark.parametrize("coils", [1, 4, 16, 32])
def test_object_is_not_flagged(coils: int) -> None:
    background = torch.ones(GRID, dtype=torch.bool)
    background[16:32, 16:32] = False
    sigma = noise_map(ZeroFilled("rss"), scan_of(coils, 100.0)).sigma[~background].median()
    result = noise_map(ZeroFilled("rss"), scan_of(coils, 10 * float(sigma)))
    assert float(result.low_snr[background].double().mean()) >= 0.95
    assert float(result.low_snr[~background].double().mean()) <= 0.01


def test_floor_follows_scale_and_files(tmp_path: Path) -> None:
    result = noise_map(ZeroFilled("rss"), scan_of(16, 0.5))
    for other in (result.scale(-3.0), result.scale(1e-3)):
        assert torch.equal(other.low_snr, result.low_snr)
    for name in ("r.h5", "r.npz"):
        result.save(tmp_path / name)
        kept = NoiseMap.load(tmp_path / name)
        assert kept.details["rss_floor"] == result.details["rss_floor"]
        assert torch.equal(kept.low_snr, result.low_snr)


def test_stack_has_the_largest_floor() -> None:
    one, two = scan_of(4, 0.5), scan_of(4, 0.5, 2)
    stack = Scan(
        torch.stack([two.kspace, one.kspace]),
        mask=torch.stack([two.sampled, one.sampled]),
        noise=one.noise,
        layout="stack",
    )
    result = noise_map(ZeroFilled("rss"), stack)
    assert result.details["rss_floor"] == noise_map(ZeroFilled("rss"), one).details["rss_floor"]


def test_error_counts_voxels_above_the_floor() -> None:
    scan = scan_of(16, 2.0)
    result = noise_map(ZeroFilled("rss"), scan, estimator="sketch", tolerance=0.1)
    where = ~result.low_snr
    assert 0 < int(where.sum()) < 0.2 * where.numel()
    ratio = (result.standard_error / result.sigma)[where].double()
    assert result.relative_error == pytest.approx(float((ratio**2).mean().sqrt()))
    assert result.relative_error <= 0.1


def test_others_have_no_floor() -> None:
    scan = scan_of(4, 1.0)
    maps = torch.full_like(scan.kspace, 0.5)
    result = noise_map(ZeroFilled(), replace(scan, maps=maps))
    assert "rss_floor" not in result.details
    assert torch.equal(
        result.low_snr, (result.image.abs() < 3 * result.sigma) & (result.sigma > 0)
    )
    assert torch.equal(rician_sigma(result), rician_sigma(result.image, result.sigma))


def test_rician_correction_refuses_root_sums_of_squares() -> None:
    result = noise_map(ZeroFilled("rss"), scan_of(4, 1.0))
    with pytest.raises(InputError, match="zero_filled:rss is a root sum of squares over coils"):
        rician_sigma(result)
    with pytest.raises(TypeError, match="its own sigma"):
        rician_sigma(result, result.sigma)
    with pytest.raises(TypeError, match="needs its sigma"):
        rician_sigma(result.image)
