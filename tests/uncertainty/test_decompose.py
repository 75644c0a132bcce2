"""The law of total variance of samplers, against closed forms and a full outer Monte Carlo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.errors import InputError, SnreconWarning
from snrecon.recon.base import Bound, Reconstructor
from snrecon.recon.sense import Sense
from snrecon.uncertainty import decompose
from snrecon.uncertainty.decompose import Decomposition
from uncertainty.samplers import Gaussian, Mixture, flat_scan, mixture_scan

PARTS = ("thermal", "posterior", "total", "fixed_seed")


def check(found: Decomposition, part: str, expected: float, errors: float = 4.0,
          floor: float = 0.0) -> None:
    """The mean over voxels of both variances within so many standard errors. Images whose noise and
    draws lie along the phase alone have equal ones."""
    value, error, complex_, complex_error = getattr(found, part).regions["all"]
    assert 0 < error < 0.2 * expected, f"{part}: the check would be blind"
    assert abs(value - expected) < errors * error + floor, (part, value, expected, error)
    assert abs(complex_ - expected) < errors * complex_error + floor


def quadrature(mixture: Mixture, d: float, variance: float) -> dict[str, float]:
    """Exact parts over repeated scans, noise of this variance about d."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    w = torch.from_numpy(weights / weights.sum())
    mean, spread = mixture.moments(d + variance**0.5 * torch.from_numpy(nodes))
    average = (w * mean).sum()
    thermal = (w * (mean - average) ** 2).sum()
    posterior = (w * spread).sum()
    return {"thermal": float(thermal), "posterior": float(posterior),
            "total": float(thermal + posterior)}


def first_order(mixture: Mixture, d: float, variance: float) -> dict[str, float]:
    """Thermal part and fixed seed to first order at d, by fine quadrature over z."""
    z = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    at, step = torch.full_like(z, d), 1e-4
    slope = (mixture.transported(at + step, z) - mixture.transported(at - step, z)) / (2 * step)
    return {"thermal": float(slope.mean() ** 2) * variance,
            "fixed_seed": float((slope**2).mean()) * variance}


def outer_monte_carlo(recon: Mixture, d: float, variance: float, scans: int, draws: int
                      ) -> dict[str, tuple[float, float]]:
    """Many noisy scans and many draws in each: the parts with their standard errors."""
    generator = torch.Generator().manual_seed(99)
    noisy = d + variance**0.5 * torch.randn(scans, 1, dtype=torch.float64, generator=generator)
    z = torch.rand(scans, draws, dtype=torch.float64, generator=generator).clamp(1e-6, 1 - 1e-6)
    normal = torch.randn(scans, draws, dtype=torch.float64, generator=generator)
    x = recon.drawn(noisy, z, normal)
    within = x.var(dim=1)
    means = x.mean(dim=1)
    thermal = (means - means.mean()) ** 2 * scans / (scans - 1) - within / draws
    root = scans**0.5
    return {"thermal": (float(thermal.mean()), float(thermal.std()) / root),
            "posterior": (float(within.mean()), float(within.std()) / root),
            "total": (float((thermal + within).mean()), float((thermal + within).std()) / root)}


@pytest.mark.parametrize("jitter", [0.0, 0.8])
@pytest.mark.parametrize("estimator", ["jacobian", "replicas"])
def test_a_gaussian_sampler(estimator: str, jitter: float) -> None:
    recon = Gaussian(jitter=jitter, fast=estimator == "replicas")
    image, variance = torch.full((16, 16), 0.6 - 0.8j, dtype=torch.complex128), 0.5
    found = decompose(recon, flat_scan(image, variance), rounds=40, estimator=estimator)
    thermal, own, moved = recon.gain**2 * variance, recon.gain * recon.noise, recon.gain**2
    moved *= jitter**2
    exact = {  # along the phase of the image, and both components
        "thermal": (thermal / 2, thermal),
        "fixed_seed": ((1 + jitter**2) * thermal / 2, (1 + jitter**2) * thermal),
        "posterior": (own / 2 + moved * (1 + variance / 2), own + moved * (1 + variance)),
    }
    exact["total"] = tuple(t + p for t, p in zip(exact["thermal"], exact["posterior"]))
    for name, (along, both) in exact.items():
        a, a_error, c, c_error = getattr(found, name).regions["all"]
        assert 0 < c_error < 0.1 * both
        assert abs(a - along) < 4 * a_error, name
        assert abs(c - both) < 4 * c_error, name
    # In single voxels: about as many outliers as chance has it.
    away = (found.posterior.variance_complex - exact["posterior"][1]) / (
        found.posterior.variance_complex_error)
    assert float((away.abs() > 3).double().mean()) < 0.06
    if estimator == "jacobian" and not jitter:
        # Linear in the data: every seed answers alike, and the first order is everything.
        torch.testing.assert_close(found.thermal.variance_complex,
                                   found.fixed_seed.variance_complex)
        assert found.details["finite_over_first_order"] == pytest.approx((1, 0), abs=1e-9)


