"""Where the voxels of an image lie in the scanner."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from snrecon.errors import InputError

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Geometry:
    """Voxel sizes and orientation of an image ``(ky, kx)`` or ``(kz, ky, kx)``.

    Directions and positions are in the patient system of DICOM and ISMRMRD
    (LPS: x to the left, y to the back, z to the head), in metres.
    """

    voxel_size: Vector
    """Size along (slice or kz, phase encoding, readout), metres."""
    position: Vector = (0.0, 0.0, 0.0)
    """Centre of the grid (voxel ``n // 2`` along each axis) of the first slice, metres, LPS."""
    readout_direction: Vector = (1.0, 0.0, 0.0)
    """Unit vector along increasing readout index, LPS."""
    phase_direction: Vector = (0.0, 1.0, 0.0)
    """Unit vector along increasing phase-encoding index, LPS."""
    slice_direction: Vector = (0.0, 0.0, 1.0)
    """Unit vector along increasing slice or kz index, LPS."""

    def __post_init__(self) -> None:
        if not all(np.isfinite(self.voxel_size)) or min(self.voxel_size) <= 0:
            raise InputError(f"voxel sizes must be positive and finite, not {self.voxel_size}.")
        axes = np.array([self.readout_direction, self.phase_direction, self.slice_direction])
        if not np.allclose(axes @ axes.T, np.eye(3), atol=1e-3):
            raise InputError("the readout, phase and slice directions are not orthonormal.")

    @property
    def placed(self) -> bool:
        """Whether more than the voxel sizes is known: axes along those of the scanner, slices on
        top of each other at its very centre, are what is assumed where a file says nothing."""
        return self != Geometry(self.voxel_size, (0.0, 0.0, self.position[2]))

    def affine(self, shape: tuple[int, ...], layout: str = "grid") -> np.ndarray:
        """NIfTI affine for an array stored as ``(x, y, z) = (readout, phase, slice)``.

        Args:
            shape: Image shape ``(ky, kx)`` or ``(z, ky, kx)`` before the axes are reversed.
            layout: ``"stack"`` counts the slices from the first, where ``position`` is; the centre
                of a 3D grid is at ``position``.

        Returns:
            ``(4, 4)`` float64, voxel index to RAS millimetres.
        """
        nz, ny, nx = (1, *shape)[-3:]
        directions = np.array(
            [self.readout_direction, self.phase_direction, self.slice_direction]
        ).T  # columns
        sizes = np.array(self.voxel_size[::-1]) * 1e3
        lps_to_ras = np.diag([-1.0, -1.0, 1.0])
        matrix = np.eye(4)
        matrix[:3, :3] = lps_to_ras @ directions * sizes
        centre = lps_to_ras @ np.array(self.position) * 1e3
        first = np.array([nx // 2, ny // 2, 0 if layout == "stack" else nz // 2], dtype=float)
        matrix[:3, 3] = centre - matrix[:3, :3] @ first
        return matrix
