"""Geometry: the affine by hand for straight and oblique images."""

from __future__ import annotations

import numpy as np
import pytest

from snrecon.data import Geometry
from snrecon.errors import InputError


def test_axial_grid() -> None:
    affine = Geometry((5e-3, 2e-3, 1e-3)).affine((6, 4))
    # Voxel (x, y) = (n // 2, n // 2) is the origin; x and y of LPS change sign in RAS.
    np.testing.assert_allclose(
        affine, [[-1, 0, 0, 2], [0, -2, 0, 6], [0, 0, 5, 0], [0, 0, 0, 1]], atol=1e-12
    )


@pytest.mark.parametrize(("layout", "centre"), [("grid", 3), ("stack", 0)])
def test_volume_is_centred_and_a_stack_starts_at_its_position(layout: str, centre: int) -> None:
    geometry = Geometry(
        (5e-3, 2e-3, 1e-3),
        position=(0.01, 0.02, 0.03),
        readout_direction=(0.0, 1.0, 0.0),
        phase_direction=(0.0, 0.0, 1.0),
        slice_direction=(1.0, 0.0, 0.0),
    )
    affine = geometry.affine((7, 6, 4), layout)
    np.testing.assert_allclose(affine @ [2, 3, centre, 1], [-10, -20, 30, 1], atol=1e-9)
    np.testing.assert_allclose(affine[:3, 0], [0, -1, 0], atol=1e-12)
    np.testing.assert_allclose(affine[:3, 1], [0, 0, 2], atol=1e-12)
    np.testing.assert_allclose(affine[:3, 2], [-5, 0, 0], atol=1e-12)


@pytest.mark.parametrize("size", [0.0, -1e-3, float("nan"), float("inf")])
def test_bad_voxel_sizes(size: float) -> None:
    with pytest.raises(InputError, match="voxel sizes"):
        Geometry((1e-3, size, 1e-3))


@pytest.mark.parametrize(
    "direction", [(2.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.7, 0.7, 0.1), (float("nan"), 0.0, 0.0)]
)
def test_directions_must_be_orthonormal(direction: tuple[float, float, float]) -> None:
    with pytest.raises(InputError, match="orthonormal"):
        Geometry((1e-3, 1e-3, 1e-3), readout_direction=direction)


def test_axes_along_the_scanner_are_not_told_from_nothing() -> None:
    assert not Geometry((0.005, 0.001, 0.001)).placed
    assert not Geometry((0.005, 0.001, 0.001), position=(0.0, 0.0, 0.025)).placed  # a later slice
    assert Geometry((0.005, 0.001, 0.001), position=(0.0, 0.01, 0.0)).placed
    assert Geometry((0.005, 0.001, 0.001), readout_direction=(-1.0, 0.0, 0.0)).placed
