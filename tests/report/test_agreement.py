"""Agreement of noise maps, corrected for the sampling error both carry."""

from __future__ import annotations

import pytest
import torch

from snrecon.data import NoiseMap
from snrecon.report import agreement


def noisy(truth: torch.Tensor, error: float, generator: torch.Generator) -> NoiseMap:
    sigma = truth * (1 + error * torch.randn(truth.shape, generator=generator))
    return NoiseMap(
        image=100 * truth + 0j,
        sigma=sigma,
        sigma_complex=sigma,
        snr=100 * truth / sigma,
        standard_error=error * sigma,
    )


def test_correction_recovers_a_perfect_correlation(generator: torch.Generator) -> None:
    truth = 1 + 0.1 * torch.randn(120, 120, generator=generator)
    first, second = noisy(truth, 0.08, generator), noisy(truth, 0.05, generator)
    both = agreement(first, second)
    expected = ((1 + (0.08 / 0.1) ** 2) * (1 + (0.05 / 0.1) ** 2)) ** -0.5
    assert both.ceiling == pytest.approx(expected, rel=0.03)
    assert both.correlation < 0.8
    assert both.corrected == pytest.approx(1, abs=0.03)
    assert both.mean_ratio == pytest.approx(1, abs=0.005)
    assert "corrected" in str(both)


def test_a_wrong_map_is_not_corrected_into_a_right_one(generator: torch.Generator) -> None:
    truth = 1 + 0.1 * torch.randn(120, 120, generator=generator)
    other = 1 + 0.1 * torch.randn(120, 120, generator=generator)
    both = agreement(noisy(1.3 * truth, 0.05, generator), noisy(other, 0.05, generator))
    assert abs(both.corrected) < 0.1
    assert both.mean_ratio == pytest.approx(1.3, rel=0.01)


def test_constant_maps_have_no_correlation(generator: torch.Generator) -> None:
    truth = torch.ones(200, 200)
    first = noisy(truth, 0.05, generator)
    flat = NoiseMap(**{**vars(first), "standard_error": 0.06 * first.sigma})
    both = agreement(flat, flat)
    assert both.ceiling == 0
    assert "no spatial structure" in str(both)


def test_a_choice_of_voxels() -> None:
    truth = torch.rand(20, 20) + 1
    first = noisy(truth, 0.0, torch.Generator())
    second = noisy(2 * truth, 0.0, torch.Generator())
    where = torch.zeros(20, 20, dtype=torch.bool)
    where[:5] = True
    both = agreement(first, second, where)
    assert both.voxels == 100
    assert both.mean_ratio == pytest.approx(0.5)
    assert both.correlation == pytest.approx(1)
    with pytest.raises(ValueError, match="three"):
        agreement(first, second, torch.zeros(20, 20, dtype=torch.bool))
