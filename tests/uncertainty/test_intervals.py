"""Limits for one more sample: closed forms, and how often it falls inside."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from snrecon.errors import InputError
from snrecon.uncertainty.intervals import (
    ORDER,
    STUDENT,
    checked_level,
    kind_of_interval,
    student_quantile,
    tail,
)
from snrecon.uncertainty.sample_moments import SampleMoments


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 10, 37])
@pytest.mark.parametrize("probability", [0.5, 0.75, 0.975, 0.999])
def test_student_quantiles(degrees: int, probability: float) -> None:
    expected = stats.t.ppf(probability, degrees)
    assert student_quantile(probability, degrees) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_where_order_statistics_begin() -> None:
    assert [kind_of_interval(n, 0.95) for n in (2, 38, 39)] == [STUDENT, STUDENT, ORDER]
    assert [kind_of_interval(n, 0.9) for n in (18, 19)] == [STUDENT, ORDER]
    assert (tail(38, 0.95), tail(39, 0.95), tail(100, 0.95)) == (0, 2, 3)
    for level in (0, 1, 1.5, float("nan")):
        with pytest.raises(InputError, match="between 0 and 1"):
            checked_level(level)


@pytest.mark.parametrize(("samples", "level"), [(3, 0.95), (12, 0.9), (39, 0.95), (50, 0.9)])
def test_one_more_sample_falls_inside(samples: int, level: float) -> None:
    generator = torch.Generator().manual_seed(samples)
    voxels = 20_000
    draws = 50 + torch.randn(samples + 1, voxels, dtype=torch.float64, generator=generator)
    if kind_of_interval(samples, level) == ORDER:
        draws = draws.exp()  # of no particular distribution
    moments = SampleMoments.empty(draws[0], tail(samples, level))
    for part in draws[:samples].split(7):
        moments = moments.added(part)
    lower, upper, kind = moments.limits(level)
    assert kind == kind_of_interval(samples, level)
    inside = ((lower <= draws[-1]) & (draws[-1] <= upper)).double().mean()
    error = (level * (1 - level) / voxels) ** 0.5
    assert abs(float(inside) - level) < 4 * error


def test_limits_are_those_of_sorted_samples() -> None:
    draws = torch.randn(57, 40, dtype=torch.complex128,
                        generator=torch.Generator().manual_seed(1))
    moments = SampleMoments.empty(draws[0], tail(57, 0.9)).added(draws)
    lower, upper, _ = moments.limits(0.9)
    expected = torch.quantile(draws.abs(), torch.tensor([0.05, 0.95], dtype=torch.float64), dim=0)
    ordered = draws.abs().sort(0).values
    rank = 58 * 0.05  # 2.9: between the second and third smallest
    torch.testing.assert_close(lower, ordered[1] + (rank - 2) * (ordered[2] - ordered[1]))
    torch.testing.assert_close(upper, ordered[-2] - (rank - 2) * (ordered[-2] - ordered[-3]))
    assert bool((lower <= expected[0]).all())  # wider than what leaves out the new sample
    assert bool((upper >= expected[1]).all())


def test_a_small_spread_about_a_large_image_loses_nothing() -> None:
    generator = torch.Generator().manual_seed(2)
    away = 1e-5 * torch.randn(30, 50, dtype=torch.complex128, generator=generator)
    draws = 1000 + away
    moments = SampleMoments.empty(draws[0], 8).added(draws[:11]).added(draws[11:])
    torch.testing.assert_close(moments.magnitude.sigma()[0], draws.abs().std(0), rtol=1e-5, atol=0)
    gap = draws - draws.mean(0)
    spread = ((gap.abs() ** 2).sum(0) / 29).sqrt()
    torch.testing.assert_close(moments.spread_complex(), spread, rtol=1e-5, atol=0)
    torch.testing.assert_close(moments.mean(), draws.mean(0))
