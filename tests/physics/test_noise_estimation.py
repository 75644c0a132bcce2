"""Noise covariances against known ones (simulated) and measured ones (real scans)."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from snrecon.data import NoiseModel
from snrecon.errors import InputError, SnreconWarning
from snrecon.physics.fourier import fft, ifft
from snrecon.physics.noise_estimation import (
    covariance_from_background,
    covariance_from_noise_scan,
    understated,
)
from snrecon.physics.phantom import brain_phantom, coil_maps, noise_covariance
from snrecon.physics.thermal import NoiseColouring


def off_diagonal(model: NoiseModel) -> Tensor:
    return model.correlation()[~torch.eye(model.coils, dtype=torch.bool)]


# --- noise scan ---------------------------------------------------------------------------------


def test_noise_scan_formula_against_numpy(generator: torch.Generator) -> None:
    noise = torch.randn(3, 500, dtype=torch.complex128, generator=generator) + 0.5
    model = covariance_from_noise_scan(noise, dwell_ratio=2, averages=4, bandwidth_factor=0.8)
    n = noise.numpy()
    expected = sum(np.outer(n[:, i], n[:, i].conj()) for i in range(500)) / 500 * 2 * 0.8 / 4
    assert np.allclose(model.covariance.numpy(), expected)  # the mean 0.5 is not subtracted
    assert model.source == "noise scan"
    assert model.details["samples"] == 500


@pytest.mark.parametrize(
    ("noise", "options", "message"),
    [
        (torch.ones(4, 3, dtype=torch.complex64), {}, "3 samples for 4 coils"),
        (torch.full((2, 9), torch.nan, dtype=torch.complex64), {}, "NaN or infinite"),
        (torch.ones(2, 9), {}, "complex array"),
        (torch.ones(9, dtype=torch.complex64), {}, "complex array"),
        (torch.ones(2, 9, dtype=torch.complex64), {"dwell_ratio": 0.0}, "dwell-time ratio"),
        (torch.ones(2, 9, dtype=torch.complex64), {"averages": -1}, "number of averages"),
        (torch.ones(2, 9, dtype=torch.complex64), {}, "not positive definite"),
    ],
)
def test_bad_noise_scans(noise: Tensor, options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        covariance_from_noise_scan(noise, **options)


# --- background of simulated scans --------------------------------------------------------------


def scan(
    shape: tuple[int, ...], noise: NoiseModel, seed: int, dtype: torch.dtype = torch.complex64
) -> tuple[Tensor, Tensor]:
    axes = tuple(range(-len(shape), 0))
    image = brain_phantom(shape, torch.Generator().manual_seed(1), supersampling=1)
    kspace = fft(coil_maps(noise.coils, shape) * image.to(dtype), axes)
    mask = torch.ones(shape, dtype=torch.bool)
    sample = NoiseColouring(noise, mask).sample(torch.Generator().manual_seed(seed), dtype)
    return kspace + sample, mask


def roll_off(n: int) -> Tensor:
    """A receiver filter: flat pass band, 0.2 of the power at the edges."""
    x = (torch.arange(n, dtype=torch.float64) - n // 2).abs() / n
    return 1 / (1 + (x / 0.42) ** 8)


def relative_covariance(found: NoiseModel, truth: NoiseModel) -> Tensor:
    """``L^-1 Psi_found L^-H``: the identity when they agree."""
    matrix = truth.whitening_matrix.to(torch.complex128)
    return matrix @ found.covariance.to(torch.complex128) @ matrix.mH


@pytest.mark.parametrize("coloured", [False, True])
def test_background_is_unbiased_within_its_error(coloured: bool) -> None:
    truth = noise_covariance(6, torch.Generator().manual_seed(2), level=0.03)
    spectrum = roll_off(112) if coloured else None
    truth = NoiseModel(truth.covariance, spectrum=spectrum)
    ratios, accuracy = [], 0.0
    for seed in range(5):
        found = covariance_from_background(*scan((112, 112), truth, seed))
        assert (found.spectrum is not None) == coloured
        relative = relative_covariance(found, truth)
        accuracy = found.details["relative_accuracy"]
        scale = float(relative.diagonal().real.mean())
        shape = relative / scale - torch.eye(6)
        assert float(shape.abs().square().mean().sqrt()) < 1.3 * accuracy  # entries of a Wishart
        ratios.append(scale)
        if coloured:
            assert found.spectrum is not None
            assert truth.spectrum is not None
            error = (found.spectrum / truth.spectrum - 1).square().mean().sqrt()
            assert float(error) < 0.06
    # White: pure counting statistics. Coloured: the centre, behind the head, is interpolated.
    allowed = 0.02 if coloured else 4 * accuracy / (6 * 5) ** 0.5
    assert abs(np.mean(ratios) - 1) < allowed


def test_noise_alone_is_all_background(generator: torch.Generator) -> None:
    kspace = 2 * torch.randn(4, 96, 96, dtype=torch.complex64, generator=generator)
    found = covariance_from_background(kspace, torch.ones(96, 96, dtype=torch.bool))
    assert found.spectrum is None
    assert found.details["samples"] > 0.9 * 96 * 96
    assert float((found.covariance / 4 - torch.eye(4)).abs().max()) < 5 / 96


def test_3d_and_stack() -> None:
    truth = noise_covariance(4, torch.Generator().manual_seed(2), level=0.03)
    kspace, mask = scan((10, 48, 48), truth, 0)
    relative = relative_covariance(covariance_from_background(kspace, mask), truth)
    assert float((relative - torch.eye(4)).abs().max()) < 0.05
    stack = torch.stack([scan((64, 64), truth, seed)[0] for seed in range(4)])
    mask = torch.ones(64, 64, dtype=torch.bool)
    found = covariance_from_background(stack, mask, layout="stack")
    alone = covariance_from_background(stack[0], mask)
    assert found.details["samples"] > 3 * alone.details["samples"]
    assert float((relative_covariance(found, truth) - torch.eye(4)).abs().max()) < 0.06


def test_zero_filled_interpolation_counts_its_sampled_share(generator: torch.Generator) -> None:
    kspace = torch.zeros(4, 128, 128, dtype=torch.complex64)
    kspace[:, 32:96] = 3 * torch.randn(4, 64, 128, dtype=torch.complex64, generator=generator)
    mask = torch.zeros(128, 128, dtype=torch.bool)
    mask[32:96] = True
    found = covariance_from_background(kspace, mask)
    assert found.covariance.diagonal().real.mean() == pytest.approx(9, rel=0.03)


def test_double_precision_is_kept() -> None:
    truth = noise_covariance(2, torch.Generator().manual_seed(2), level=0.03)
    kspace, mask = scan((64, 64), truth, 0, torch.complex128)
    assert covariance_from_background(kspace, mask).covariance.dtype == torch.complex128


def test_undersampled_scans_are_refused() -> None:
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[::2] = True
    mask[24:40] = True
    with pytest.raises(InputError, match=r"undersampled.*--noise-covariance"):
        covariance_from_background(torch.ones(2, 64, 64, dtype=torch.complex64), mask)


def test_an_object_that_fills_the_image_is_refused(generator: torch.Generator) -> None:
    x = torch.linspace(-1, 1, 96)
    image = (1 + 0.5 * torch.cos(3 * x)[:, None] * torch.cos(2 * x)[None]).to(torch.complex64)
    kspace = fft(coil_maps(4, (96, 96)) * image, (-2, -1))
    kspace = kspace + 0.01 * torch.randn(kspace.shape, dtype=kspace.dtype, generator=generator)
    with pytest.raises(InputError, match=r"no background.*--noise-covariance"):
        covariance_from_background(kspace, torch.ones(96, 96, dtype=torch.bool))


def test_a_dead_coil_is_named(generator: torch.Generator) -> None:
    kspace = torch.randn(3, 64, 64, dtype=torch.complex64, generator=generator)
    kspace[1] = 0
    with pytest.raises(InputError, match="coil 1"):
        covariance_from_background(kspace, torch.ones(64, 64, dtype=torch.bool))


def disc(n: int, noise: float, seed: int) -> tuple[Tensor, Tensor]:
    """A disc and two coils on a small grid; its background is white noise of that SD."""
    x = torch.arange(n, dtype=torch.float64) / n - 0.5
    image = ((x[:, None] / 0.4) ** 2 + (x / 0.36) ** 2 < 1).to(torch.complex128)
    kspace = fft(coil_maps(2, (n, n)) * image, (-2, -1))
    sample = torch.randn(kspace.shape, dtype=kspace.dtype,
                         generator=torch.Generator().manual_seed(seed))
    return kspace + noise * sample, torch.ones(n, n, dtype=torch.bool)


@pytest.mark.parametrize("n", [24, 32, 48])
def test_two_coils_on_a_small_grid_are_not_overstated(n: int) -> None:
    """A tile has samples enough that the lowest level does not climb into the signal."""
    ratios = []
    for seed in range(10):
        try:
            found = covariance_from_background(*disc(n, 0.02, seed))
        except InputError:  # too few tiles are left
            continue
        ratios.append(float(found.covariance.diagonal().real.mean()) / 0.02**2)
    assert len(ratios) >= 7
    assert min(ratios) > 0.7
    assert max(ratios) < 1.25


def test_more_noise_than_at_the_edge_of_kspace_is_refused(generator: torch.Generator) -> None:
    """Noise of which the outer samples have a fifth: signal, or a filter over k-space."""
    kspace = torch.randn(2, 96, 96, dtype=torch.complex64, generator=generator)
    edge = torch.ones(96, 96)
    edge[8:-8, 8:-8] = 0
    mask = torch.ones(96, 96, dtype=torch.bool)
    assert covariance_from_background(kspace, mask).covariance.diagonal().real.mean() > 0.9
    with pytest.raises(InputError, match=r"edge of k-space.*--noise-covariance"):
        covariance_from_background(kspace * (1 - 0.8 * edge), mask)


# --- real scans ---------------------------------------------------------------------------------


def load(folder: Path, name: str, key: str) -> tuple[Tensor, Tensor]:
    kspace = torch.from_numpy(np.load(folder / name / "kspace.npz")[key].astype(np.complex64))
    return kspace, torch.ones(kspace.shape[1:], dtype=torch.bool)


def corners(kspace: Tensor, size: int) -> NoiseModel:
    """The naive estimate from the four corners of the image."""
    images = ifft(kspace.to(torch.complex128), (-2, -1))
    parts = [
        images[:, a, b].flatten(1)
        for a in (slice(0, size), slice(-size, None))
        for b in (slice(0, size), slice(-size, None))
    ]
    return covariance_from_noise_scan(torch.cat(parts, 1))


@pytest.mark.real_data
def test_pulseq_brain_is_coloured_along_the_readout(real_data: Path) -> None:
    kspace, mask = load(real_data, "pulseq_brain16", "brain_head16")
    found = covariance_from_background(kspace, mask)
    assert found.source == "background"
    assert float(off_diagonal(found).mean()) == pytest.approx(0.17, abs=0.015)
    assert float(off_diagonal(found).max()) == pytest.approx(0.49, abs=0.025)
    assert found.spectrum is not None
    sd = found.spectrum.sqrt()
    edges = (sd[:8].mean() + sd[-8:].mean()) / 2
    assert 0.35 < float(edges / sd[48:80].mean()) < 0.5
    # Central half of the outer rows, the direct measurement.
    images = ifft(kspace.to(torch.complex128), (-2, -1))[:, :, 32:96]
    direct = covariance_from_noise_scan(torch.cat([images[:, :6], images[:, -6:]], 1).flatten(1))
    ratio = found.covariance.diagonal().real / direct.covariance.diagonal().real.float()
    centre = float(ratio.mean() * found.spectrum[32:96].mean())
    assert centre == pytest.approx(1, abs=0.04)
    naive = corners(kspace, 12).covariance.diagonal().real / direct.covariance.diagonal().real
    assert float(naive.mean().sqrt()) < 0.5
    # The filter belongs to the receiver: the phantom scan shows the same.
    phantom = covariance_from_background(*load(real_data, "pulseq_brain16", "phantom_head16"))
    assert phantom.spectrum is not None
    assert float((phantom.spectrum.sqrt() - sd).abs().max()) < 0.1


@pytest.mark.real_data
def test_mripy_brain_fills_the_rows(real_data: Path) -> None:
    kspace, mask = load(real_data, "mripy_brain8", "kspace")
    naive = corners(kspace, 16)
    sd = naive.covariance.diagonal().real.sqrt()
    assert float(sd.min()) == pytest.approx(4.3, abs=0.15)
    assert float(sd.max()) == pytest.approx(5.0, abs=0.15)
    found = covariance_from_background(kspace, mask)
    assert found.spectrum is None
    assert float(off_diagonal(found).mean()) == pytest.approx(0.17, abs=0.03)
    assert float(off_diagonal(found).max()) == pytest.approx(0.36, abs=0.04)
    # The outermost rows and columns of this scan are attenuated; the samples themselves, in the
    # corners of k-space, tell the level.
    outer = torch.cat(
        [kspace[:, a, b].flatten(1) for a in (slice(4, 24), slice(-24, -4))
         for b in (slice(4, 24), slice(-24, -4))], dim=1
    )
    samples = outer.abs().square().mean(1).sqrt()
    ratio = found.covariance.diagonal().real.sqrt() / samples
    assert float(ratio.mean()) == pytest.approx(1.03, abs=0.04)


@pytest.mark.real_data
@pytest.mark.parametrize("n", [64, 48, 32])
@pytest.mark.parametrize("coils", [[0], [3], [0, 1], [2, 5], [6, 7], list(range(8))])
def test_small_crops_of_mripy_are_refused_or_near(
    real_data: Path, n: int, coils: list[int]
) -> None:
    """Ringing of the head fills the background of a small matrix, with up to 3000 times the noise
    where a single coil tells the two apart by few samples."""
    kspace, mask = load(real_data, "mripy_brain8", "kspace")
    truth = covariance_from_background(kspace, mask).covariance.diagonal().real[coils]
    first = 128 - n // 2
    crop = kspace[coils, first : first + n, first : first + n]
    try:
        found = covariance_from_background(crop, mask[:n, :n])
    except InputError:
        return
    ratio = found.covariance.diagonal().real / truth
    assert float(ratio.min()) > 0.7
    assert float(ratio.max()) < (3.5 if len(coils) > 2 else 1.3)


@pytest.mark.real_data
def test_cloudmr_background_agrees_with_its_noise_scan(real_data: Path) -> None:
    kspace, mask = load(real_data, "cloudmr_phantom16_noise", "kspace")
    noise, _ = load(real_data, "cloudmr_phantom16_noise", "noise")
    from_scan = covariance_from_noise_scan(noise)
    naive, found = corners(kspace, 8), covariance_from_background(kspace, mask)

    def agreement(model: NoiseModel) -> float:
        pair = np.stack([off_diagonal(model).numpy(), off_diagonal(from_scan).numpy()])
        return float(np.corrcoef(pair)[0, 1])

    def level(model: NoiseModel) -> float:
        ratio = model.covariance.diagonal().real / from_scan.covariance.diagonal().real
        return float(ratio.sqrt().mean())

    assert agreement(naive) == pytest.approx(0.93, abs=0.02)
    assert agreement(found) > agreement(naive)
    assert 0.73 < level(naive) < 0.82
    assert level(found) == pytest.approx(level(naive), abs=0.04)


@pytest.mark.parametrize(("coils", "samples"), [(8, 16), (8, 40), (4, 1000)])
def test_short_noise_scans_understate_what_is_optimised_with_them(coils, samples) -> None:
    generator = torch.Generator().manual_seed(3)
    ratios = []
    maps = torch.randn(coils, dtype=torch.complex128, generator=generator)
    for _ in range(300):
        noise = torch.randn(coils, samples, dtype=torch.complex128, generator=generator)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SnreconWarning)
            model = covariance_from_noise_scan(noise)
        solved = torch.linalg.solve(model.covariance, maps)
        stated = 1 / (maps.conj() @ solved).real
        ratios.append(float(solved.abs().square().sum() * stated))  # in truth, over stated
    mean, error = np.mean(ratios), np.std(ratios) / len(ratios) ** 0.5
    # The ratio of means is not the mean of ratios: equal to first order in coils / samples.
    expected = understated(samples, coils) ** 2
    assert mean == pytest.approx(expected, abs=4 * error + 0.15 * (expected - 1))
    noise = torch.randn(coils, samples, dtype=torch.complex128, generator=generator)
    if samples < 20 * coils:
        with pytest.warns(SnreconWarning, match=f"has {samples} samples for {coils} coils"):
            assert covariance_from_noise_scan(noise).details["understated"] > 1.1
    else:
        assert covariance_from_noise_scan(noise).details["understated"] < 1.01
