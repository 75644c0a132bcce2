"""Beyond first order, against spreads that are known, or found from very many replicas."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from benchmarks.small_problems import irregular_mask, small_scan

import networks_at_hand as nets
from snrecon.errors import InputError, SnreconWarning
from snrecon.noise import merge, noise_map
from snrecon.noise.pairs import PairMoments
from snrecon.noise.problem import Problem, probe_generator
from snrecon.recon import MoDL, UNet, ZeroFilled


def curved(strength: float):
    """Zero-filled reconstruction with a quadratic part: ``z + s z^2 / scale``, componentwise real
    and imaginary, whose spread under Gaussian noise is known."""
    scan = small_scan(irregular_mask(), snr=2.0)
    linear = ZeroFilled().bind(scan).function
    scale = float(linear(scan.kspace).abs().mean())

    def function(kspace: torch.Tensor) -> torch.Tensor:
        z = torch.view_as_real(linear(kspace))
        return torch.view_as_complex(z + strength / scale * z**2)

    return function, scan, linear, scale


def true_variance(strength: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Variances of both components of ``dx`` summed: of first order, and true. For a Gaussian
    component of mean m and variance v, ``Var(z + k z^2) = (1 + 2 k m)^2 v + 2 k^2 v^2``."""
    _, scan, linear, scale = curved(strength)
    k = strength / scale
    mean = torch.view_as_real(linear(scan.kspace))
    v = (noise_map(ZeroFilled(), scan, estimator="exact").sigma ** 2).unsqueeze(-1)
    first = (1 + 2 * k * mean) ** 2 * v
    return first.sum(-1), (first + 2 * k**2 * v**2).sum(-1)


def test_the_correction_of_a_quadratic_function_is_the_known_one():
    function, scan, *_ = curved(1.5)
    first, true = true_variance(1.5)
    inside = first > 1e-3 * first.max()
    assert float((true / first)[inside].mean()) > 1.05  # there is something to correct
    found = []
    for seed in range(4):
        result = noise_map(function, scan, estimator="corrected", tolerance=0, max_passes=2400,
                           seed=seed)
        assert result.passes <= 2400
        found.append(float((result.sigma_complex.double() ** 2 / true)[inside].mean()))
    error = np.std(found, ddof=1) / len(found) ** 0.5
    assert np.mean(found) == pytest.approx(1, abs=5.84 * error)  # 99 % of Student's t, 3 degrees
    assert error < 0.01


def test_it_agrees_with_replicas_where_first_order_does_not():
    """Mean over the voxels, with error bars from the spread over seeds."""
    recon, scan = MoDL(nets.modl()), small_scan(irregular_mask(), snr=2.0)
    problem = Problem.of(recon, scan)
    noise = torch.stack([
        problem.colouring.sample(probe_generator(9, k, 77)) for k in range(4000)])
    with torch.no_grad():
        images = problem.bound.function(scan.kspace + noise)
    along = problem.project(images - problem.image)[0]
    true = along.var(0)
    inside = true > 0.01 * true.max()
    ratios, first = [], []
    for seed in range(6):
        result = noise_map(recon, scan, estimator="corrected", tolerance=0, max_passes=600,
                           seed=seed)
        ratios.append(float((result.sigma.double() ** 2 / true)[inside].mean()))
        plain = noise_map(recon, scan, estimator="certified", tolerance=0, max_passes=400,
                          seed=seed)
        first.append(float((plain.sigma.double() ** 2 / true)[inside].mean()))
    own = np.std(ratios, ddof=1) / len(ratios) ** 0.5
    many = float((2 / 4000 / int(inside.sum())) ** 0.5) * 3  # voxels are not independent
    assert np.mean(ratios) == pytest.approx(1, abs=4 * (own**2 + many**2) ** 0.5)
    gap = abs(np.mean(first) - 1)
    assert gap > 6 * np.std(first, ddof=1) / len(first) ** 0.5  # first order is off for certain


def test_its_error_bar_covers():
    recon, scan = MoDL(nets.modl()), small_scan(irregular_mask(), snr=2.0)
    truth = noise_map(recon, scan, estimator="corrected", tolerance=0, max_passes=12000, seed=99)
    inside = truth.sigma > 0.05 * truth.sigma.max()
    shares = []
    for seed in range(6):
        result = noise_map(recon, scan, estimator="corrected", tolerance=0, max_passes=400,
                           seed=seed)
        z = (result.sigma - truth.sigma) / result.standard_error
        shares.append(float((z[inside].abs() < 1.96).double().mean()))
    # The voxels of so small an image err together: one seed's share scatters widely.
    assert np.mean(shares) == pytest.approx(0.95, abs=0.1)


def test_for_a_linear_method_there_is_nothing_to_correct():
    scan = small_scan(irregular_mask())
    exact = noise_map(ZeroFilled(), scan)
    found = noise_map(lambda y: ZeroFilled().bind(scan).function(y), scan, estimator="corrected",
                      tolerance=0, max_passes=2000)
    assert found.details["over_first_order"] == pytest.approx(1, abs=1e-9)
    noisy = exact.sigma > 0
    assert float((found.sigma / exact.sigma - 1)[noisy].abs().mean()) < 0.1


def test_the_tolerance_stops_it():
    recon, scan = MoDL(nets.modl()), small_scan(irregular_mask())
    result = noise_map(recon, scan, estimator="corrected", tolerance=0.2)
    assert result.estimator == "corrected"
    assert result.relative_error <= 0.2
    assert result.details["pairs"] % 8 == 0
    real = noise_map(UNet(nets.unet(1)), scan, estimator="corrected", tolerance=0.3)
    assert real.sigma_phase is None
    assert bool(torch.isfinite(real.sigma).all())


