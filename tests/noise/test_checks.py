"""Linearity, the Rician correction, and repeated measurements."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmarks.small_problems import irregular_mask, plane_mask, small_scan
from scipy import stats

from snrecon.errors import InputError
from snrecon.noise import (
    linearity_check,
    noise_map,
    repetition_check,
    rician_mean_sd,
    rician_sigma,
)
from snrecon.physics.fourier import ifft
from snrecon.physics.thermal import NoiseColouring
from snrecon.recon.convdecoder import ConvDecoder
from snrecon.recon.sense import Sense
from snrecon.recon.zero_filled import ZeroFilled


def test_a_linear_method_is_linear() -> None:
    check = linearity_check(Sense(lamda=0.2), small_scan(irregular_mask()))
    assert check.overall < 1e-10
    assert check.even < 1e-10
    assert check.ratio == pytest.approx(1, abs=1e-9)
    assert bool(check.trusted().all())


def test_residual_falls_with_the_noise_level() -> None:
    scan = small_scan(irregular_mask())
    check = [
        linearity_check(ZeroFilled("rss"), scan, noise_scale=s).overall for s in (1.0, 0.1, 0.01)
    ]
    # The first neglected term is quadratic: the relative residual is proportional to the noise.
    assert check[0] / check[1] == pytest.approx(10, rel=0.25)
    assert check[1] / check[2] == pytest.approx(10, rel=0.05)


def test_predicted_ratio_is_that_of_replicas() -> None:
    scan = small_scan(irregular_mask(), snr=2.0)
    recon = ZeroFilled("rss")
    check = linearity_check(recon, scan, draws=200)
    first = noise_map(recon, scan, estimator="analytic")
    replicas = noise_map(recon, scan, estimator="replicas", tolerance=0, max_passes=1500)
    true_ratio = float(((replicas.sigma**2).mean() / (first.sigma**2).mean()).sqrt())
    assert abs(true_ratio - 1) > 0.02, "this problem was meant to be nonlinear"
    assert check.ratio == pytest.approx(true_ratio, abs=4 * check.ratio_error + 0.01)
    assert 0 < check.ratio_error < 0.02


def test_predicted_ratios_of_one_component_and_of_both() -> None:
    scan = small_scan(irregular_mask(), snr=4.0)

    def curved(kspace: torch.Tensor) -> torch.Tensor:
        # Its phase turns with the noise along it: almost only the second component is curved.
        image = ifft(kspace, (-2, -1)).sum(0)
        return image * torch.exp(0.2j * image.abs().square() / image.abs().square().mean())

    check = linearity_check(curved, scan, draws=200)
    first = noise_map(curved, scan, estimator="sketch", tolerance=0, max_passes=2000)
    replicas = noise_map(curved, scan, estimator="replicas", tolerance=0, max_passes=2000)
    for name, found, error in (("sigma", check.ratio, check.ratio_error),
                               ("sigma_complex", check.ratio_complex, check.ratio_complex_error)):
        squares = [getattr(result, name).double().square().mean() for result in (replicas, first)]
        assert 0 < error < 0.01
        assert found == pytest.approx(float(squares[0] / squares[1]) ** 0.5, abs=4 * error + 0.01)
    assert abs(check.ratio - check.ratio_complex) > 0.03, "both were meant to differ"
    real = linearity_check(ZeroFilled("rss"), scan)
    assert (real.ratio, real.ratio_error) == (real.ratio_complex, real.ratio_complex_error)


def test_rician_mean_and_sd_equal_scipy() -> None:
    snr = np.array([0.0, 0.5, 1, 2, 3, 8, 30, 90, 110, 1e4])
    sigma = 0.7
    mean, sd = rician_mean_sd(torch.from_numpy(snr * sigma), torch.full((10,), sigma).double())
    expected = stats.rice(snr[:6], scale=sigma)
    np.testing.assert_allclose(mean.numpy()[:6], expected.mean(), rtol=1e-6)
    np.testing.assert_allclose(sd.numpy()[:6], expected.std(), rtol=1e-6)
    np.testing.assert_allclose(
        sd.numpy()[6:] / sigma, 1 - 1 / (4 * snr[6:] ** 2), rtol=2e-6
    )  # leading term of the expansion at high SNR
    assert sd[0] / sigma == pytest.approx(0.655, abs=5e-4)
    assert sd[3] / sigma == pytest.approx(0.9145, abs=5e-4)


def test_rician_sigma_of_measured_images(generator: torch.Generator) -> None:
    truth = torch.tensor([0.0, 2.0, 20.0], dtype=torch.float64)
    noise = torch.randn(3, 100000, dtype=torch.complex128, generator=generator) * 2**0.5
    images = truth[:, None] + noise
    # The correction is exact for the root mean square magnitude, E|x|^2 = a^2 + 2 sigma^2.
    typical = (images.abs() ** 2).mean(1).sqrt()
    corrected = rician_sigma(typical, torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(corrected, images.abs().std(1), rtol=0.01, atol=0.005)
    assert float(rician_sigma(torch.zeros(1), torch.zeros(1))) == 0


def test_repetitions_confirm_the_map_and_catch_a_wrong_one(generator: torch.Generator) -> None:
    scan = small_scan(irregular_mask(), coloured=True)
    colouring = NoiseColouring.of(scan)
    clean = scan.kspace
    repetitions = torch.stack([clean + colouring.sample(generator) for _ in range(20)])
    repeated = replace(scan, kspace=repetitions[0], repetitions=repetitions)
    recon = Sense(lamda=0.1)
    result = noise_map(recon, repeated)
    check = repetition_check(recon, repeated, result)
    assert check.repetitions == 20
    # Correlated voxels make the naive error a lower limit; 4 times it still excludes 1.4.
    assert check.ratio == pytest.approx(1, abs=max(4 * check.ratio_error, 0.06))
    wrong = repetition_check(recon, repeated, result.scale(2**0.5))
    assert wrong.ratio < 0.8
    with pytest.raises(InputError, match="no repetitions"):
        repetition_check(recon, scan, result)


def test_linearity_of_what_has_no_derivative() -> None:
    recon = ConvDecoder(layers=2, channels=4, iterations=20)
    with pytest.raises(InputError, match=r"no first order to check.*replicas"):
        linearity_check(recon, small_scan(plane_mask()))


def test_the_rician_correction_wants_noise_of_both_components() -> None:
    scan = small_scan(irregular_mask())
    complex_one = noise_map(Sense(), scan)
    assert bool((rician_sigma(complex_one) <= complex_one.sigma * 1.0001).all())
    real = replace(complex_one, image=complex_one.image.abs())
    along = complex_one.covariance.clone()
    along[1:] = 0
    for result in (real, replace(complex_one, covariance=along)):
        with pytest.raises(InputError, match="no part across"):
            rician_sigma(result)
