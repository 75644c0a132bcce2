"""Small fully sampled scans of a brain as fastMRI stores them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import scan_files as files
from snrecon.data import Scan
from snrecon.physics.phantom import simulate_scan


def full_scan(shape: tuple[int, int] = (40, 32), coils: int = 3, seed: int = 0) -> Scan:
    """A fully sampled brain with its true noise covariance."""
    return simulate_scan(shape, coils=coils, acceleration=1, seed=seed)


def write_brain(
    path: Path, shape: tuple[int, int] = (40, 32), coils: int = 3, slices: int = 2,
    seed: int = 0, patient: str = "", empty: int = 0,
) -> torch.Tensor:
    """A fastMRI file of ``slices`` brains and ``empty`` slices of noise; k-space
    ``(slice, coil, ky, kx)`` in its axes is returned."""
    scans = [full_scan(shape, coils, seed + s) for s in range(slices)]
    data = torch.stack([scan.kspace for scan in scans])
    if empty:
        scale = float(scans[0].require_noise().covariance.diagonal().real.mean()) ** 0.5
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(empty, *data.shape[1:], dtype=data.dtype, generator=generator)
        data = torch.cat([scale * noise, data])
    stored = data.transpose(-1, -2).contiguous().numpy().astype(np.complex64)
    files.write_fastmri(path, stored, attributes={"patient_id": patient} if patient else None)
    return data