def test_it_goes_on_where_it_was_interrupted_and_merges(tmp_path):
    recon, scan = MoDL(nets.modl()), small_scan(irregular_mask())
    options = {"estimator": "corrected", "tolerance": 0, "max_passes": 160, "chunk": 2}
    whole = noise_map(recon, scan, **options)
    for limit in (10, 8):  # among the probes, and then among the pairs
        def stop(done: int, total: int | None, message: str, limit: int = limit) -> None:
            if done >= limit and (limit == 10 or "corrected" in message):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            noise_map(recon, scan, state=tmp_path / "1.h5", progress=stop, **options)
    again = noise_map(recon, scan, state=tmp_path / "1.h5", **options)
    torch.testing.assert_close(again.sigma, whole.sigma, rtol=1e-12, atol=0)
    assert again.passes == whole.passes
    assert again.details["first_order"] == whole.details["first_order"]
    noise_map(recon, scan, state=tmp_path / "2.h5", seed=2, **options)
    merged = merge([tmp_path / "1.h5", tmp_path / "2.h5"])
    assert merged.details["pairs"] == 2 * whole.details["pairs"]
    assert merged.relative_error < whole.relative_error


def test_products_of_distinct_draws():
    """The mean of e is taken out without bias, even with two pairs."""
    generator = torch.Generator().manual_seed(0)
    zero = torch.zeros(20000, 1, dtype=torch.float64)
    empty = PairMoments.empty(torch.zeros(3, 20000, 1), torch.zeros(20000, 1), 0.0)
    even = 3 + torch.randn(2, 20000, 1, generator=generator, dtype=torch.float64)
    pair = (zero.expand(2, -1, -1), zero.expand(2, -1, -1))
    moments = empty.added(pair, (even, even), pair)
    assert float(moments.correction()[0].mean()) == pytest.approx(1, abs=4 * 6 / 20000**0.5)


def test_one_pair_changes_nothing_and_its_error_is_unknown():
    first = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    pair = (torch.full((1, 4, 4), 30.0), torch.zeros(1, 4, 4))
    found = PairMoments.empty(first, 0.1 * first[0], 8).added(pair, pair, pair).result(first[0])
    torch.testing.assert_close(found.covariance, first)
    assert bool(torch.isinf(found.standard_error).all())


def test_a_variance_that_came_out_negative_has_an_error_like_any_other():
    generator = torch.Generator().manual_seed(2)
    nothing, ones = torch.zeros(4, 5000, 1), torch.ones(3, 5000, 1)
    linear = torch.randn(4, 5000, 1, generator=generator)
    moments = PairMoments.empty(ones, 0.1 * ones[0], 8).added(
        (nothing, nothing), (nothing, nothing), (linear, nothing))  # the truth is 0
    raw = (moments.first + moments.correction())[0]
    found = moments.result(ones[0])
    sigma = found.covariance[0].sqrt()
    negative = raw < 0
    assert 0.1 < float(negative.double().mean()) < 0.9
    assert bool((sigma > 0).all())
    assert bool((found.standard_error / sigma <= 1 + 1e-9).all())
    torch.testing.assert_close(found.standard_error[negative], sigma[negative])
    assert found.facts["over_first_order"] < 0.2  # nothing is added by what is cut off


def thresholded(scan):
    """Soft threshold of the zero-filled image: at low SNR far from linear."""
    bound = ZeroFilled().bind(scan)
    limit = 0.5 * float(bound(scan.kspace).abs().mean())

    def function(kspace: torch.Tensor) -> torch.Tensor:
        image = bound(kspace)
        size = (image.real**2 + image.imag**2 + (1e-2 * limit) ** 2).sqrt()
        return image * torch.relu(1 - limit / size)

    return function


@pytest.mark.parametrize("tolerance", [0.02, 0])
@pytest.mark.parametrize("passes", [8, 9, 20, 64])
def test_it_keeps_passes_for_pairs_and_spends_no_more(passes, tolerance):
    scan = small_scan(irregular_mask(), snr=2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SnreconWarning)
        result = noise_map(thresholded(scan), scan, estimator="corrected", tolerance=tolerance,
                           max_passes=passes)
    assert result.passes <= passes
    assert 3 * result.details["pairs"] >= min(passes / 2 - 2, 6)
    assert result.details["pairs"] >= 2
    assert bool(torch.isfinite(result.standard_error).all())


@pytest.mark.parametrize("tolerance", [0.05, 0])
def test_without_two_pairs_there_is_no_correction(tmp_path, tolerance):
    recon, scan = MoDL(nets.modl()), small_scan(irregular_mask())
    options = {"estimator": "corrected", "tolerance": tolerance}
    with pytest.raises(InputError, match=r"at least 8 passes.*not 7"):
        noise_map(recon, scan, max_passes=7, **options)

    def stop(done: int, total: int | None, message: str) -> None:
        if done >= 20:
            raise KeyboardInterrupt

    path = tmp_path / "run.h5"
    with pytest.raises(KeyboardInterrupt):  # in the first order
        noise_map(recon, scan, max_passes=160, state=path, progress=stop, chunk=1, **options)
    with pytest.raises(InputError, match=r"at least 26 passes.*not 24"):
        noise_map(recon, scan, max_passes=24, state=path, **options)
