"""Streaming moments against numpy, and the intervals they lead to against simulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from snrecon.errors import InputError
from snrecon.noise.intervals import chi_square_quantile, sigma_interval
from snrecon.noise.moments import Moments


def filled(a: torch.Tensor, b: torch.Tensor | None, zero_mean: bool, pieces: int = 3) -> Moments:
    moments = Moments.empty(a[0], zero_mean)
    for part, other in zip(
        a.chunk(pieces), [None] * pieces if b is None else b.chunk(pieces), strict=True
    ):
        moments = moments.added(part, other)
    return moments


def test_covariance_of_replicas_is_the_sample_covariance(generator: torch.Generator) -> None:
    a = torch.randn(30, 4, 5, generator=generator) + 0.7
    b = 0.5 * a + torch.randn(30, 4, 5, generator=generator)
    covariance = filled(a, b, zero_mean=False).covariance().numpy()
    for i in range(4):
        for j in range(5):
            expected = np.cov(a[:, i, j].double().numpy(), b[:, i, j].double().numpy())
            found = covariance[:, i, j]
            np.testing.assert_allclose(
                found, [expected[0, 0], expected[1, 1], expected[0, 1]], rtol=1e-10
            )


def test_covariance_of_products_does_not_estimate_a_mean(generator: torch.Generator) -> None:
    a = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    covariance = filled(a, None, zero_mean=True).covariance()
    torch.testing.assert_close(covariance[0], (a**2).mean(0))
    assert float(covariance[1:].abs().max()) == 0


def test_merging_equals_accumulating_everything(generator: torch.Generator) -> None:
    a, b = torch.randn(2, 40, 7, generator=generator, dtype=torch.float64)
    whole = filled(a, b, zero_mean=False)
    merged = filled(a[:13], b[:13], False).merged(filled(a[13:], b[13:], False))
    assert merged.count == 40
    for name, total in whole.sums.items():
        torch.testing.assert_close(merged.sums[name], total)


@pytest.mark.parametrize("n", [16, 64, 256])
def test_dispersion_is_two_for_gaussian_samples(n: int, generator: torch.Generator) -> None:
    a = torch.randn(n, 4000, generator=generator, dtype=torch.float64)
    c = filled(a, None, zero_mean=True).dispersion()
    # The pooled mean over 4000 independent voxels has an SE of sqrt(24 / (4000 n)).
    assert float(c.mean()) == pytest.approx(2, abs=5 * (24 / (4000 * n)) ** 0.5 + 0.01)


def test_dispersion_follows_voxels_that_really_differ(generator: torch.Generator) -> None:
    gaussian = torch.randn(4000, 50, generator=generator, dtype=torch.float64)
    signs = torch.randint(0, 2, (4000, 50), generator=generator) * 2.0 - 1
    c = filled(torch.cat([gaussian, signs], dim=1), None, zero_mean=True).dispersion()
    assert float(c[:50].mean()) == pytest.approx(2, abs=0.1)
    assert float(c[50:].max()) < 0.2  # a fair sign has no dispersion at all: c = 0


def test_dispersion_complex_of_circular_and_of_one_sided_noise(generator: torch.Generator) -> None:
    a, b = torch.randn(2, 2000, 20, generator=generator, dtype=torch.float64)
    assert float(filled(a, b, True).dispersion_complex().mean()) == pytest.approx(1, abs=0.01)
    assert float(filled(a, 0 * b, True).dispersion_complex().mean()) == pytest.approx(2, abs=1e-9)


def test_chi_square_quantiles_equal_scipy() -> None:
    degrees = torch.tensor([1.0, 2.5, 16, 63.7, 400, 1e5], dtype=torch.float64)
    for probability in (0.025, 0.5, 0.975):
        expected = stats.chi2.ppf(probability, degrees.numpy())
        found = chi_square_quantile(probability, degrees).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-8)


@pytest.mark.parametrize("n", [8, 64])
@pytest.mark.parametrize("zero_mean", [True, False])
def test_intervals_cover_gaussian_samples(
    n: int, zero_mean: bool, generator: torch.Generator
) -> None:
    voxels = 20000
    a = 3 * torch.randn(n, voxels, generator=generator, dtype=torch.float64)
    moments = filled(a, None, zero_mean, pieces=2)
    sigma, _ = moments.sigma()
    low, high = sigma_interval(sigma, moments.degrees_of_freedom())
    coverage = float(((low <= 3) & (high >= 3)).double().mean())
    assert coverage == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / voxels) ** 0.5 + 0.004)


def test_standard_error_is_the_spread_of_the_estimate(generator: torch.Generator) -> None:
    a = torch.randn(100, 20000, generator=generator, dtype=torch.float64)
    sigma, error = filled(a, None, zero_mean=True).sigma()
    assert float(error.mean()) == pytest.approx(float(sigma.std()), rel=0.03)


def test_one_sample_has_no_spread_about_its_own_mean(generator: torch.Generator) -> None:
    sample = torch.randn(1, 3, 3, generator=generator)
    one = Moments.empty(sample[0], zero_mean=False).added(sample, None)
    with pytest.raises(InputError, match="at least two"):
        one.result(sample[0])
    product = Moments.empty(sample[0], zero_mean=True).added(sample, None)
    assert bool((product.result(sample[0]).standard_error > 0).all())
