"""The linear surrogate's noise is known exactly, and it answers much like the method at hand."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmarks.small_problems import irregular_mask, plane_mask, small_scan

import networks_at_hand as nets
from snrecon.data import NoiseModel, Scan
from snrecon.errors import InputError
from snrecon.noise import noise_map
from snrecon.noise.problem import Problem
from snrecon.noise.surrogate import LineSurrogate
from snrecon.recon import MoDL, Sense, ZeroFilled
from snrecon.recon.registry import load


def dense_variance(surrogate: LineSurrogate, problem: Problem) -> np.ndarray:
    """``E|z|^2`` from one column for every point of white noise."""
    shape = problem.scan.kspace.shape
    total = torch.zeros(problem.image.shape, dtype=torch.float64)
    for number in range(problem.scan.kspace.numel()):
        unit = torch.zeros(shape, dtype=torch.complex128).flatten()
        unit[number] = 1
        z = surrogate(problem.colouring(unit.reshape(1, *shape)))[0]
        total += z.abs() ** 2
    return total.numpy()


def cases() -> dict[str, Scan]:
    scan = small_scan(irregular_mask())
    turned = replace(scan, kspace=scan.kspace.mT.contiguous(), mask=scan.mask.mT,
                     maps=scan.maps.mT.contiguous())
    return {"rows": scan, "coloured": small_scan(irregular_mask(), coloured=True),
            "columns": turned}


@pytest.mark.parametrize("name", cases())
def test_its_variance_is_exact(name):
    scan = cases()[name]
    problem = Problem.of(MoDL(nets.modl()), scan)
    surrogate = LineSurrogate.of(problem)
    assert surrogate is not None
    dense = dense_variance(surrogate, problem)
    assert dense.max() > 0
    np.testing.assert_allclose(surrogate.variance.numpy(), dense, rtol=0, atol=1e-9 * dense.max())


def test_its_variance_is_exact_in_three_dimensions():
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(6, 5, 4, dtype=torch.bool)
    mask[:, [0, 2, 3]] = True
    maps = torch.randn(2, 6, 5, 4, dtype=torch.complex128, generator=generator)
    kspace = torch.randn(2, 6, 5, 4, dtype=torch.complex128, generator=generator) * mask
    noise = NoiseModel(torch.eye(2, dtype=torch.complex128),
                       torch.linspace(0.5, 1.5, 4, dtype=torch.float64))
    scan = Scan(kspace, mask, maps, noise)
    problem = Problem.of(Sense(lamda=0.1), scan)
    surrogate = LineSurrogate.of(problem)
    assert surrogate is not None
    # Estimating the maps of a volume would take longer than the passes that a surrogate saves.
    assert LineSurrogate.of(Problem(problem.bound, replace(scan, maps=None))) is None
    assert surrogate.axis == -2
    dense = dense_variance(surrogate, problem)
    np.testing.assert_allclose(surrogate.variance.numpy(), dense, rtol=0, atol=1e-9 * dense.max())


def test_it_does_not_depend_on_units_of_image_and_maps():
    scan = small_scan(irregular_mask())
    plain = Problem.of(Sense(lamda=0.1), scan)
    other = Problem.of(Sense(lamda=0.1 * 49), replace(scan, maps=scan.maps * 7))
    one, two = LineSurrogate.of(plain), LineSurrogate.of(other)
    assert one is not None
    assert two is not None
    torch.testing.assert_close(two.variance * 49, one.variance)


def test_it_answers_to_the_same_noise_as_the_method():
    problem = Problem.of(MoDL(nets.modl()), small_scan(irregular_mask()))
    surrogate = LineSurrogate.of(problem)
    assert surrogate is not None
    noise = torch.stack([
        problem.colouring.sample(torch.Generator().manual_seed(k)) for k in range(50)])
    product, answer = problem.linearization.jvp(noise), surrogate(noise)
    overlap = (product.conj() * answer).real.sum()
    correlation = overlap / (product.abs().square().sum() * answer.abs().square().sum()).sqrt()
    assert float(correlation) > 0.5


def test_where_there_is_none():
    full = small_scan(torch.ones(12, 12, dtype=torch.bool))
    plane = small_scan(plane_mask())
    assert LineSurrogate.of(Problem.of(ZeroFilled(), full)) is None
    assert LineSurrogate.of(Problem.of(MoDL(nets.modl()), plane)) is None
    cropped = Problem.of(lambda y: y[0, 2:-2], small_scan(irregular_mask()))
    assert LineSurrogate.of(cropped) is None
    scan = small_scan(irregular_mask(), coloured=True)
    along_readout = replace(scan, kspace=scan.kspace.mT.contiguous(), mask=scan.mask.mT,
                            maps=scan.maps.mT.contiguous())
    assert LineSurrogate.of(Problem.of(Sense(lamda=0.1), along_readout)) is None


def test_there_is_none_where_there_is_no_image():
    scan = small_scan(irregular_mask())
    empty = replace(scan, maps=torch.zeros_like(scan.maps))
    assert LineSurrogate.of(Problem.of(MoDL(nets.modl()), empty)) is None
    zero = Problem.of(lambda kspace: 0 * kspace[0], scan)
    assert LineSurrogate.of(zero) is None
    with pytest.raises(InputError, match="coil maps are zero everywhere"):
        noise_map(load("tv"), empty, tolerance=0.2)
    stack = Scan(torch.stack([scan.kspace] * 2), scan.mask, torch.stack([scan.maps, empty.maps]),
                 scan.noise, layout="stack")
    found = noise_map(load("tv"), stack, tolerance=0, max_passes=16)
    assert bool((found.sigma[0] > 0).any())
    assert not bool(found.sigma[1].any())


def test_it_is_made_where_the_number_of_threads_was_set() -> None:
    """There the inverse of a batch of matrices never returns (PyTorch issue 142815): in a process
    that can be stopped."""
    script = """
import torch
from snrecon.noise.problem import Problem
from snrecon.noise.surrogate import LineSurrogate
from snrecon.recon import ZeroFilled
from snrecon.training.simulate import simulate_scan
torch.set_num_threads(2)
mask = (torch.arange(192) % 2 == 0)[:, None].expand(192, 24)
scan, _ = simulate_scan(torch.ones(192, 24), 4, 30.0, mask, seed=1)
assert LineSurrogate.of(Problem.of(ZeroFilled(), scan)) is not None
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=240)
