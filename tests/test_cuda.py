"""On a GPU, where there is one: every method and estimator gives there what it gives on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from snrecon.cli.main import main
from snrecon.data import NoiseMap, Scan
from snrecon.noise import acquire, attribution, linearity_check, noise_map, psf, roi
from snrecon.physics.phantom import brain_phantom
from snrecon.recon.registry import load
from snrecon.report.demo import save_scan
from snrecon.training.simulate import simulate_scan
from snrecon.uncertainty import decompose, posterior, sure

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch finds no CUDA device on this machine")

METHODS: dict[str, dict[str, Any]] = {
    "zero_filled": {}, "zero_filled:rss": {}, "sense": {"lamda": 0.1}, "grappa": {"kernel": (2, 3)},
    "tv": {"lamda": 1.0, "iterations": 20}, "wavelet": {"lamda": 1.0, "iterations": 20},
    "unet": {}, "varnet": {}, "e2e_varnet": {}, "modl": {}, "modl:ssdu": {},
}
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dds": ("score", {"algorithm": "dds", "steps": 6}),
    "dds from zero_filled": ("score", {"algorithm": "dds", "steps": 6, "start": "zero_filled"}),
    "ssos": ("score", {"algorithm": 4, "steps": 4}),
    "hybrid": ("score", {"algorithm": 5, "steps": 4}),
    "convdecoder": ("convdecoder", {"iterations": 20}),
}
ESTIMATORS = ("auto", "certified", "corrected", "sketch", "replicas")


@pytest.fixture(autouse=True)
def _no_tf32() -> Iterator[None]:
    """Else convolutions there and here differ by its rounding."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@cache
def scan_of(kind: str, size: int = 32) -> Scan:
    """A head of 4 coils: undersampled ``lines``, points of a ``plane``, or a ``partial`` scan."""
    generator = torch.Generator().manual_seed(3)
    image = brain_phantom((size, size), generator, supersampling=1)
    middle = slice(size // 2 - 5, size // 2 + 5)
    if kind == "lines":
        mask = torch.rand(size, 1, generator=generator) < 0.5
        mask[middle] = True
        mask = mask.expand(size, size).clone()
    elif kind == "partial":
        mask = (torch.arange(size) < 3 * size // 4)[:, None].expand(size, size).clone()
    else:
        mask = torch.rand(size, size, generator=generator) < 0.4
        mask[middle, middle] = True
    return simulate_scan(image, 4, 30.0, mask, seed=1)[0]


def there(kind: str) -> Scan:
    return scan_of(kind).to(DEVICE)


def agree(found: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    assert found.device.type == DEVICE
    assert float((found.cpu() - wanted).norm() / wanted.norm()) < tolerance


@pytest.mark.parametrize(("name", "kind"), [
    (name, kind) for name in METHODS for kind in ("lines", "plane")
    if (name, kind) != ("grappa", "plane")])  # which needs lines
def test_images(name: str, kind: str) -> None:
    recon = load(name, **METHODS[name])
    wanted = recon(scan_of(kind))
    agree(recon(there(kind)), wanted, 2e-3)


@pytest.mark.parametrize("how", ["zero_filled", "homodyne", "pocs"])
def test_partial_fourier(how: str) -> None:
    recon = load(f"partial_fourier:{how}")
    wanted = recon(scan_of("partial"))
    agree(recon(there("partial")), wanted, 2e-3)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", METHODS)
def test_noise_maps(name: str, estimator: str, tmp_path: Path) -> None:
    recon = load(name, **METHODS[name])
    options: dict[str, Any] = {"tolerance": 0.3} if estimator == "auto" else {
        "tolerance": 0.0, "max_passes": 24}
    wanted, found = (noise_map(recon, scan, estimator=estimator, seed=1, **options)
                     for scan in (scan_of("lines"), there("lines")))
    agree(found.sigma, wanted.sigma, 2e-2)
    found.save(tmp_path / "map.h5")
    torch.testing.assert_close(NoiseMap.load(tmp_path / "map.h5").sigma, found.sigma.cpu())


@pytest.mark.parametrize("compress", [None, 1e-2])
@pytest.mark.parametrize("name", ["varnet", "modl", "sense"])
def test_exact_rows(name: str, compress: float | None) -> None:
    voxels = torch.zeros(32, 32, dtype=torch.bool)
    voxels[12:16, 12:20] = True
    wanted, found = (
        noise_map(load(name, **METHODS[name]), scan, estimator="exact", voxels=voxels,
                  compress=compress) for scan in (scan_of("lines"), there("lines")))
    agree(found.sigma, wanted.sigma, 2e-2)


def test_derivatives_are_checked_in_full_precision() -> None:
    """With TF32 as torch has it: rounding must not pass for a wrong derivative."""
    torch.backends.cudnn.allow_tf32 = True
    noise_map(load("varnet"), there("lines"), estimator="sketch", tolerance=0, max_passes=4)
    checked = linearity_check(load("varnet"), there("lines"), draws=2, noise_scale=0.01)
    assert checked.overall < 0.1


def test_answers_without_a_map() -> None:
    scan, recon = there("lines"), load("varnet")
    mask = torch.zeros(32, 32, dtype=torch.bool, device=DEVICE)
    mask[12:16, 12:16] = True
    roi(recon, scan, mask)
    psf(recon, scan, (14, 14))
    attribution(recon, scan, mask)
    acquire(recon, scan, [3, 4], mask)


@pytest.mark.parametrize("name", SAMPLERS)
def test_generative_images(name: str) -> None:
    method, options = SAMPLERS[name]
    image = load(method, **options)(there("plane"))
    assert image.device.type == DEVICE
    assert bool(torch.isfinite(torch.view_as_real(image) if image.is_complex() else image).all())


def test_uncertainty() -> None:
    recon = load("score", steps=6)
    noise_map(recon, there("plane"), estimator="sketch", tolerance=0, max_passes=4)
    posterior(recon, there("plane"), samples=4, seed=0)
    decompose(recon, there("plane"), rounds=3, seeds=3)
    sure(load("tv", lamda=1.0, iterations=20), there("lines"))


@pytest.mark.parametrize("words", [
    ("noise", "--method", "varnet", "--tolerance", "0.3", "--dither", "0.5", "--out", "{}/x.h5"),
    ("noise", "--method", "sense", "--estimator", "exact", "--out", "{}/x.npz"),
    ("recon", "--method", "score", "--set", "steps=4", "--out", "{}/x.h5"),
    ("posterior", "--method", "score", "--set", "steps=4", "--samples", "3", "--out", "{}/x.h5"),
    ("sure", "--method", "tv", "--lambda", "1", "--region", "here={}/here.npy"),
], ids=lambda words: words[0])
def test_commands(words: tuple[str, ...], tmp_path: Path) -> None:
    path = save_scan(scan_of("lines"), tmp_path / "scan.npz")
    here = np.zeros((32, 32), dtype=bool)
    here[12:20, 12:20] = True
    np.save(tmp_path / "here.npy", here)
    command, *others = (word.format(tmp_path) for word in words)
    assert main([command, str(path), "--device", DEVICE, *others]) == 0


def test_evaluate_command(tmp_path: Path) -> None:
    full = replace(scan_of("plane"), mask=torch.ones(32, 32, dtype=torch.bool))
    path = save_scan(full, tmp_path / "full.npz")
    assert main(["evaluate", str(path), "--device", DEVICE, "--method", "varnet", "--mask",
                 "random", "--acceleration", "2", "--calibration", "8"]) == 0
