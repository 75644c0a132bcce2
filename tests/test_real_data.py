"""The measured scans end to end: small versions of the benchmarks on them."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch
from benchmarks import agreement, noise_paper, noise_scan, real_scans, scores

import snrecon
from snrecon.errors import SnreconWarning
from snrecon.noise.problem import Problem
from snrecon.noise.replicas import replicas
from snrecon.noise.sketch import sketch
from snrecon.physics.fourier import ifft
from snrecon.recon.forward_model import forward_model
from snrecon.recon.registry import load

pytestmark = [pytest.mark.real_data, pytest.mark.usefixtures("here")]


@pytest.fixture(scope="module")
def here(real_data: Path) -> Path:
    """The folder, as the benchmarks find it too."""
    assert real_scans.folder().resolve() == real_data
    return real_data


@pytest.fixture(scope="module")
def pulseq(here: Path) -> real_scans.Case:
    return real_scans.case("pulseq")


@pytest.mark.parametrize(
    ("name", "shape", "samples"),
    [
        ("pulseq", (16, 128, 128), 5000),
        ("mripy", (8, 256, 256), 5000),
        ("cloudmr", (16, 96, 96), 0),
    ],
)
def test_load(name: str, shape: tuple[int, ...], samples: int) -> None:
    scan = real_scans.full_scan(name)
    assert tuple(scan.kspace.shape) == shape
    assert scan.acceleration == 1
    noise = scan.require_noise()
    assert noise.source == ("background" if samples else "noise scan")
    assert noise.details["samples"] >= samples
    off = noise.correlation()[~torch.eye(shape[0], dtype=torch.bool)]
    assert 0.02 < float(off.mean()) < 0.35
    assert float(off.max()) < 0.75


def test_background_noise_is_announced_and_coloured(here: Path) -> None:
    """The receiver's filter attenuates the noise at the ends of the readout to under a half."""
    with pytest.warns(SnreconWarning, match="background"):
        scan = snrecon.load(here / "pulseq_brain16" / "kspace.npz", key="brain_head16")
    spectrum = scan.require_noise().spectrum
    assert spectrum is not None
    ends = torch.cat([spectrum[:6], spectrum[-6:]]).mean()
    ratio = math.sqrt(float(ends / spectrum[56:72].mean()))
    assert 0.3 < ratio < 0.6  # 0.45 by hand, from strips of the background
    assert real_scans.full_scan("mripy").require_noise().spectrum is None


def test_background_covariance_against_the_corners_of_k_space() -> None:
    """Two views of the same noise: the image where no object is, k-space where no signal is."""
    scan = real_scans.full_scan("mripy")
    ends = (slice(0, 24), slice(-24, None))
    blocks = [scan.kspace[:, a, b].flatten(1) for a in ends for b in ends]
    by_hand = (torch.cat(blocks, dim=1).abs() ** 2).mean(1).sqrt()
    found = scan.require_noise().covariance.diagonal().real.sqrt()
    torch.testing.assert_close(found, by_hand, rtol=0.1, atol=0)
    assert float((found / by_hand).mean()) == pytest.approx(1, abs=0.06)


def test_the_outermost_rows_of_the_image_are_too_quiet_to_measure_noise_in() -> None:
    """Beside the head the noise is level but for three rows at either end, which a corner patch
    would take with it."""
    scan = real_scans.full_scan("mripy")
    images = ifft(scan.kspace, (-2, -1))
    beside = torch.cat([images[..., :16], images[..., -16:]], dim=-1)
    rows = (beside.abs() ** 2).mean(2).sqrt()
    found = scan.require_noise().covariance.diagonal().real.sqrt()
    level = torch.cat([rows[:, 8:64], rows[:, -64:-8]], dim=1).square().mean(1).sqrt()
    assert float((found / level).mean()) == pytest.approx(1, abs=0.06)
    ends = torch.cat([rows[:, :3], rows[:, -2:]], dim=1).square().mean(1).sqrt()
    assert float((ends / level).mean()) < 0.5
    corners = images[:, :16, :16]
    assert float(((corners.abs() ** 2).mean((1, 2)).sqrt() / found).mean()) < 0.9


def test_background_covariance_and_spectrum_at_the_ends_of_the_readout() -> None:
    """The margins left and right of the head, where the filter leaves a sixth of the noise."""
    scan = real_scans.full_scan("pulseq")
    noise = scan.require_noise()
    images = ifft(scan.kspace, (-2, -1))
    margin = torch.cat([images[..., :6], images[..., -6:]], dim=-1)
    assert noise.spectrum is not None
    level = torch.cat([noise.spectrum[:6], noise.spectrum[-6:]]).mean()
    expected = (noise.covariance.diagonal().real * level).sqrt()
    by_hand = (margin.abs() ** 2).mean((1, 2)).sqrt()
    torch.testing.assert_close(by_hand, expected, rtol=0.05, atol=0)


def test_undersampled_case(pulseq: real_scans.Case) -> None:
    """What all methods share: maps in the scan's basis that whiten to unit norm, and the head."""
    scan = pulseq.scan
    assert scan.maps is not None
    norm = torch.linalg.vector_norm(scan.require_noise().whiten(scan.maps), dim=0)
    support = norm > 0
    torch.testing.assert_close(norm[support], torch.ones_like(norm[support]), atol=1e-3, rtol=0)
    assert bool(support[pulseq.head].all())
    assert 0.3 < float(pulseq.head.double().mean()) < 0.5
    assert 3.5 < scan.acceleration < 4.6
    inside = pulseq.reference.abs()[pulseq.head].mean()
    assert float(inside) > 10 * float(pulseq.reference.abs()[support & ~pulseq.head].mean())


