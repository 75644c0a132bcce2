"""Calibration on errors of known distribution, correlated ones too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from snrecon.data import NoiseMap
from snrecon.errors import InputError
from snrecon.uncertainty import Calibration, Estimate, calibration, posterior
from uncertainty.samplers import Gaussian, flat_scan


def made(seed: int, truth: float = 1.0, size: int = 64, patch: int = 1, **options: object
         ) -> Estimate:
    """Errors of SD ``truth`` times the predicted one, which ranges over a factor of 4, the same in
    patches of voxels."""
    generator = torch.Generator().manual_seed(seed)
    few = size // patch
    sd = 0.5 * 4 ** torch.rand(few, few, dtype=torch.float64, generator=generator)
    error = truth * sd * torch.randn(few, few, dtype=torch.float64, generator=generator)
    sd, error = (x.repeat_interleave(patch, 0).repeat_interleave(patch, 1) for x in (sd, error))
    reference = torch.full((size, size), 100.0, dtype=torch.float64)
    return Estimate(reference, reference + error, sd, **options)  # type: ignore[arg-type]


def within(value: float, limits: tuple[float, float], slack: float = 2.0) -> bool:
    """Inside 95 % limits stretched about their middle: about four standard errors."""
    middle, half = sum(limits) / 2, (limits[1] - limits[0]) / 2
    return abs(value - middle) <= slack * half


def test_calibrated_errors() -> None:
    found = calibration(made(0), block=8)
    assert within(0.95, found.coverage_limits)
    assert within(1.0, found.z_sd_limits)
    assert found.width == pytest.approx(2 * 1.959964 * float(made(0).sd.mean()))
    assert len(found.predicted) == 10
    assert int(found.voxels.sum()) == 64 * 64
    half = (found.error_upper - found.error_lower) / 2
    assert bool((np.abs(found.error - found.predicted) < 2 * half).all())
    assert bool((np.diff(found.predicted) > 0).all())
    assert found.ece < 0.05 * found.rms_sd
    assert (found.units, found.count, found.scans) == ("blocks of 8 voxels", 64, 1)
    assert "intervals cover" in repr(found)


@pytest.mark.parametrize("truth", [0.5, 2.0])
def test_too_confident_or_too_careful(truth: float) -> None:
    found = calibration(made(1, truth), block=8)
    z = torch.distributions.Normal(0.0, 1.0)
    covered = float(2 * z.cdf(torch.tensor(1.959964 / truth)) - 1)
    assert within(covered, found.coverage_limits)
    assert not within(0.95, found.coverage_limits)
    assert within(truth, found.z_sd_limits)
    # |RMS error - RMS SD| is |truth - 1| times the SD in every bin.
    assert found.ence == pytest.approx(abs(truth - 1), rel=0.1)
    assert within(abs(truth - 1) * float(made(1).sd.mean()), found.ece_limits, 3.0)


def test_limits_know_that_neighbours_err_together() -> None:
    runs, options = 100, {"patch": 8}
    alone = [calibration(made(s, **options), block=1, seed=s, resamples=100) for s in range(3)]
    blocks = [calibration(made(s, **options), block=8, seed=s, resamples=300) for s in range(runs)]
    scatter = np.std([found.z_sd for found in blocks])

    def claimed(runs: list[Calibration]) -> float:
        return float(np.mean([(run.z_sd_limits[1] - run.z_sd_limits[0]) / 3.92 for run in runs]))

    assert claimed(alone) < 0.25 * scatter  # single voxels: 64 times too many trials
    assert 0.75 * scatter < claimed(blocks) < 1.25 * scatter
    for name, truth in (("z_sd", 1.0), ("coverage", 0.95)):
        limits = [getattr(found, f"{name}_limits") for found in blocks]
        inside = np.mean([low <= truth <= high for low, high in limits])
        assert inside > 0.93 - 4 * (0.07 * 0.93 / runs) ** 0.5, name


def test_blocks_that_are_all_covered_leave_room_for_others() -> None:
    estimate = made(0, truth=0.1, size=32)
    found = calibration(estimate, block=8)
    assert found.coverage == 1.0
    assert found.coverage_limits == (pytest.approx(0.77, abs=0.02), 1.0)  # of 16 trials, 16


def test_scans_are_drawn_from_ten_on() -> None:
    many = [made(s, size=16, scan=f"s{s % 12}") for s in range(24)]
    found = calibration(many)
    assert (found.units, found.count, found.scans) == ("scans", 12, 12)
    assert within(0.95, found.coverage_limits)
    few = calibration(many[:3], block=8)
    assert (few.units, few.count) == ("blocks of 8 voxels", 12)
    assert calibration(many[:3], by="scans").count == 3
    assert calibration(many).coverage_limits == found.coverage_limits


def test_one_sd_everywhere_is_one_bin() -> None:
    estimate = made(3)
    flat = Estimate(estimate.reference, estimate.image, torch.full_like(estimate.sd, 0.7))
    found = calibration(flat, block=8)
    assert len(found.predicted) == 1
    assert found.error[0] == pytest.approx(found.rms_error)


def test_an_exact_posterior_is_calibrated() -> None:
    """The truth drawn from the sampler's own prior, its posterior from the sampler."""
    recon = Gaussian(prior=1.0, noise=0.5, fast=True)
    estimates = []
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)

        def draw(variance: float, generator: torch.Generator = generator) -> Tensor:
            return variance**0.5 * torch.randn(16, 16, dtype=torch.complex128, generator=generator)

        truth = 1.5 + draw(recon.prior)
        # The prior has mean 0, so the sampler sees data from which 1.5 is taken, put back after.
        scan = flat_scan(truth - 1.5 + draw(recon.noise), recon.noise)
        result = posterior(recon, scan, 45, seed=seed, keep=True)
        assert result.samples is not None
        magnitudes = (1.5 + result.samples).abs()
        ordered = magnitudes.sort(0).values
        rank = 46 * 0.025
        lower = ordered[0] + (rank - 1) * (ordered[1] - ordered[0])
        upper = ordered[-1] - (rank - 1) * (ordered[-1] - ordered[-2])
        estimates.append(Estimate(truth, magnitudes.mean(0), magnitudes.std(0), lower, upper))
    found = calibration(estimates)
    assert within(0.95, found.coverage_limits)
    assert found.coverage == pytest.approx(0.95, abs=0.02)


