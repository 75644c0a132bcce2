"""Results made by hand."""

from __future__ import annotations

from dataclasses import replace

import torch

import scan_files as files
from snrecon.data import Geometry, NoiseMap

OBLIQUE = Geometry(
    voxel_size=(5e-3, 2e-3, 1e-3),
    position=(0.01, -0.02, 0.03),
    readout_direction=(0.8, 0.6, 0.0),
    phase_direction=(-0.36, 0.48, 0.8),
    slice_direction=(0.48, -0.64, 0.6),
)


def result(shape: tuple[int, ...] = (6, 5), **changes: object) -> NoiseMap:
    image = torch.from_numpy(files.image(shape)).to(torch.complex64)
    inside = (image != 0).float()
    size = image.abs()
    made = NoiseMap(
        image=image,
        sigma=inside * (1 + size / 100),
        sigma_complex=inside * (2 + size / 50),
        snr=torch.where(inside > 0, size / (1 + size / 100), torch.zeros(())),
        sigma_phase=inside * 0.1,
        g_factor=inside * 1.5,
        standard_error=inside * 0.01,
        covariance=torch.stack([inside, 2 * inside, 0.1 * inside]),
        estimator="sketch",
        passes=50.5,
        seed=7,
        frozen=("coil maps", "λ"),
        method="varnet:brain",
        acceleration=3.7,
        geometry=OBLIQUE,
        layout="grid",
        details={"noise": "background", "stops": [4, 8], "tolerance": 0.05},
    )
    return replace(made, **changes)  # type: ignore[arg-type]
