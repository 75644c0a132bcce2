"""Noise maps: what rescaling does, flags of low SNR, relative error."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from snrecon.data import NoiseMap, relative_error


def noise_map() -> NoiseMap:
    image = torch.tensor([[3.0 + 4.0j, 1.0j], [0.0, 2.0]], dtype=torch.complex64)
    sigma = torch.tensor([[0.5, 0.5], [0.0, 0.4]])
    return NoiseMap(
        image=image,
        sigma=sigma,
        sigma_complex=math.sqrt(2) * sigma,
        snr=torch.tensor([[10.0, 2.0], [0.0, 5.0]]),
        sigma_phase=torch.tensor([[0.1, 0.5], [0.0, 0.2]]),
        g_factor=torch.full((2, 2), 1.2),
        standard_error=torch.tensor([[0.05, 0.4], [0.0, 0.02]]),
        covariance=torch.stack([sigma**2, sigma**2, 0 * sigma]),
        units="V",
    )


@pytest.mark.parametrize("factor", [2.0, -0.5])
def test_scale_takes_the_noise_along(factor: float) -> None:
    one, other = noise_map(), noise_map().scale(factor)
    size = abs(factor)
    assert torch.equal(other.image, one.image * factor)
    for name in ("sigma", "sigma_complex", "standard_error"):
        assert torch.equal(getattr(other, name), getattr(one, name) * size)
    for name in ("snr", "sigma_phase", "g_factor"):
        assert torch.equal(getattr(other, name), getattr(one, name))
    assert other.covariance is not None
    assert one.covariance is not None
    assert torch.equal(other.covariance, one.covariance * factor**2)
    assert torch.allclose(other.covariance[0].sqrt(), other.sigma)
    assert other.relative_error == pytest.approx(one.relative_error)
    assert other.units == f"{factor:g} x (V)"
    assert torch.equal(other.low_snr, one.low_snr)


def test_scale_of_maps_that_do_not_exist() -> None:
    little = replace(noise_map(), standard_error=None, covariance=None, sigma_phase=None)
    other = little.scale(3.0)
    assert other.standard_error is None
    assert other.covariance is None
    assert other.relative_error == 0
    assert little.scale(1).units == "V"


@pytest.mark.parametrize("factor", [0.0, math.nan, math.inf, -math.inf])
def test_scale_by_nothing(factor: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        noise_map().scale(factor)


def test_low_snr_flags() -> None:
    """Below 3 sigma, but not where there is no noise at all."""
    assert noise_map().low_snr.tolist() == [[False, True], [False, False]]


def test_relative_error_counts_voxels_above_three_sigma() -> None:
    expected = math.sqrt(((0.05 / 0.5) ** 2 + (0.02 / 0.4) ** 2) / 2)
    assert noise_map().relative_error == pytest.approx(expected)


def test_relative_error_without_signal_or_noise() -> None:
    sigma, error = torch.tensor([1.0, 2.0]), torch.tensor([0.1, 0.4])
    everywhere = math.sqrt((0.1**2 + 0.2**2) / 2)
    assert relative_error(torch.zeros(2), sigma, error) == pytest.approx(everywhere)
    assert relative_error(torch.ones(2), 0 * sigma, 0 * error) == 0


def test_frozen_and_printable() -> None:
    one = noise_map()
    with pytest.raises(FrozenInstanceError):
        one.seed = 3  # type: ignore[misc]
    text = repr(replace(one, method="sense", estimator="exact"))
    assert "2x2" in text
    assert "sense" in text
    assert "g_factor" in text
    nothing = replace(one, sigma=0 * one.sigma)
    assert "NoiseMap" in repr(nothing)
