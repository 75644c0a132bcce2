"""One scan made ready for training: whitened, compressed, with coil maps, empty slices left out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snrecon.data import NoiseModel, Scan
from snrecon.errors import InputError
from snrecon.physics.calibration import calibration_region, cap_region
from snrecon.physics.coils import CALIBRATION_LIMIT, compress, estimate_maps
from snrecon.physics.coverage import fully_sampled
from snrecon.physics.fourier import ifft
from snrecon.physics.gram import varying_axes
from snrecon.physics.slicing import as_stack

BRIGHT = 5.0
"""SNR (complex noise SD 1) from which a voxel counts as signal."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """Slices of one scan in SNR units: a complex sample of ``kspace`` has noise of SD 1."""

    kspace: Tensor
    """``(slice, coil, ky, kx)`` complex64, whitened."""
    maps: Tensor
    """The same shape, ``sum |S|^2 = 1`` on their support."""
    mask: Tensor
    """Boolean ``(slice, ky, kx)``."""
    kept: tuple[int, ...]
    """Which slices of the scan these are."""
    skipped: int
    """Slices with too little signal."""
    maps_source: str
    noise: NoiseModel
    """Of the scan, before whitening and compression."""

    @property
    def full(self) -> bool:
        """Every slice is fully sampled, so that there are targets."""
        return all(fully_sampled(mask) for mask in self.mask)


def prepare_scan(scan: Scan, coils: int | None = None, min_signal: float = 0.02) -> Prepared:
    """Whiten, compress, estimate maps and leave out slices without signal.

    A 3D grid becomes slices along kz, which must be fully sampled. Coils are compressed after
    whitening, slice by slice, to the strongest components of the calibration lines. Given maps are
    whitened, compressed and normalised to ``sum |S|^2 = 1``; otherwise they are estimated (ESPIRiT)
    from at most 24 calibration lines along each axis.

    Args:
        scan: A slice, a stack or a 3D grid.
        coils: Virtual coils to keep; None or as many as there are keeps all.
        min_signal: Smallest share of the voxels with an SNR of 5 for a slice to be kept.

    Raises:
        InputError: if the noise is not known, kz is undersampled, there are too few calibration
            lines, or no slice shows anything.
    """
    noise = scan.require_noise()
    parts, kept, sources = [], [], []
    stack = along_slices(scan)
    for index in range(stack.slices):
        part = prepare_slice(stack.slice(index), coils, min_signal)
        if part is not None:
            kspace, maps, mask, source = part
            parts.append((kspace, maps, mask))
            sources.append(source)
            kept.append(index)
    if not parts:
        raise InputError(
            f"{scan.source}: no slice shows signal on {100 * min_signal:g} % of its voxels; check "
            "the noise covariance, or lower --min-signal."
        )
    kspace, maps, mask = (torch.stack(columns) for columns in zip(*parts, strict=True))
    return Prepared(kspace, maps, mask, tuple(kept), stack.slices - len(kept), sources[0], noise)


def prepare_slice(
    scan: Scan, coils: int | None = None, min_signal: float = 0.02
) -> tuple[Tensor, Tensor, Tensor, str] | None:
    """K-space, maps ``(coil, ky, kx)``, mask ``(ky, kx)`` and the source of the maps of one slice;
    None if it shows too little signal. Arguments and errors as for :func:`prepare_scan`."""
    noise = scan.require_noise()
    kspace = noise.whiten(scan.kspace).to(torch.complex64)
    if signal_share(kspace, scan.sampled) < min_signal:
        return None
    maps = None if scan.maps is None else noise.whiten(scan.maps).to(torch.complex64)
    if coils is not None and coils < scan.coils:
        grid = (int(scan.sampled.shape[0]), int(scan.sampled.shape[1]))
        region = cap_region(calibration_region(scan.sampled), grid, CALIBRATION_LIMIT)
        kspace, matrix = compress(kspace, coils, kspace[(slice(None), *region)])
        maps = None if maps is None else torch.einsum("vc,c...->v...", matrix.to(maps), maps)
    if maps is None:
        maps, source = estimate_maps(kspace, scan.sampled)
    else:
        power = maps.abs().square().sum(dim=0).sqrt()
        maps, source = torch.where(power > 0, maps / torch.where(power > 0, power, 1), 0), "given"
    return kspace, maps, scan.sampled, source


def signal_share(kspace: Tensor, mask: Tensor) -> float:
    """Share of the voxels that are brighter than noise: the energy of whitened coil images
    ``(coil, ky, kx)`` exceeds its mean in noise alone by that of an SNR of 5."""
    energy = ifft(kspace, (-2, -1)).abs().square().sum(dim=0)
    floor = kspace.shape[0] * float(mask.double().mean())
    return float((energy > floor + BRIGHT**2).double().mean())


def along_slices(scan: Scan) -> Scan:
    """A 3D grid as a stack of slices along kz; anything else as it is.

    Raises:
        InputError: if kz is undersampled.
    """
    if len(scan.grid) == 2:
        return scan
    if -3 in varying_axes(scan.sampled):
        raise InputError(
            f"{scan.source}: kz is undersampled, so the grid cannot be taken apart into slices; "
            "networks are trained on 2D slices."
        )
    return as_stack(scan, -3)
