"""Where the slices of an ISMRMRD file lie, from the headers of its readouts."""

from __future__ import annotations

from typing import Any

import numpy as np

from snrecon.data import Geometry
from snrecon.errors import InputError
from snrecon.io.mrd_plan import Plan
from snrecon.io.mrd_readouts import Readouts


def geometry(plan: Plan, readouts: Readouts, facts: dict[str, Any]) -> Geometry | None:
    """Voxel size and orientation; None where the file does not state them or contradicts itself.

    Positions and directions of ISMRMRD are LPS, positions in millimetres, at the centre of the
    slice or slab. Voxel sizes are the encoded fields of view over the encoded points, which no
    crop changes. For a stack the size across the slices is their spacing; the thickness goes to
    ``facts``.
    """
    nz, ny, nx = plan.grid
    fov = plan.encoding.encoded.field_of_view
    if not all(fov):
        return None
    vectors = {k: v[plan.first] for k, v in readouts.vectors.items()}
    if not all(np.isfinite(v).all() for v in vectors.values()):
        return None
    depth = fov[2] / (nz if nz > 1 else plan.encoding.encoded.matrix[2])
    if len(plan.slices) > 1:
        facts["slice_thickness_m"] = depth
        axes = np.concatenate([vectors[k] for k in ("read_dir", "phase_dir", "slice_dir")], axis=1)
        if not np.allclose(axes, axes[0], atol=1e-3):
            facts["orientation"] = "the slices are not parallel"
            return None
        steps = np.diff(vectors["position"] @ vectors["slice_dir"][0]) * 1e-3
        if (steps > 0).all():
            depth = float(np.median(steps))
            if np.ptp(steps) > 0.02 * depth:
                facts["orientation"] = "the slices are not equally spaced; their median is used"
    position = vectors["position"][0] * 1e-3
    try:
        return Geometry(
            voxel_size=(depth, fov[1] / ny, fov[0] / nx),
            position=_triple(position),
            readout_direction=_triple(vectors["read_dir"][0]),
            phase_direction=_triple(vectors["phase_dir"][0]),
            slice_direction=_triple(vectors["slice_dir"][0]),
        )
    except InputError as error:
        facts["orientation"] = str(error)
        return None


def _triple(vector: np.ndarray) -> tuple[float, float, float]:
    return float(vector[0]), float(vector[1]), float(vector[2])
