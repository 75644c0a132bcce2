"""Predicted noise as a prior: what a predictor sees, and what good and bad predictions do."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from benchmarks.small_problems import irregular_mask, plane_mask, small_scan
from torch import Tensor

import networks_at_hand as nets
from snrecon.data import NoiseModel, Scan
from snrecon.errors import InputError
from snrecon.networks.noise_predictor import CHANNELS, NoisePredictor
from snrecon.networks.store import save_weights
from snrecon.noise import noise_map
from snrecon.noise.predicted import look, predicted_variance
from snrecon.noise.problem import Problem
from snrecon.noise.surrogate import LineSurrogate
from snrecon.recon import VarNet
from snrecon.recon.base import Reconstructor
from snrecon.report.result_text import describe_result


@cache
def problem() -> tuple[Reconstructor, Scan, Problem, LineSurrogate]:
    recon, scan = VarNet(nets.varnet()), small_scan(irregular_mask())
    found = Problem.of(recon, scan)
    surrogate = LineSurrogate.of(found)
    assert surrogate is not None
    return recon, scan, found, surrogate


class Told(NoisePredictor):
    """Answers what it was told."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__(2)
        self.answer = answer

    def forward(self, channels: Tensor) -> Tensor:
        return self.answer[None].to(channels)


def truth(recon: Reconstructor, scan: Scan) -> Tensor:
    return noise_map(recon, scan, estimator="exact").sigma


def test_the_view_does_not_depend_on_units() -> None:
    recon, scan, found, surrogate = problem()
    seen = look(found, surrogate)
    assert seen.channels.shape == (CHANNELS, *scan.grid)
    assert bool(torch.isfinite(seen.channels).all())
    bound = recon.bind(scan)
    three = Problem.of(lambda kspace: 3 * bound(kspace), scan)
    again = look(three, LineSurrogate.of(three))
    torch.testing.assert_close(again.channels, seen.channels, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(again.reference, 9 * seen.reference, rtol=1e-5, atol=0)
    noise = scan.require_noise()
    louder = replace(scan, kspace=5 * scan.kspace,
                     noise=NoiseModel(25 * noise.covariance, spectrum=noise.spectrum))
    scaled = Problem.of(recon, louder)
    again = look(scaled, LineSurrogate.of(scaled))
    torch.testing.assert_close(again.channels, seen.channels, atol=2e-3, rtol=2e-3)


def test_an_untrained_predictor_expects_the_linear_noise() -> None:
    _, _, found, surrogate = problem()
    expected = predicted_variance(NoisePredictor(2), found, surrogate)
    ratio = expected / (surrogate.variance / 2)
    inside = expected > 0
    assert float(ratio[inside].std() / ratio[inside].mean()) < 1e-4
    plane = small_scan(plane_mask())
    without = Problem.of(VarNet(nets.varnet()), plane)
    flat = predicted_variance(NoisePredictor(2), without, None)
    assert float(look(without, None).channels[4].abs().max()) == 0
    full = without.full_sigma
    assert full is not None
    there = flat > 0
    torch.testing.assert_close((flat / full**2)[there] / float((flat / full**2)[there].mean()),
                               torch.ones_like(flat)[there], rtol=1e-4, atol=1e-4)


def test_a_good_prediction_helps_and_a_bad_one_does_no_harm() -> None:
    recon, scan, own, surrogate = problem()
    true = truth(recon, scan)
    reference = look(own, surrogate).reference
    good = torch.where(true > 0, true**2 / reference.clamp_min(1e-30), 1).log()
    bad = torch.randn(good.shape, generator=torch.Generator().manual_seed(3)).to(good)
    inside = true > 0.02 * true.max()
    found = {}
    for name, predictor in (("none", None), ("good", Told(good)), ("bad", Told(bad))):
        errors, bounds = [], []
        for seed in range(8):
            result = noise_map(recon, scan, estimator="certified", tolerance=0, max_passes=16,
                               seed=seed, predictor=predictor)
            errors.append(float((result.sigma / true - 1)[inside].square().mean().sqrt()))
            bounds.append(result.details["certificate"]["bound"])
        found[name] = torch.tensor(errors)
        assert sum(bounds) / len(bounds) > float(found[name].mean())
    gain = found["none"] - found["good"]
    assert float(gain.mean()) > 3 * float(gain.std()) / len(gain) ** 0.5
    assert float(found["bad"].mean()) < 1.15 * float(found["none"].mean())


def test_a_run_with_a_predictor_goes_on_and_says_so(tmp_path) -> None:
    recon, scan, _, _ = problem()
    path = tmp_path / "p.safetensors"
    torch.manual_seed(0)
    network = NoisePredictor(3)
    torch.nn.init.normal_(network.last.weight)
    save_weights(network, path)
    options = {"estimator": "certified", "tolerance": 0, "predictor": path}
    whole = noise_map(recon, scan, max_passes=48, **options)
    state = tmp_path / "s.h5"
    noise_map(recon, scan, max_passes=24, state=state, **options)
    parts = noise_map(recon, scan, max_passes=48, state=state, **options)
    torch.testing.assert_close(parts.sigma, whole.sigma)
    assert whole.details["predictor"] == str(path)
    assert f"predictor       {path}" in describe_result(whole)
    without = noise_map(recon, scan, estimator="certified", tolerance=0, max_passes=48)
    assert not torch.equal(without.sigma, whole.sigma)


def test_what_cannot_be_predicted_says_so(tmp_path) -> None:
    recon, scan, _, _ = problem()
    with pytest.raises(InputError, match="certified and corrected estimators only"):
        noise_map(recon, scan, estimator="sketch", predictor=NoisePredictor(2))
    with pytest.raises(InputError, match="there is no such weights file"):
        noise_map(recon, scan, predictor=tmp_path / "absent.safetensors")
    bound = recon.bind(scan)
    with pytest.raises(InputError, match="2D image on the scan's grid"):
        noise_map(lambda kspace: bound(kspace)[1:-1], scan, predictor=NoisePredictor(2))
    save_weights(nets.varnet(), tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="noise_predictor"):
        noise_map(recon, scan, predictor=tmp_path / "other.safetensors")


def test_a_prediction_that_is_not_finite_is_refused() -> None:
    recon, scan, _, _ = problem()
    nothing = Told(torch.full(scan.grid, torch.nan))
    with pytest.raises(InputError, match="not finite"):
        noise_map(recon, scan, estimator="certified", predictor=nothing)