def test_results_as_estimates() -> None:
    scan = flat_scan(torch.full((16, 16), 30 + 0j, dtype=torch.complex128), 0.5)
    reference = torch.full((16, 16), 20.0)
    result = posterior(Gaussian(), scan, 4)
    estimate = Estimate.of(result, reference, scan="a")
    assert estimate.level == result.level
    torch.testing.assert_close(estimate.sd, result.spread)
    sigma = torch.full((16, 16), 0.3)
    image = torch.full((16, 16), 20.1, dtype=torch.complex64)
    noise = NoiseMap(image, sigma, sigma, image.abs() / sigma)
    found = calibration(Estimate.of(noise, reference, level=0.5), block=4)
    assert found.coverage == 1.0
    assert found.width == pytest.approx(2 * 0.67449 * 0.3, rel=1e-4)
    assert found.z_mean == pytest.approx(1 / 3, rel=1e-4)


def test_arrays_of_numpy() -> None:
    one = made(0)
    plain = Estimate(one.reference.numpy(), one.image.numpy(), one.sd.numpy(),
                     region=np.ones((64, 64), bool))
    assert repr(calibration(plain)) == repr(calibration(one))


def test_bad_input() -> None:
    good = made(0, size=16)
    shape = torch.ones(16, 16)
    for kwargs, words in (
        ({"sd": torch.ones(3, 3)}, "sd has shape"),
        ({"sd": -shape}, "negative"),
        ({"image": shape * float("nan")}, "image contains NaN"),
        ({"lower": shape}, "both limits"),
        ({"region": shape.bool() & False}, "no voxel"),
        ({"level": 1.0}, "between 0 and 1"),
        ({"lower": 2 * shape, "upper": shape}, "lower limit lies above"),
        ({"sd": 1j * shape}, "sd must be real"),
        ({"reference": [1.0]}, "reference must be an array, not list"),
        ({"image": None}, "image must be an array, not NoneType"),
    ):
        fields = {"reference": shape, "image": shape, "sd": shape, **kwargs}
        with pytest.raises(InputError, match=words):
            Estimate(**fields)
    for call, words in (
        (lambda: calibration([]), "at least one estimate"),
        (lambda: calibration([good, made(1, size=16, level=0.9)]), "different levels"),
        (lambda: calibration(good), "choose a smaller block"),
        (lambda: calibration(good, by="scans"), "bootstrap over blocks"),
        (lambda: calibration(good, by="slices"), "by must be"),
        (lambda: calibration(good, bins=0), "at least 1"),
        (lambda: calibration(good, bins=2.5), "bins must be a whole number"),
        (lambda: calibration(good, block=8.0), "block must be a whole number"),
        (lambda: calibration([good, 3]), "takes Estimates, not int"),
    ):
        with pytest.raises(InputError, match=words):
            call()
