"""Fewer virtual coils that keep most of the signal."""

from __future__ import annotations

import torch
from torch import Tensor

from snrecon.errors import InputError


def compress(
    kspace: Tensor, virtual_coils: int, calibration: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compress the coils to the strongest principal components of the calibration data.

    Huang et al., A software channel compression technique for faster reconstruction with many
    channels, Magn Reson Imaging 26:133 (2008). The matrix has orthonormal rows, so noise that was
    white stays white; whiten before.

    Args:
        kspace: ``(coil, *grid)`` complex, whitened where the noise is known.
        virtual_coils: How many to keep.
        calibration: ``(coil, ...)`` data that determine the components, usually the calibration
            lines; None takes ``kspace`` itself.

    Returns:
        Compressed k-space ``(virtual, *grid)`` and the matrix ``(virtual, coil)``; maps are
        compressed by the same matrix.

    Raises:
        InputError: if ``virtual_coils`` is not between 1 and the number of coils, or the
            calibration data have another number of coils.
    """
    coils = kspace.shape[0]
    if not 1 <= virtual_coils <= coils:
        raise InputError(
            f"{coils} coils can be compressed to 1 to {coils} virtual coils, not {virtual_coils}."
        )
    flat = (kspace if calibration is None else calibration).flatten(1)
    if flat.shape[0] != coils:
        raise InputError(
            f"the calibration data have {flat.shape[0]} coils, but the k-space has {coils}."
        )
    _, vectors = torch.linalg.eigh(flat @ flat.mH)  # ascending
    matrix = vectors.flip(1)[:, :virtual_coils].mH.contiguous()
    return torch.einsum("vc,c...->v...", matrix.to(kspace), kspace), matrix
