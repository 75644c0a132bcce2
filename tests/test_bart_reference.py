"""Against arrays that BART made (``benchmarks/bart_reference.py``); no BART needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from snrecon.data import NoiseModel, Scan
from snrecon.noise import noise_map
from snrecon.physics.coils import espirit
from snrecon.physics.fourier import fft, ifft
from snrecon.physics.noise_estimation import covariance_from_noise_scan
from snrecon.physics.proximal import fista, soft_threshold
from snrecon.physics.wavelets import Wavelet
from snrecon.recon.forward_model import forward_model
from snrecon.recon.registry import load

FOLDER = Path(__file__).parent / "references"
Arrays = dict[str, Tensor]


def read(name: str) -> Arrays:
    with np.load(FOLDER / f"bart_{name}.npz") as archive:
        return {k: torch.from_numpy(archive[k]) for k in archive if k != "commands"}


@pytest.fixture(scope="module")
def measured() -> Arrays:
    return read("sense")


def scan_of(arrays: Arrays) -> Scan:
    """The raw scan with BART's own covariance."""
    return Scan(
        arrays["kspace"], arrays["mask"], arrays["maps"], NoiseModel(arrays["covariance"])
    )


def difference(a: Tensor, b: Tensor) -> float:
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b))


def mirrored(grid: Tensor) -> Tensor:
    """Index i to -i modulo n along the last two axes, about the centre ``n // 2``."""
    for axis in (-2, -1):
        shift = 1 - grid.shape[axis] % 2
        grid = grid.flip(axis).roll(shift, axis)
    return grid


def test_every_file_states_its_version_and_commands() -> None:
    files = sorted(FOLDER.glob("bart_*.npz"))
    assert [f.stem for f in files] == ["bart_ecalib", "bart_fft", "bart_sense"]
    assert sum(f.stat().st_size for f in files) < 300_000
    for file in files:
        with np.load(file) as archive:
            commands = archive["commands"].tolist()
        assert commands[0].startswith("bart version: v0.8")
        assert sum(c.startswith("bart ") for c in commands) > 3


@pytest.mark.parametrize("size", ["even", "odd"])
def test_fourier(size: str) -> None:
    arrays = read("fft")
    image, kspace = arrays[f"image_{size}"], arrays[f"kspace_{size}"]
    assert difference(fft(image, (-2, -1)), kspace) < 1e-6
    assert difference(ifft(kspace, (-2, -1)), image) < 1e-6


def test_covariance_of_a_noise_scan(measured: Arrays) -> None:
    noise = measured["noise"]
    ours = covariance_from_noise_scan(noise).covariance
    samples = noise.shape[1]
    # BART subtracts no mean either, but divides by n - 1.
    assert difference(measured["covariance"] * (samples - 1) / samples, ours) < 1e-5
    assert difference(measured["covariance"], ours.mT) > 0.05, "a transposed Psi must show"


def test_sense_of_whitened_data(measured: Arrays) -> None:
    """Noise scan, whitening and regularised SENSE end to end."""
    scan = scan_of(measured)
    lamda = float(measured["lambdas"][0])
    for solver in ("auto", "cg"):
        image = load("sense", lamda=lamda, solver=solver)(scan)
        assert difference(image, measured["sense"]) < 5e-5
    transposed = Scan(scan.kspace, scan.mask, scan.maps, NoiseModel(measured["covariance"].mT))
    wrong = load("sense", lamda=lamda)(transposed)
    assert difference(wrong, measured["sense"]) > 1e-3, "a transposed Psi must show"


def test_standard_deviation_of_replicas(measured: Arrays) -> None:
    """BART's replicas against the analytic map: right on average, apart by sampling error only."""
    scan = scan_of(measured)
    result = noise_map(load("sense", lamda=float(measured["lambdas"][0])), scan)
    assert result.estimator == "analytic"
    replicas = int(measured["replicas"])
    support = result.sigma_complex > 0
    ratio = (measured["sigma_complex"] / result.sigma_complex)[support]
    # A complex SD from n draws scatters by 1 / (2 sqrt n); draws are shared by correlated voxels.
    scatter = 1 / (2 * replicas**0.5)
    assert abs(float(ratio.mean()) - 1) < scatter / 4
    assert 0.85 * scatter < float((ratio - 1).square().mean().sqrt()) < 1.15 * scatter


def test_total_variation(measured: Arrays) -> None:
    """BART takes backward differences: ours, forward, of the mirrored problem."""
    scan = scan_of(measured)
    mirror = Scan(
        mirrored(scan.kspace), mirrored(scan.sampled), mirrored(measured["maps"]), scan.noise
    )
    lamda = float(measured["lambdas"][1])
    image = mirrored(load("tv", lamda=lamda, iterations=700)(mirror))
    assert difference(image, measured["tv"]) < 1e-3
    other = mirrored(load("tv", lamda=1.05 * lamda, iterations=700)(mirror))
    assert difference(other, measured["tv"]) > 2e-3, "a lambda 5 % off must show"


def test_wavelets(measured: Arrays) -> None:
    """The minimiser with all Haar coefficients penalised, as BART penalises them."""
    model = forward_model(scan_of(measured))
    lamda, wavelet = float(measured["lambdas"][2]), Wavelet((32, 32), "haar", 2)
    rhs = model.encoding.H(model.whiten(measured["kspace"]))
    step = 1 / float((model.maps.abs() ** 2).sum(0).max())

    def image(weight: float) -> Tensor:
        def prox(v: Tensor, step: float) -> Tensor:
            return wavelet.H(soft_threshold(wavelet(v), step * weight))

        return fista(model.encoding.gram, rhs, prox, step, 900)

    assert difference(image(lamda), measured["wavelet"]) < 1e-3
    assert difference(image(1.05 * lamda), measured["wavelet"]) > 2e-3


def test_coil_maps() -> None:
    arrays = read("ecalib")
    theirs = arrays["maps"]
    maps = espirit(arrays["calibration"], tuple(theirs.shape[1:]), 6, threshold=0.02, crop=0.0)
    inside = arrays["magnitude"] > 0.1 * arrays["magnitude"].max()
    # The phase of a voxel's maps is a convention: relative to the product of both.
    product = (theirs.conj() * maps).sum(0)
    aligned = maps * (product.conj() / product.abs().clamp_min(1e-12))
    error = torch.linalg.vector_norm((aligned - theirs)[:, inside], dim=0)
    assert float(error.max()) < 1e-3
    norm = torch.linalg.vector_norm(maps[:, inside], dim=0)
    torch.testing.assert_close(norm, torch.ones_like(norm), atol=1e-4, rtol=0)
