"""Regions, attribution, noise correlation and signal response against dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from benchmarks.dense_noise import difference_matrix, impulse_matrix, noise_factor
from benchmarks.small_problems import SmallProblem, small_problems

from snrecon.errors import InputError
from snrecon.noise import attribution, local_response, noise_map, psf, roi


def real(matrix: np.ndarray) -> np.ndarray:
    return np.block([[matrix.real, -matrix.imag], [matrix.imag, matrix.real]])


def dense_noise(small: SmallProblem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, real Jacobian, and real noise rows of the magnitude image."""
    bound = small.recon.bind(small.scan)
    x = bound(small.scan.kspace).numpy().ravel()
    make = impulse_matrix if small.linear else difference_matrix
    jacobian = make(bound, small.scan)
    noise = jacobian @ real(noise_factor(small.scan)) / np.sqrt(2)
    u = x / np.maximum(np.abs(x), 1e-300)
    n = len(x)
    return x, jacobian, u.real[:, None] * noise[:n] + u.imag[:, None] * noise[n:]


@pytest.mark.parametrize("name", ["sense lines", "sense lines coloured", "tv"])
def test_region_mean_and_its_sd(name: str) -> None:
    small = small_problems([name])[0]
    x, _, rows = dense_noise(small)
    region = torch.zeros(12, 12, dtype=torch.bool)
    region[4:8, 5:9] = True
    found = roi(small.recon, small.scan, region)
    weights = region.numpy().ravel() / 16
    assert found.value == pytest.approx(float(weights @ np.abs(x)), rel=1e-10)
    assert found.sd == pytest.approx(float(np.linalg.norm(weights @ rows)), rel=1e-6)
    assert found.voxels == 16
    assert found.snr == pytest.approx(found.value / found.sd)


def test_any_linear_functional() -> None:
    small = small_problems(["sense lines"])[0]
    x, jacobian, rows = dense_noise(small)
    rng = np.random.default_rng(1)
    weights = rng.normal(size=144)
    found = roi(small.recon, small.scan, torch.from_numpy(weights).reshape(12, 12))
    assert found.sd == pytest.approx(float(np.linalg.norm(weights @ rows)), rel=1e-10)
    complex_weights = weights + 1j * rng.normal(size=144)
    found = roi(small.recon, small.scan, torch.from_numpy(complex_weights).reshape(12, 12))
    noise = jacobian @ real(noise_factor(small.scan)) / np.sqrt(2)
    row = complex_weights.real @ noise[:144] + complex_weights.imag @ noise[144:]
    assert found.value == pytest.approx(float((complex_weights.conj() @ x).real), rel=1e-10)
    assert found.sd == pytest.approx(float(np.linalg.norm(row)), rel=1e-10)


def test_attribution_predicts_averaging_a_line_twice() -> None:
    small = small_problems(["sense lines"])[0]
    region = torch.zeros(12, 12, dtype=torch.bool)
    region[5:7, 5:7] = True
    shares = attribution(small.recon, small.scan, region)
    assert float(shares.sum()) == pytest.approx(1)
    assert float(shares[:, ~small.scan.sampled].abs().max()) == 0
    line = 5
    _, jacobian, _ = dense_noise(small)
    factor = noise_factor(small.scan).reshape(3, 12, 12, -1).copy()
    x = small.recon(small.scan).numpy().ravel()
    u = x / np.maximum(np.abs(x), 1e-300)
    weights = region.numpy().ravel() / 4
    functional = np.concatenate([weights * u.real, weights * u.imag]) @ jacobian

    def variance(f: np.ndarray) -> float:
        return float(np.sum((functional @ real(f.reshape(432, -1))) ** 2) / 2)

    before = variance(factor)
    factor[:, line] /= np.sqrt(2)
    after = variance(factor)
    assert after / before == pytest.approx(1 - float(shares[:, line].sum()) / 2, rel=1e-9)


@pytest.mark.parametrize("name", ["sense lines", "tv"])
def test_noise_correlation_pattern(name: str) -> None:
    small = small_problems([name])[0]
    _, _, rows = dense_noise(small)
    voxel = (5, 6)
    i = voxel[0] * 12 + voxel[1]
    expected = (rows @ rows[i]) / (rows[i] @ rows[i])
    found = psf(small.recon, small.scan, voxel)
    assert float(found[voxel]) == pytest.approx(1)
    np.testing.assert_allclose(found.numpy().ravel(), expected, atol=1e-6 * np.abs(expected).max())


def test_signal_response_of_unbiased_and_of_regularised_sense() -> None:
    lines, weighted = small_problems(["sense lines", "sense lambda"])
    voxel = (5, 6)
    u = lines.recon(lines.scan)[voxel]
    response = local_response(lines.recon, lines.scan, voxel)
    assert abs(complex(response[voxel] / u * abs(u)) - 1) < 1e-8
    response[voxel] = 0
    assert float(response.abs().max()) < 1e-8
    shrunk = local_response(weighted.recon, weighted.scan, voxel)[voxel].abs()
    assert 0 < float(shrunk) < 1


def test_region_of_one_voxel_is_the_map() -> None:
    small = small_problems(["wavelet"])[0]
    voxels = torch.zeros(12, 12, dtype=torch.bool)
    voxels[4, 4] = True
    sigma = noise_map(small.recon, small.scan, voxels=voxels).sigma[4, 4]
    assert roi(small.recon, small.scan, voxels).sd == pytest.approx(float(sigma), rel=1e-10)


def test_bad_regions_and_voxels() -> None:
    small = small_problems(["sense lines"])[0]
    with pytest.raises(InputError, match="shape"):
        roi(small.recon, small.scan, torch.ones(3, 3, dtype=torch.bool))
    with pytest.raises(InputError, match="empty"):
        roi(small.recon, small.scan, torch.zeros(12, 12, dtype=torch.bool))
    with pytest.raises(InputError, match="not in the image"):
        psf(small.recon, small.scan, (40, 2))
    with pytest.raises(InputError, match="carries no noise"):
        psf(small.recon, small.scan, (0, 0))
