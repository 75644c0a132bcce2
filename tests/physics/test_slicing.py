"""3D scans taken apart into planes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from snrecon.data import NoiseModel, Scan
from snrecon.physics.fourier import ifft
from snrecon.physics.slicing import as_stack, plane_noise_levels, plane_scans, slice_axis
from snrecon.physics.thermal import NoiseColouring
from support import random_complex

GRID = (4, 6, 5)


def mask_along(*axes: int) -> torch.Tensor:
    """Boolean grid that changes along these axes."""
    shape = [n if axis in axes else 1 for axis, n in zip((-3, -2, -1), GRID)]
    pattern = torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.6
    pattern[tuple(n // 2 for n in shape)] = True
    pattern[(0,) * 3] = False
    return pattern.expand(GRID).clone() if axes else torch.ones(GRID, dtype=torch.bool)


def volume(mask: torch.Tensor, spectrum: torch.Tensor | None = None) -> Scan:
    root = random_complex(2, 2, seed=1)
    return Scan(
        kspace=random_complex(2, *GRID) * mask,
        mask=mask,
        maps=random_complex(2, *GRID, seed=3),
        noise=NoiseModel(root @ root.mH + torch.eye(2), spectrum),
    )


@pytest.mark.parametrize(
    ("varying", "axis"),
    [
        ((), -3),
        ((-2,), -3),
        ((-1,), -3),
        ((-2, -1), -3),
        ((-3,), -2),
        ((-3, -1), -2),
        ((-3, -2), -1),
        ((-3, -2, -1), None),
    ],
)
def test_the_readout_stays_in_the_plane_where_it_can(varying, axis):
    assert slice_axis(mask_along(*varying)) == axis


@pytest.mark.parametrize(("axis", "varying"), [(-3, (-2,)), (-2, (-3,)), (-1, (-3, -2))])
def test_planes_have_the_data_maps_and_mask_of_their_place(axis, varying):
    scan = volume(mask_along(*varying))
    planes = plane_scans(scan, axis)
    hybrid = ifft(scan.kspace, (axis,))
    assert len(planes) == scan.grid[axis]
    for i, plane in enumerate(planes):
        torch.testing.assert_close(plane.kspace, hybrid.select(axis, i))
        torch.testing.assert_close(plane.maps, scan.maps.select(axis, i))
        assert torch.equal(plane.sampled, scan.sampled.select(axis, i))
        torch.testing.assert_close(plane.noise.covariance, scan.noise.covariance)
        assert plane.acceleration == pytest.approx(scan.acceleration)
    assert as_stack(scan, axis).layout == "stack"


@pytest.mark.parametrize("axis", [-3, -2, -1])
def test_coloured_noise_of_a_plane_is_that_of_its_place(axis):
    spectrum = torch.linspace(0.4, 1.6, GRID[-1], dtype=torch.float64)
    scan = volume(torch.ones(GRID, dtype=torch.bool), spectrum)
    planes = plane_scans(scan, axis)
    draws = torch.stack(
        [
            ifft(NoiseColouring.of(scan).sample(torch.Generator().manual_seed(s)), (axis,))
            for s in range(400)
        ]
    )
    levels = plane_noise_levels(scan, axis)
    for i, plane in enumerate(planes):
        there = draws.select(axis, i)  # (draw, coil, *plane)
        total = sum(float(part.abs().square().mean()) for part in there.unbind(1))
        trace = float(plane.noise.covariance.diagonal().real.sum())
        assert total == pytest.approx(trace, rel=0.06)
        assert float(levels[i]) * float(scan.noise.covariance.diagonal().real.sum()) == (
            pytest.approx(trace)
        )
        assert (plane.noise.spectrum is None) is (axis == -1)


def test_what_a_plane_does_not_have():
    scan = volume(mask_along(-2))
    bare = replace(scan, maps=None, noise=None, repetitions=scan.kspace.unsqueeze(0))
    for plane in plane_scans(bare, -3):
        assert plane.maps is None
        assert plane.noise is None
        assert plane.repetitions is None