@pytest.mark.parametrize("name", real_scans.BRAINS)
def test_the_reference_explains_the_data_to_within_the_noise(name: str) -> None:
    """Whitened residual of the fully sampled image: noise of variance 1 (less what the fit of one
    image to all coils takes away), if covariance, maps and model are right."""
    chosen = real_scans.case(name)
    model = forward_model(chosen.scan)
    residual = model.encoding(chosen.reference) - model.whiten(chosen.scan.kspace)
    level = float(residual[:, model.mask].abs().square().mean())
    assert 0.85 < level < 1.1


@pytest.mark.parametrize("method", ["sense", "tv", "wavelet", "varnet"])
def test_sketch_agrees_with_replicas(pulseq: real_scans.Case, method: str) -> None:
    """Linear methods at the true noise level, others where they are linear, within error bars."""
    options = {"iterations": 40} if method in ("tv", "wavelet") else {}
    recon = load(method, lamda=agreement.LAMBDA.get(method), **options)
    problem = Problem.of(recon, pulseq.scan)
    scale = 1.0 if problem.bound.linear else agreement.SCALE
    first = sketch(problem, tolerance=0, max_passes=24, seed=1).result()
    second = replicas(problem, tolerance=0, max_passes=24, seed=2, noise_scale=scale).result()
    where = pulseq.head & (first.sigma > 0)
    both = agreement.compare(first, second, where)
    # Mean sigma of few samples is low by its squared error over 2, on both sides alike.
    assert abs(both["ratio"] - 1) < 4 * both["ratio_error"] + 0.01
    assert both["ratio_error"] < 0.03
    assert both["raw"] > both["ceiling"] - 0.15
    assert first.frozen == () or "lambda" in first.frozen
    assert bool(torch.isfinite(first.snr).all())


def test_noise_map_of_a_file(here: Path, tmp_path: Path) -> None:
    """The main job, as a user does it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SnreconWarning)
        scan = snrecon.load(
            here / "pulseq_brain16" / "kspace.npz",
            key="brain_head16",
            undersample={"kind": "random", "acceleration": 4, "calibration": 10, "seed": 0},
        )
        result = snrecon.noise_map(snrecon.recon.load("varnet"), scan, tolerance=0.2)
    assert result.estimator == "certified"
    assert result.relative_error <= 0.2
    assert "coil maps" in result.frozen
    head = real_scans.head_mask("pulseq")
    assert 10 < float(result.snr[head].median()) < 400
    result.save(tmp_path / "out.h5")
    loaded = snrecon.NoiseMap.load(tmp_path / "out.h5")
    torch.testing.assert_close(loaded.sigma, result.sigma)


def test_scores(pulseq: real_scans.Case) -> None:
    """One mask, no search: regularised methods beat zero-filling; the definitions by hand."""
    found = {}
    for method in ("zero_filled", "varnet"):
        image = load(method)(pulseq.scan)
        found[method] = scores.score(image, pulseq.reference, pulseq.head)
    assert found["varnet"]["nmse"] < found["zero_filled"]["nmse"]
    assert found["varnet"]["ssim"] > found["zero_filled"]["ssim"]
    half = scores.score(0.9 * pulseq.reference, pulseq.reference, pulseq.head)
    assert half["nmse"] == pytest.approx(0.01, rel=1e-5)


def test_noise_scan_predicts_the_noise_of_the_image() -> None:
    """One unknown bandwidth factor, calibrated on one half of the interior and tested on the other;
    the corners would give another, for the receiver's filter attenuates them."""
    found = noise_scan.run(draws=20)
    assert found.voxels["interior"] > 1000
    for name, value in found.tests.items():
        assert abs(value - 1) < 0.05, name
    assert 0.7 < found.factors["interior"] < 1.1
    assert found.factors["corners"] < 0.8 * found.factors["interior"]


def test_a_cell_of_the_published_experiment(here: Path, tmp_path: Path) -> None:
    """Ten times the noise is that of a scan with a hundred times the covariance, the cell is kept,
    and both estimators agree up to their sampling error where first order is predicted to hold."""
    plain = real_scans.case("pulseq", "random", 4)
    louder = noise_paper.noisier(plain, 10)
    added = (louder.scan.kspace - plain.scan.kspace)[:, plain.scan.sampled]
    expected = plain.scan.require_noise().covariance.diagonal().real * 99
    torch.testing.assert_close(
        added.abs().square().mean(1), expected.to(added.real.dtype), rtol=0.15, atol=0)
    ratio = louder.scan.require_noise().covariance / plain.scan.require_noise().covariance
    torch.testing.assert_close(ratio.real, torch.full_like(ratio.real, 100))
    setting = noise_paper.Setting("pulseq", "varnet", 4.0, 1.0, "random", 32, 32)
    cell = noise_paper.measure(setting, tmp_path)
    assert abs(cell.ratio * cell.predicted - 1) < 0.05
    assert cell.pearson < cell.ceiling + 0.02
    assert cell.nrmse == pytest.approx(cell.floor, rel=0.2)
    assert noise_paper.measure(setting, tmp_path) == cell
