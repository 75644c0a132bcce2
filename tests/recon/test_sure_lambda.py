"""lambda by the estimated risk: the search, and what it finds against the truth."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from snrecon.data import NoiseModel, Scan
from snrecon.errors import InputError
from snrecon.physics.fourier import fft, grid_axes
from snrecon.physics.phantom import brain_phantom, coil_maps
from snrecon.physics.thermal import NoiseColouring
from snrecon.recon import Sense, TotalVariation, WaveletL1, load
from snrecon.recon.forward_model import forward_model
from snrecon.recon.risk import ProjectedRisk, random_phases
from snrecon.recon.sure_lambda import FROZEN, PRECISION, SOURCE, RiskCurve, least

GRID = (32, 32)


def known(acceleration: int = 2, snr: float = 15.0) -> tuple[Scan, torch.Tensor]:
    """A scan with exact, normalised maps, and its object."""
    maps = coil_maps(4, GRID)
    power = maps.abs().square().sum(0).sqrt()
    maps = maps / power
    image = brain_phantom(GRID, torch.Generator().manual_seed(0)) * power
    image = image / image.abs().max()
    mask = torch.zeros(GRID, dtype=torch.bool)
    mask[::acceleration] = True
    mask[12:20] = True
    noise = NoiseModel(torch.eye(4, dtype=torch.complex64) * 2 / snr**2)
    scan = Scan(fft(maps * image, grid_axes(2)) * mask, mask, maps, noise, source="known object")
    generator = torch.Generator().manual_seed(9)
    draw = NoiseColouring.of(scan).sample(generator, scan.kspace.dtype)
    return replace(scan, kspace=scan.kspace + draw), image


@pytest.mark.parametrize("goal", [0.0, 2.9, -3.4, 6.1])
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_the_search_finds_a_minimum(goal, start) -> None:
    asked = []

    def value(t: float) -> float:
        asked.append(t)
        return math.cosh(t - goal)

    best, tried = least(value, start)
    assert abs(best - goal) < math.log(PRECISION)
    assert tried == len(asked) == len(set(asked)) < 20


def test_a_curve_without_minimum_ends_somewhere() -> None:
    best, tried = least(lambda t: t, 0.0)
    assert best == pytest.approx(-9 * math.log(3.0))
    assert tried < 24


METHODS = {"tv": TotalVariation, "wavelet": WaveletL1, "sense": Sense}
SETTINGS: dict[str, dict[str, int]] = {
    "tv": {"iterations": 60}, "wavelet": {"iterations": 40}, "sense": {}
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_close_to_the_best_of_the_same_risk(method) -> None:
    """At the chosen lambda the true projected error is within 5 % of the smallest there is."""
    scan, image = known()
    recon = METHODS[method]("sure", **SETTINGS[method])
    bound = recon.bind(scan)
    target = ProjectedRisk(forward_model(scan))
    goal = target.image(image)

    def error(lamda: float) -> float:
        x = METHODS[method](lamda, **SETTINGS[method])(scan)
        return float((target.image(x) - goal).abs().square().sum())

    chosen = bound.details["lambda"]
    oracle = min(error(chosen * 1.3**k) for k in range(-4, 5))
    assert error(chosen) < 1.05 * oracle
    # There is something to be chosen: lambdas an order of magnitude away are worse by far.
    assert error(chosen * 10) > 1.3 * oracle
    assert error(chosen / 10) > 1.03 * oracle
    assert bound.frozen[0] == FROZEN
    assert bound.details["lambda_source"] == SOURCE
    assert bound.details["sure_evaluations"] >= 5
    fixed = METHODS[method](chosen, **SETTINGS[method]).bind(scan)
    assert torch.equal(bound(scan.kspace), fixed(scan.kspace))
    assert FROZEN not in fixed.frozen
    again = recon.bind(scan)
    assert again.details == bound.details


def test_the_curve_is_the_risk_up_to_a_constant() -> None:
    """Against a risk whose divergence is exact: SENSE is linear, so its trace is a sum over a
    basis."""
    scan, _ = known()
    small = replace(
        scan.to(torch.complex128),
        kspace=scan.kspace[:, :6, :6].to(torch.complex128),
        mask=scan.sampled[:6, :6],
        maps=scan.maps[:, :6, :6].to(torch.complex128),
    )
    target = ProjectedRisk(forward_model(small))
    lamdas = (0.01, 0.2)
    n = small.kspace.numel()
    basis = torch.eye(n, dtype=torch.complex128).reshape(n, *small.kspace.shape)
    noise = NoiseColouring.of(small)(basis)

    def exact(lamda: float) -> float:
        recon = Sense(lamda).bind(small)
        misfit = target.image(recon(small.kspace)) - target.data(small.kspace)
        # Complex-linear: the complex trace is half of the real one, and noise has E|w|^2 = 1.
        trace = (target.data(noise).conj() * target.image(recon(noise))).sum().real
        return float(misfit.abs().square().sum() + 2 * trace)

    def found(seed: int) -> list[float]:
        curve = RiskCurve(target, small, lambda v: Sense(v).bind(small), probes=8, seed=seed)
        return [curve(v) for v in lamdas]

    runs = torch.tensor([found(s) for s in range(24)], dtype=torch.float64)
    wanted = torch.tensor([exact(v) for v in lamdas], dtype=torch.float64)
    error = runs.std(0) / math.sqrt(len(runs))
    assert bool(((runs.mean(0) - wanted).abs() < 4 * error).all())
    assert bool((error < 0.02 * wanted).all())
    # Common probes: the difference between two lambdas is far steadier than either.
    assert float((runs[:, 1] - runs[:, 0]).std()) < 0.8 * float(runs.std(0).max())


def test_probes_are_circular() -> None:
    like = torch.zeros(20000, dtype=torch.complex128)
    v = random_phases(like, torch.Generator().manual_seed(0))
    assert torch.allclose(v.abs(), torch.ones(20000, dtype=torch.float64))
    assert abs(complex((v * v).mean())) < 4 / math.sqrt(20000)
    assert abs(complex(v.mean())) < 4 / math.sqrt(20000)


def test_by_name_and_bad_input() -> None:
    scan, _ = known()
    assert load("sense", lamda="sure").bind(scan).details["lambda_source"] == SOURCE
    for method in METHODS.values():
        with pytest.raises(InputError, match="'sure'"):
            method("best")
        with pytest.raises(InputError, match="noise"):
            method("sure").bind(replace(scan, noise=None))
    with pytest.raises(InputError, match="no lambda"):
        load("zero_filled", lamda="sure")
    empty = replace(scan, maps=torch.zeros_like(scan.kspace))
    assert bool((TotalVariation("sure", iterations=2)(empty) == 0).all())
