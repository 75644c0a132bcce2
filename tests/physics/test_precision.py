"""Tangents in low precision: only where asked for, only tangents, and close to the full ones."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from benchmarks.small_problems import irregular_mask, small_scan

import networks_at_hand as nets
from snrecon.data import NoiseModel, Scan
from snrecon.noise import certified, noise_map
from snrecon.noise.problem import Problem
from snrecon.noise.sketch import random_phase
from snrecon.physics.precision import (
    full_precision,
    low_precision,
    low_precision_pays,
    lowered,
)
from snrecon.recon import E2EVarNet, MoDL, UNet, VarNet

RECONS = {
    "varnet": lambda: VarNet(nets.varnet().float()),
    "modl": lambda: MoDL(nets.modl().float()),
    "unet": lambda: UNet(nets.unet(2).float()),
    "e2e_varnet": lambda: E2EVarNet(nets.e2e_varnet().float()),
}


def single(scan: Scan) -> Scan:
    """In single precision."""
    noise = scan.require_noise()
    assert scan.maps is not None
    return replace(scan, kspace=scan.kspace.to(torch.complex64),
                   maps=scan.maps.to(torch.complex64),
                   noise=NoiseModel(noise.covariance.to(torch.complex64)))


def test_lowered_only_within_and_only_single_precision():
    x = torch.ones(3)
    assert lowered(x) is x
    with low_precision():
        assert lowered(x).dtype == torch.bfloat16
        assert lowered(x.double()).dtype == torch.float64
        with low_precision(None):
            assert lowered(x) is x
    assert lowered(x) is x


@pytest.mark.parametrize("name", RECONS)
def test_products_in_low_precision_are_close_and_single_ones_unchanged(name):
    problem = Problem.of(RECONS[name](), single(small_scan(irregular_mask())))
    noise = problem.colouring(random_phase(problem, 0, range(6)))
    before = problem.linearization.jvp(noise)
    with low_precision():
        low = problem.linearization.jvp(noise)
    assert torch.equal(problem.linearization.jvp(noise), before)
    distance = float(torch.linalg.vector_norm(low - before) / torch.linalg.vector_norm(before))
    assert 1e-5 < distance < 0.03
    assert low.dtype == before.dtype


def test_the_certificate_allows_for_it(monkeypatch):
    scan = single(small_scan(irregular_mask()))
    recon = RECONS["modl"]()
    options = {"estimator": "certified", "tolerance": 0, "max_passes": 64}
    monkeypatch.setattr(certified, "low_precision_pays", lambda device: False)
    full = noise_map(recon, scan, **options)
    assert "tangents" not in full.details
    assert full.details["certificate"]["precision"] == 0
    monkeypatch.setattr(certified, "low_precision_pays", lambda device: True)
    low = noise_map(recon, scan, **options)
    assert low.details["tangents"] == "bfloat16"
    lost = low.details["certificate"]["precision"]
    assert 1e-5 < lost < 0.02
    noisy = full.sigma > 0
    difference = (low.sigma / full.sigma - 1)[noisy]
    assert 0 < float(difference.square().mean().sqrt()) < 3 * lost


def test_double_precision_and_tight_tolerances_keep_theirs(monkeypatch):
    monkeypatch.setattr(certified, "low_precision_pays", lambda device: True)
    double = noise_map(MoDL(nets.modl()), small_scan(irregular_mask()), estimator="certified",
                       tolerance=0.5)
    assert "tangents" not in double.details
    recon, scan = RECONS["modl"](), single(small_scan(irregular_mask()))
    problem = Problem.of(recon, scan)
    noise = problem.colouring(random_phase(problem, 0, range(2)))
    full = problem.linearization.jvp(noise)
    assert certified.tangents_in_low_precision(problem, noise, full, 0.5) is not None
    assert certified.tangents_in_low_precision(problem, noise, full, 1e-4) is None


def test_a_run_goes_on_in_the_precision_it_began_with(monkeypatch, tmp_path):
    recon, scan = RECONS["modl"](), single(small_scan(irregular_mask()))
    options = {"estimator": "certified", "tolerance": 0, "state": tmp_path / "state.h5"}
    monkeypatch.setattr(certified, "low_precision_pays", lambda device: True)
    noise_map(recon, scan, max_passes=16, **options)
    monkeypatch.setattr(certified, "low_precision_pays", lambda device: False)
    again = noise_map(recon, scan, max_passes=32, **options)
    assert again.details["tangents"] == "bfloat16"
    whole_options = {"estimator": "certified", "tolerance": 0, "max_passes": 32}
    monkeypatch.setattr(certified, "low_precision_pays", lambda device: True)
    whole = noise_map(recon, scan, **whole_options)
    torch.testing.assert_close(again.sigma, whole.sigma, rtol=1e-5, atol=0)


def test_the_hardware_is_asked():
    assert low_precision_pays(torch.device("meta")) is False
    assert isinstance(low_precision_pays(torch.device("cpu")), bool)


def test_full_precision_keeps_tf32_out_and_restores_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [one.allow_tf32 for one in backends]
    backends[0].allow_tf32 = True
    with full_precision():
        within = [one.allow_tf32 for one in backends]
    after = backends[0].allow_tf32
    backends[0].allow_tf32 = before[0]
    assert within == [False, False]
    assert after
    assert [one.allow_tf32 for one in backends] == before


@pytest.mark.parametrize("setting", [
    "pass", "b.cudnn.allow_tf32 = False", "torch.set_float32_matmul_precision('high')",
    "b.cuda.matmul.fp32_precision = 'tf32'", "b.cudnn.conv.fp32_precision = 'ieee'"])
def test_full_precision_with_either_switch_of_torch(setting: str) -> None:
    """In a process of its own: torch never forgets that the newer switch was used."""
    if not hasattr(torch.backends.cudnn, "conv"):
        setting = "pass"  # torch is older than that switch
    code = f"""
import torch
from snrecon.physics.precision import full_precision
b = torch.backends
torch.cuda.is_available = lambda: True
{setting}
def state():
    found = []
    for read in (lambda: b.cudnn.allow_tf32, lambda: b.cuda.matmul.allow_tf32,
                 lambda: b.cudnn.conv.fp32_precision, lambda: b.cuda.matmul.fp32_precision):
        try:
            found.append(read())
        except (RuntimeError, AttributeError):
            found.append(None)
    return found
before = state()
with full_precision():
    assert "tf32" not in state() and True not in state(), state()
assert state() == before, (before, state())
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)