@pytest.mark.parametrize("d", [0.0, 0.8])
def test_only_a_mixture_tells_the_thermal_part_from_a_fixed_seed(d: float) -> None:
    recon, variance = Mixture(), 0.02
    exact = first_order(recon, d, variance)
    assert exact["fixed_seed"] > 1.2 * exact["thermal"], "nothing to tell apart"
    found = decompose(recon, mixture_scan(d, recon, variance), rounds=24, estimator="jacobian")
    for name, value in exact.items():
        check(found, name, value)
    ratio, ratio_error = found.details["finite_over_first_order"]
    assert abs(ratio - 1) < 4 * ratio_error + 0.05
    thermal, error, *_ = found.thermal.regions["all"]
    assert exact["fixed_seed"] - thermal > 5 * error
    # The law of total variance, against all orders: noise is small on the scale of the weights.
    whole = quadrature(recon, d, variance)
    assert abs(whole["thermal"] / exact["thermal"] - 1) < 0.05
    for name in ("posterior", "total"):
        check(found, name, whole[name])
    # Everything lies along the phase of the image.
    torch.testing.assert_close(found.total.variance, found.total.variance_complex)


@pytest.mark.parametrize("transport", [True, False])
def test_replicas_agree_with_a_full_outer_monte_carlo(transport: bool) -> None:
    recon, d, variance = Mixture(transport=transport, noise=0.5), 0.4, 0.5
    found = decompose(recon, mixture_scan(d, recon, variance), rounds=50, estimator="replicas")
    exact = quadrature(recon, d, variance)
    outer = outer_monte_carlo(recon, d, variance, scans=3000, draws=30)
    for name, value in exact.items():
        check(found, name, value)
        monte_carlo, error = outer[name]
        assert abs(monte_carlo - value) < 4 * error, name
        mine, my_error, *_ = getattr(found, name).regions["all"]
        assert abs(mine - monte_carlo) < 4 * (error**2 + my_error**2) ** 0.5, name


def test_first_order_misses_what_switches() -> None:
    recon, d, variance = Mixture(transport=False), 0.3, 0.02
    scan = mixture_scan(d, recon, variance)
    with pytest.warns(SnreconWarning, match="take the estimator 'replicas'"):
        found = decompose(recon, scan, rounds=40, estimator="jacobian")
    # At a fixed draw both components move by the gain; how their weights move is not seen.
    check(found, "thermal", recon.gain**2 * variance)
    exact = quadrature(recon, d, variance)
    thermal, error, *_ = found.thermal.regions["all"]
    assert exact["thermal"] - thermal > 20 * error
    check(decompose(recon, scan, rounds=250, estimator="replicas"), "thermal", exact["thermal"])


def test_error_bars_are_those_of_independent_runs() -> None:
    recon, variance = Mixture(transport=False), 0.05
    scan = mixture_scan(0.2, recon, variance, size=6)
    runs = [decompose(recon, scan, rounds=10, seeds=3, seed=s, estimator="replicas")
            for s in range(60)]
    for name in PARTS:
        parts = [getattr(run, name) for run in runs]
        for values, errors in (
            (torch.stack([p.variance for p in parts]),
             torch.stack([p.variance_error for p in parts])),
            (torch.tensor([p.regions["all"][0] for p in parts]),
             torch.tensor([p.regions["all"][1] for p in parts])),
        ):
            scatter, claimed = values.var(0).mean().sqrt(), errors.square().mean().sqrt()
            assert 0.7 < float(claimed / scatter) < 1.4, name


def test_the_thermal_part_is_unbiased_below_zero_too() -> None:
    recon = Gaussian(jitter=2.0)
    scan = flat_scan(torch.ones(12, 12, dtype=torch.complex128), 0.5)
    found = decompose(recon, scan, rounds=4, seeds=2, estimator="replicas")
    negative = found.thermal.negative
    assert 0.02 < float(negative.double().mean()) < 0.6
    assert found.details["negative"]["thermal"] == pytest.approx(float(negative.double().mean()))
    assert bool((found.thermal.sigma[negative] == 0).all())
    assert "thermal" in repr(found)


def test_regions_and_the_direction() -> None:
    recon = Gaussian()
    image = torch.ones(10, 10, dtype=torch.complex128)
    top = torch.zeros(10, 10, dtype=torch.bool)
    top[:5] = True
    found = decompose(recon, flat_scan(image, 0.5), rounds=6, regions={"top": top})
    expected = found.total.variance_complex[top].mean()
    assert found.total.regions["top"][2] == pytest.approx(float(expected))
    assert set(found.total.regions) == {"all", "top"}
    with pytest.raises(InputError, match="'top' must be a boolean"):
        decompose(recon, flat_scan(image, 0.5), rounds=2, regions={"top": top[:3]})


