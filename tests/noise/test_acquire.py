"""Other lines: averaging by attribution against the dense matrix, the rest against new scans."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmarks.small_problems import irregular_mask, small_scan

import networks_at_hand as nets
from snrecon.errors import InputError
from snrecon.noise import acquire, noise_map, roi
from snrecon.noise.problem import Problem, probe_generator
from snrecon.noise.replicas import evaluate
from snrecon.recon import MoDL, Sense

LINES = [4, 5, 9]


def region() -> torch.Tensor:
    mask = torch.zeros(12, 12, dtype=torch.bool)
    mask[4:7, 5:8] = True
    return mask


def chosen() -> torch.Tensor:
    lines = torch.zeros(12, 12, dtype=torch.bool)
    lines[LINES] = True
    return lines


def test_averaged_lines_of_a_linear_method_to_the_last_digits():
    """Doing it: the noise of these lines is smaller by the root of two."""
    recon, scan = Sense(lamda=0.2), small_scan(irregular_mask())
    found = acquire(recon, scan, LINES, region())
    problem = Problem.of(recon, scan)
    weights = region() / region().sum() * problem.direction
    assert found.samples == 3 * 12
    gradient = problem.linearization.vjp(weights[None].to(scan.kspace.dtype))[0]
    covariance = scan.require_noise().covariance
    factor = torch.where(chosen(), 0.5, 1.0) * scan.sampled
    variance = torch.einsum("c...,cd,d...->...", gradient.conj(), covariance, gradient).real
    wanted = float((variance * factor).sum() / 2) ** 0.5
    assert found.sd == pytest.approx(wanted, rel=1e-9)
    assert found.ratio < 1


def test_averaged_lines_of_a_network_within_its_linearity():
    """Doing it: replicas whose noise on these lines is smaller by the root of two."""
    recon, scan = MoDL(nets.modl()), small_scan(irregular_mask(), snr=200.0)
    found = acquire(recon, scan, LINES, region())
    problem = Problem.of(recon, scan)
    factor = torch.where(chosen(), 0.5**0.5, 1.0)
    noise = torch.stack([
        problem.colouring.sample(probe_generator(3, k, 77)) * factor for k in range(3000)])
    with torch.no_grad():
        images = evaluate(problem, scan.kspace + noise)
    along = problem.project(images - problem.image)[0][:, region()].mean(1)
    spread = float(along.std())
    assert found.sd == pytest.approx(spread, rel=4 / (2 * 3000) ** 0.5 + 0.01)


def test_averaged_parts_of_a_readout_whose_noise_is_coloured():
    """Doing it, with every unit of white noise: the mean of two measurements on some points of a
    line, the first one on the others."""
    recon, scan = Sense(lamda=0.2), small_scan(irregular_mask(), coloured=True)
    part = torch.zeros(12, 12, dtype=torch.bool)
    part[4:7, 6] = True
    found = acquire(recon, scan, part, region())
    problem = Problem.of(recon, scan)
    size = scan.kspace.numel()
    units = torch.eye(size, dtype=scan.kspace.dtype).reshape(size, *scan.kspace.shape)
    noise = problem.colouring(torch.cat([units, 1j * units]))
    both = torch.cat([torch.where(part, noise / 2, noise), torch.where(part, noise / 2, 0)])
    changes = problem.project(problem.linearization.jvp(both))[0][:, region()].mean(1)
    wanted = float(changes.square().sum() / 2) ** 0.5  # each component of a unit has variance 1/2
    assert found.sd == pytest.approx(wanted, rel=1e-6)
    whole = acquire(recon, scan, LINES, region())  # of whole lines the share says it too
    share = float(whole.before.attribution[:, LINES].sum())
    assert whole.ratio**2 == pytest.approx(1 - share / 2, rel=1e-9)


def test_dropped_lines_are_recomputed():
    recon, scan = MoDL(nets.modl()), small_scan(irregular_mask())
    found = acquire(recon, scan, [9], region(), change="dropped")
    wanted = roi(recon, scan.undersample(~(chosen() & (torch.arange(12) == 9)[:, None])), region())
    assert found.sd == wanted.sd
    assert found.value == wanted.value
    assert found.samples == 12
    # Not what its share of the variance would suggest.
    share = float(found.before.attribution[:, 9].sum())
    assert abs(found.ratio**2 - (1 - share)) > 1e-3


def test_added_lines_come_from_a_fuller_scan():
    full = small_scan(torch.ones(12, 12, dtype=torch.bool))
    mask = irregular_mask()
    scan = replace(full, kspace=full.kspace * mask, mask=mask)
    recon = Sense(lamda=0.2)
    found = acquire(recon, scan, [3, 4], region(), change="added", full=full)  # 4 is there already
    other = mask.clone()
    other[3] = True
    wanted = roi(recon, replace(full, kspace=full.kspace * other, mask=other), region())
    assert found.sd == pytest.approx(wanted.sd, rel=1e-12)
    assert found.samples == 12
    back = acquire(recon, replace(full, kspace=full.kspace * other, mask=other), [3], region(),
                   change="dropped")
    assert back.sd == pytest.approx(found.before.sd, rel=1e-12)


def test_all_lines_twice_is_the_root_of_two():
    recon, scan = Sense(lamda=0.2), small_scan(irregular_mask())
    everything = torch.ones(12, 12, dtype=torch.bool)
    found = acquire(recon, scan, everything, region())
    assert found.ratio == pytest.approx(0.5**0.5, rel=1e-6)
    voxel = torch.zeros(12, 12, dtype=torch.bool)
    voxel[6, 6] = True
    sigma = noise_map(recon, scan).sigma[6, 6]
    assert acquire(recon, scan, everything, voxel).before.sd == pytest.approx(float(sigma))
    assert np.isfinite(found.value)


@pytest.mark.parametrize("lines", [
    chosen()[:, 0], chosen()[:, 0].numpy(), chosen()[:, 0].tolist(), chosen().numpy(),
    np.array(LINES), torch.tensor(LINES), [4 - 12, 5, 9]])
def test_lines_can_be_said_in_many_ways(lines):
    recon, scan = Sense(lamda=0.2), small_scan(irregular_mask())
    for change in ("averaged", "dropped"):
        found = acquire(recon, scan, lines, region(), change=change)
        wanted = acquire(recon, scan, LINES, region(), change=change)
        assert (found.sd, found.samples) == (wanted.sd, wanted.samples)


@pytest.mark.parametrize(
    ("lines", "options", "sentence"),
    [
        ([8.7], {}, "whole numbers or booleans"),
        (torch.ones(7, dtype=torch.bool), {}, "one entry for each of the 12"),
        ([40], {}, "from 0 to 11"),
        ([], {}, "from 0 to 11"),
        (torch.ones(3, 3, dtype=torch.bool), {}, "grid's shape"),
        ([1], {}, "none of the lines"),
        ([4], {"change": "moved"}, "one of averaged"),
        ([3], {"change": "added"}, "need their data"),
        ([4], {"change": "added", "full": "scan"}, "measured already"),
        ([3], {"change": "added", "full": "scan"}, "not measured in it"),
    ],
)
def test_what_cannot_be_done_says_so(lines, options, sentence):
    scan = small_scan(irregular_mask())
    if options.get("full"):
        options = {**options, "full": scan}
    with pytest.raises(InputError, match=sentence):
        acquire(Sense(lamda=0.2), scan, lines, region(), **options)


def test_a_function_cannot_be_asked_about_other_masks():
    scan = small_scan(irregular_mask())
    function = Sense(lamda=0.2).bind(scan).function
    assert acquire(function, scan, LINES, region()).ratio < 1
    with pytest.raises(InputError, match="knows one mask only"):
        acquire(function, scan, [4], region(), change="dropped")
