"""Combs of voxels that share a VJP: every voxel once, teeth apart, every position owned once."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmarks.dense_noise import covariance_maps, difference_matrix
from benchmarks.small_problems import irregular_mask, plane_mask, small_scan

import networks_at_hand as nets
from snrecon.errors import InputError
from snrecon.noise import noise_map
from snrecon.noise.combs import Combs, local_axes, outside, smallest_spacing
from snrecon.noise.exact import _silent, exact
from snrecon.noise.problem import Problem
from snrecon.recon import MoDL, ZeroFilled

SHAPES = [
    ((12, 13), (12, 13), (-1,), 4), ((12, 13), (12, 13), (-1,), 13), ((9, 10), (12, 14), (-1,), 3),
    ((6, 7, 9), (6, 7, 9), (-3, -1), 3), ((6, 7, 9), (6, 7, 9), (-1,), 2),
    ((5, 8), (5, 8), (-2,), 1),
]


def place(voxel: int, image: tuple[int, ...], grid: tuple[int, ...]) -> list[int]:
    index = np.unravel_index(voxel, image)
    return [int(i) + (n - m) // 2 for i, n, m in zip(index, grid, image, strict=True)]


@pytest.mark.parametrize(("image", "grid", "axes", "spacing"), SHAPES)
def test_every_voxel_is_in_one_comb_and_teeth_are_apart(image, grid, axes, spacing):
    combs = Combs(image, grid, axes, spacing)
    wanted = torch.rand(image, generator=torch.Generator().manual_seed(0)) < 0.7
    groups = combs.groups(wanted)
    together = torch.cat(groups).sort().values
    assert torch.equal(together, wanted.flatten().nonzero()[:, 0])
    for group in groups:
        places = [place(int(v), image, grid) for v in group]
        for i, p in enumerate(places):
            for q in places[:i]:
                gaps = [min(abs(p[a] - q[a]), grid[a] - abs(p[a] - q[a])) for a in axes]
                others = [a for a in range(-len(grid), 0) if a not in axes]
                assert all(p[a] == q[a] for a in others)
                assert all(g == 0 or g >= min(spacing, grid[a]) for g, a in zip(gaps, axes,
                                                                                strict=True))
    most = math.prod(combs.places(a) for a in axes)
    rest = math.prod(n for a, n in zip(range(-len(image), 0), image, strict=True) if a not in axes)
    assert len(groups) <= most * rest


@pytest.mark.parametrize(("image", "grid", "axes", "spacing"), SHAPES)
def test_rows_that_do_not_overlap_come_back_apart(image, grid, axes, spacing):
    """Energy placed near each voxel of a comb is that voxel's."""
    from snrecon.physics.fourier import fft

    combs = Combs(image, grid, axes, spacing)
    groups = combs.groups(torch.ones(image, dtype=torch.bool))
    generator = torch.Generator().manual_seed(1)
    for group in groups[:: max(1, len(groups) // 7)]:
        hybrid = torch.zeros((2, *grid), dtype=torch.complex128)
        wanted = []
        for voxel in group.tolist():
            at = place(voxel, image, grid)
            index = [slice(None)] + [
                at[a] if a in axes else slice(None) for a in range(-len(grid), 0)]
            row = torch.randn(hybrid[tuple(index)].shape, dtype=torch.complex128,
                              generator=generator)
            hybrid[tuple(index)] = row
            wanted.append(float(row.abs().square().sum()))
        rows = fft(hybrid, axes)[None]
        (found,) = combs.shared(rows, rows, [group])
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-10)


def test_local_axes_are_those_the_mask_does_not_vary_along():
    assert local_axes(irregular_mask()) == (-1,)
    assert local_axes(plane_mask()) == ()


def test_the_spacing_is_the_smallest_that_holds_the_energy():
    profile = torch.tensor([[0.0, 0.01, 1.0, 8.0, 1.0, 0.01, 0.0]], dtype=torch.float64)
    assert outside(profile[0], (3,), 1) == pytest.approx(0.02 / 10.02)
    assert smallest_spacing(profile, [(3,)], 0.01) == 3
    assert smallest_spacing(profile, [(3,)], 1e-4) == 5
    assert smallest_spacing(profile, [(0,)], 1e-9) == 7


def test_compressed_rows_of_a_local_method_are_exact():
    scan = small_scan(irregular_mask(), coloured=True)
    problem = Problem.of(ZeroFilled(), scan)
    plain, packed = exact(problem), exact(problem, compress=1e-6)
    assert packed.details["spacing"] == 1
    assert packed.details["vjps"] < plain.details["vjps"] / 4
    torch.testing.assert_close(packed.covariance, plain.covariance)
    assert packed.details["compression_error"] < 1e-6


def test_compressed_rows_of_a_network_are_as_good_as_they_say():
    scan = small_scan(irregular_mask())
    recon = MoDL(nets.modl())
    bound = recon.bind(scan)
    dense = covariance_maps(difference_matrix(bound.function, scan), scan, bound(scan.kspace))
    found = noise_map(recon, scan, estimator="exact", compress=0.02)
    assert found.details["leakage"] <= 0.02
    true = np.sqrt(dense[0])
    inside = true > 0.05 * true.max()
    error = np.sqrt(np.mean((found.sigma.numpy()[inside] / true[inside] - 1) ** 2))
    assert error < 0.1
    assert found.details["compression_error"] < 0.1


def test_the_state_of_compressed_rows_goes_on_and_is_its_own(tmp_path):
    scan = small_scan(irregular_mask())
    problem = Problem.of(MoDL(nets.modl()), scan)
    whole = noise_map(MoDL(nets.modl()), scan, estimator="exact", compress=0.02)
    path = tmp_path / "state.h5"

    class Stop(Exception):
        pass

    def stop(done: int, total: int | None, message: str) -> None:
        if done > 20:
            raise Stop

    with pytest.raises(Stop):
        noise_map(MoDL(nets.modl()), scan, estimator="exact", compress=0.02, state=path,
                  progress=stop)
    with pytest.raises(InputError, match="choice of voxels"):
        noise_map(MoDL(nets.modl()), scan, estimator="exact", state=path)
    again = noise_map(MoDL(nets.modl()), scan, estimator="exact", compress=0.02, state=path)
    torch.testing.assert_close(again.covariance, whole.covariance)
    assert problem.image.shape == again.image.shape


@pytest.mark.parametrize(
    ("mask", "compress", "sentence"),
    [(plane_mask, 0.01, "fully sampled axes"), (irregular_mask, 1e-14, "nothing is gained"),
     (irregular_mask, 2.0, "between 0 and 1")],
)
def test_what_cannot_be_compressed_says_so(mask, compress, sentence):
    scan = small_scan(mask())
    with pytest.raises(InputError, match=sentence):
        noise_map(MoDL(nets.modl()), scan, estimator="exact", compress=compress)


def test_where_the_image_is_zero_by_construction_compressed_rows_are_too() -> None:
    scan = small_scan(irregular_mask())
    support = torch.ones(scan.grid)
    support[:, 4:6] = 0
    support[3] = 0
    bound = MoDL(nets.modl()).bind(scan)

    def masked(kspace: torch.Tensor) -> torch.Tensor:
        return bound.function(kspace) * support

    alone = noise_map(masked, scan, estimator="exact")
    shared = exact(Problem.of(masked, scan), compress=0.2)
    assert shared.details["spacing"] < scan.grid[1]
    assert not bool(shared.sigma[support == 0].any())
    assert torch.equal(shared.sigma > 0, alone.sigma > 0)
    # A scan of zeros has an image of zeros, and noise.
    empty = replace(scan, kspace=torch.zeros_like(scan.kspace))
    problem = Problem.of(ZeroFilled(), empty)
    assert bool((problem.image == 0).all())
    assert not bool(_silent(problem, torch.ones(scan.grid, dtype=torch.bool)).any())