def test_regions_of_a_resumed_state_are_told_by_their_voxels(tmp_path: Path) -> None:
    recon, state = Gaussian(jitter=0.5), tmp_path / "d.state"
    scan = flat_scan(torch.ones(6, 6, dtype=torch.complex128), 0.5)
    top, bottom = (torch.zeros(6, 6, dtype=torch.bool) for _ in range(2))
    top[:2], bottom[4:] = True, True

    def found(regions: dict[str, Tensor], rounds: int = 4, **options: object) -> Decomposition:
        return decompose(recon, scan, rounds=rounds, seeds=2, regions=regions, **options)

    first = found({"a": top, "b": bottom}, rounds=2, state=state)
    again = found({"b": bottom, "a": top}, state=state)
    whole = found({"b": bottom, "a": top})
    assert list(again.thermal.regions) == ["all", "b", "a"]
    assert list(first.thermal.regions) == ["all", "a", "b"]
    for name in PARTS:
        for region in ("a", "b"):
            assert getattr(again, name).regions[region] == pytest.approx(
                getattr(whole, name).regions[region], rel=1e-9)
    for others in ({"a": bottom, "b": top}, {"a": top}, {}):  # as large, but elsewhere; fewer
        with pytest.raises(InputError, match="another scan or method"):
            found(others, state=state)


def test_resuming_and_determinism(tmp_path: Path) -> None:
    recon, state = Gaussian(jitter=0.5), tmp_path / "d.state"
    scan = flat_scan(torch.ones(6, 6, dtype=torch.complex128), 0.5)
    whole = decompose(recon, scan, rounds=9, seeds=3)

    def stop(done: int, total: int | None, message: str) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decompose(recon, scan, rounds=9, seeds=3, state=state, progress=stop)
    calls: list[int] = []
    resumed = decompose(recon, scan, rounds=9, seeds=3, state=state,
                        progress=lambda *c: calls.append(c[0]))
    assert calls == [5, 6, 7, 8, 9]
    for name in PARTS:
        a, b = getattr(resumed, name), getattr(whole, name)
        torch.testing.assert_close(a.variance, b.variance, rtol=1e-12, atol=0)
        torch.testing.assert_close(a.variance_error, b.variance_error, rtol=1e-9, atol=0)
        assert a.regions["all"] == pytest.approx(b.regions["all"], rel=1e-9)
    assert not torch.equal(decompose(recon, scan, rounds=9, seeds=3, seed=1).thermal.variance,
                           whole.thermal.variance)
    with pytest.raises(InputError, match="another scan or method"):
        decompose(recon, scan, rounds=9, seeds=4, state=state)


class _External(Reconstructor):
    """Draws, and leaves torch on the way."""

    name = "external"

    def bind(self, scan: Scan, generator: torch.Generator | None = None) -> Bound:
        bound = Gaussian().bind(scan, generator)

        def function(kspace: Tensor) -> Tensor:
            return torch.from_numpy(bound.function(kspace.detach()).numpy().copy())

        return replace(bound, function=function)


def test_what_cannot_be_differentiated_takes_replicas() -> None:
    scan = flat_scan(torch.ones(6, 6, dtype=torch.complex128), 0.5)
    found = decompose(_External(), scan, rounds=4)
    assert found.estimator == "replicas"
    assert "replicas, because" in found.details["why"]
    with pytest.raises(InputError, match="use the estimator 'replicas'"):
        decompose(_External(), scan, rounds=4, estimator="jacobian")


def test_bad_input() -> None:
    scan = flat_scan(torch.ones(6, 6, dtype=torch.complex128), 0.5)
    with pytest.raises(InputError, match=r"sense is deterministic.*noise_map"):
        decompose(Sense(), scan)
    with pytest.raises(InputError, match="at least 2 rounds of at least 2 seeds"):
        decompose(Gaussian(), scan, seeds=1)
    for options in ({"rounds": 2.5}, {"seeds": "a"}, {"seed": 0.5}):
        with pytest.raises(InputError, match="must be a whole number"):
            decompose(Gaussian(), scan, **options)
    with pytest.raises(InputError, match="regions are boolean arrays by name, not list"):
        decompose(Gaussian(), scan, regions=[1])  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"'a' must be a boolean array, not list"):
        decompose(Gaussian(), scan, regions={"a": [True]})
    with pytest.raises(InputError, match="auto, jacobian or replicas"):
        decompose(Gaussian(), scan, estimator="sketch")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="noise of this scan is not known"):
        decompose(Gaussian(), replace(scan, noise=None))
