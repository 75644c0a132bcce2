"""Noise put back for display: its size, its marks, and that nothing else changes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from snrecon.data import NoiseMap
from snrecon.errors import InputError
from snrecon.io import load_result
from snrecon.noise import dither
from snrecon.report import describe_result


def made(real: bool = False, covariance: bool = True) -> NoiseMap:
    """Sigma differs by columns; the components of the noise differ and are correlated."""
    shape = (60, 80)
    sigma = (1 + torch.arange(80) / 40).expand(shape).clone()
    sigma[:, :5] = 0
    size = torch.full(shape, 50.0) * (sigma > 0)
    image = size if real else torch.polar(size, torch.full(shape, 0.8))
    terms = torch.stack([sigma**2, 4 * sigma**2, -1.2 * sigma**2])
    return NoiseMap(
        image, sigma, sigma if real else 5**0.5 * sigma, torch.where(sigma > 0, size / sigma, 0),
        covariance=terms if covariance and not real else None, estimator="sketch", method="varnet",
        details={"why": "sketch"},
    )


@pytest.mark.parametrize("fraction", [0.5, 2.0])
def test_the_added_noise_has_the_local_covariance(fraction: float) -> None:
    result = made()
    noisy = dither(result, fraction, seed=3)
    added = (noisy.dithered - noisy.image) * torch.polar(torch.ones(()), torch.tensor(-0.8))
    inside = result.sigma > 0
    unit = (added[inside] / result.sigma[inside]) / fraction
    assert float(unit.real.square().mean()) == pytest.approx(1, abs=0.07)
    assert float(unit.imag.square().mean()) == pytest.approx(4, abs=0.28)
    assert float((unit.real * unit.imag).mean()) == pytest.approx(-1.2, abs=0.12)
    left, right = (added[:, s].abs().square().mean().sqrt() for s in (slice(5, 25), slice(60, 80)))
    assert float(right / left) == pytest.approx(2.75 / 1.375, rel=0.1)
    assert bool((noisy.dithered[~inside] == 0).all())


def test_without_a_covariance_the_two_sigmas_say_enough() -> None:
    added = dither(made(covariance=False), 1.0)
    moved = (added.dithered - added.image) * torch.polar(torch.ones(()), torch.tensor(-0.8))
    unit = moved[:, 5:] / added.sigma[:, 5:]
    assert float(unit.real.square().mean()) == pytest.approx(1, abs=0.07)
    assert float(unit.imag.square().mean()) == pytest.approx(4, abs=0.28)
    real = dither(made(real=True), 1.0)
    assert not real.dithered.is_complex()
    unit = ((real.dithered - real.image) / real.sigma)[:, 5:]
    assert float(unit.std()) == pytest.approx(1, abs=0.05)


def test_total_sd_over_repeated_scans_is_as_stated() -> None:
    """Repeated scans, each dithered: the magnitude's SD is sigma sqrt(1 + fraction^2)."""
    result = made(covariance=False)
    generator = torch.Generator().manual_seed(0)
    draws = []
    for seed in range(60):
        white = torch.randn(2, *result.image.shape, generator=generator)
        noise = torch.complex(result.sigma * white[0], 2 * result.sigma * white[1])
        turn = torch.polar(torch.ones(()), torch.tensor(0.8))
        once = dither(replace(result, image=result.image + turn * noise), 0.75, seed)
        draws.append(once.dithered.abs())
    ratio = (torch.stack(draws).std(0) / result.sigma)[:, 5:20].square().mean().sqrt()
    stated = dither(result, 0.75).details["dither"]["total_sd_over_sigma"]
    assert stated == pytest.approx(math.sqrt(1 + 0.75**2))
    assert float(ratio) == pytest.approx(stated, rel=0.03)


def test_nothing_else_changes_and_seeds_count() -> None:
    result = made()
    first, same, other = (dither(result, 0.5, seed) for seed in (1, 1, 2))
    assert torch.equal(first.dithered, same.dithered)
    assert not torch.equal(first.dithered, other.dithered)
    for name in ("image", "sigma", "sigma_complex", "snr", "covariance"):
        assert torch.equal(getattr(first, name), getattr(result, name))
    assert result.dithered is None
    assert "dither" not in result.details
    assert first.details["why"] == "sketch"
    assert "local sigma" in first.details["dither"]["note"]
    assert "dithered" in describe_result(first)
    assert "dithered" not in describe_result(result)
    torch.testing.assert_close(first.scale(-2.0).dithered, -2 * first.dithered)


@pytest.mark.parametrize("ending", ["h5", "npz"])
@pytest.mark.parametrize("real", [False, True])
def test_files_hold_the_copy_and_its_mark(tmp_path: Path, ending: str, real: bool) -> None:
    noisy = dither(made(real), 0.5)
    noisy.save(tmp_path / f"r.{ending}")
    back = load_result(tmp_path / f"r.{ending}")
    assert torch.equal(back.dithered, noisy.dithered)
    assert torch.equal(back.image, noisy.image)
    assert back.details["dither"]["fraction"] == 0.5
    made(real).save(tmp_path / f"plain.{ending}")
    assert load_result(tmp_path / f"plain.{ending}").dithered is None
    if ending == "h5":
        with h5py.File(tmp_path / "r.h5") as file:
            assert file["dithered"].dtype == np.complex64
            assert "dither" in json.loads(file.attrs["details"])
            file.close()
        with h5py.File(tmp_path / "r.h5", "a") as file:
            del file["dithered"]
            file["dithered"] = np.zeros((3, 3), "c8")
        with pytest.raises(InputError, match="'dithered'"):
            load_result(tmp_path / "r.h5")


def test_nifti_gets_its_magnitude(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    noisy = dither(made(), 0.5)
    noisy.save(tmp_path / "r.nii.gz")
    values = nibabel.load(tmp_path / "r_dithered.nii.gz").get_fdata()
    np.testing.assert_allclose(values.T, noisy.dithered.abs().numpy(), rtol=1e-5)
    sidecar = json.loads((tmp_path / "r_dithered.json").read_text())
    assert sidecar["details"]["dither"]["fraction"] == 0.5


def test_what_cannot_be_dithered() -> None:
    for fraction in (0, -1, math.nan, math.inf):
        with pytest.raises(InputError, match="positive number"):
            dither(made(), fraction)
    with pytest.raises(InputError, match="already"):
        dither(dither(made(), 1.0), 1.0)


def test_any_seed_will_do() -> None:
    result = NoiseMap(image=torch.ones(4, 4, dtype=torch.complex64), sigma=torch.ones(4, 4),
                      sigma_complex=2**0.5 * torch.ones(4, 4), snr=torch.ones(4, 4))
    one, two = (dither(result, 0.5, seed=seed).dithered for seed in (2**64 - 1, 20260412093000))
    assert not torch.equal(one, two)
