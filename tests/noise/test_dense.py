"""Every estimator on every reconstruction against a dense matrix built without autodiff."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from benchmarks.dense_noise import reference
from benchmarks.small_problems import NAMES, small_problems

from snrecon.noise import noise_map
from snrecon.noise.analytic import unsupported
from snrecon.noise.problem import Problem


@pytest.fixture(scope="module")
def solved() -> dict:
    """Problems with their dense reference, made when first asked for."""
    return {}


def problem_and_reference(name: str, solved: dict) -> tuple:
    if name not in solved:
        small = small_problems([name])[0]
        bound = small.recon.bind(small.scan)
        lamda = float(bound.details.get("lambda", 0.0))
        solved[name] = small, reference(bound.method, bound, small.scan, lamda)
    return solved[name]


@pytest.mark.parametrize("name", NAMES)
def test_exact_rows_equal_the_dense_matrix(name: str, solved: dict) -> None:
    small, dense = problem_and_reference(name, solved)
    result = noise_map(small.recon, small.scan, estimator="exact")
    tolerance = 1e-8 if small.linear else 1e-6
    scale = np.abs(dense[:2]).max()
    assert scale > 0
    np.testing.assert_allclose(result.covariance.numpy(), dense, rtol=0, atol=tolerance * scale)
    np.testing.assert_allclose(result.sigma.numpy() ** 2, dense[0], rtol=0, atol=tolerance * scale)
    total = dense[0] + dense[1]
    np.testing.assert_allclose(
        result.sigma_complex.numpy() ** 2, total, rtol=0, atol=tolerance * scale
    )


@pytest.mark.parametrize("name", NAMES)
def test_analytic_equals_the_dense_matrix_where_it_exists(name: str, solved: dict) -> None:
    small = small_problems([name])[0]
    if unsupported(Problem.of(small.recon, small.scan)) is not None:
        with pytest.raises(ValueError, match="no analytic noise map"):
            noise_map(small.recon, small.scan, estimator="analytic")
        return
    small, dense = problem_and_reference(name, solved)
    result = noise_map(small.recon, small.scan, estimator="analytic")
    tolerance = 1e-8 if small.linear else 1e-6
    scale = np.abs(dense[:2]).max()
    np.testing.assert_allclose(result.covariance.numpy(), dense, rtol=0, atol=tolerance * scale)
    assert result.passes == 0
    assert float(result.standard_error.abs().max()) == 0


def test_analytic_exists_where_it_is_promised() -> None:
    closed = {
        small.name
        for small in small_problems()
        if unsupported(Problem.of(small.recon, small.scan)) is None
    }
    assert closed == {
        "zero_filled",
        "zero_filled coloured",
        "rss",
        "sense regular",
        "sense lines",
        "sense lines coloured",
        "sense lambda",
        "partial zero_filled",
    }


@pytest.mark.parametrize("estimator", ["sketch", "replicas"])
@pytest.mark.parametrize("name", NAMES)
def test_sampling_estimators_agree_within_their_error_bars(
    name: str, estimator: str, solved: dict
) -> None:
    small, dense = problem_and_reference(name, solved)
    result = noise_map(
        small.recon,
        small.scan,
        estimator=estimator,
        tolerance=0,
        max_passes=400,
        noise_scale=1.0 if small.linear else 0.01,
    )
    sigma = np.sqrt(dense[0])
    noisy = sigma > 1e-6 * sigma.max()
    deviation = (result.sigma.numpy() - sigma)[noisy] / result.standard_error.numpy()[noisy]
    # Voxels share probes, so deviations are correlated: a mean square of 1 scatters by much less
    # than 50 % over 100 voxels, whereas an error of 10 % in sigma (2.8 SE at 400) gives 9.
    assert 0.5 < np.mean(deviation**2) < 1.7
    assert abs(np.mean(deviation)) < 0.6


def test_maps_off_the_support_are_zero() -> None:
    small = small_problems(["sense lines"])[0]
    result = noise_map(small.recon, small.scan, estimator="sketch", tolerance=0, max_passes=16)
    off = (small.scan.maps == 0).all(dim=0)
    assert bool(off.any())
    for name in ("sigma", "sigma_complex", "snr", "g_factor", "standard_error", "sigma_phase"):
        values = getattr(result, name)
        assert bool(torch.isfinite(values).all()), name
        assert float(values[off].abs().max()) == 0, name
