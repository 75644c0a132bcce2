"""fastMRI's HDF5 files, single- and multi-coil, all slices as a stack.

The file's k-space is ``(slice, [coil,] height, width)``; masks undersample the width, so the width
is the phase encoding and the height the readout: it becomes ``(slice, coil, ky=width, kx=height)``.
Test files have ``mask`` (width,). The attributes ``max``, ``norm``, ``acquisition`` and
``patient_id`` and facts of the ``ismrmrd_header`` are kept.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from snrecon.data import Geometry, Scan
from snrecon.errors import InputError, SnreconWarning
from snrecon.io.contents import Contents, complex_tensor, numeric_tensor
from snrecon.io.fastmri_header import Header, oversampling_target, parse_header
from snrecon.io.hdf5 import attributes, has_dataset, names, opened, read_dataset, read_text
from snrecon.io.limits import listing
from snrecon.physics.fourier import fft, ifft

_ATTRIBUTES = ("acquisition", "max", "norm", "patient_id", "acceleration", "num_low_frequency")


def is_fastmri(file: h5py.File) -> bool:
    """Whether an open HDF5 file has fastMRI's dataset ``kspace`` at its root."""
    return has_dataset(file, "kspace")


def read_fastmri(path: str | Path, key: str | None = None, slice: int | None = None) -> Contents:
    """A stack of slices from a fastMRI file, or one of them.

    Readout oversampling stated by the header is removed by cropping the image along the readout
    and transforming back. With the orthonormal transform white noise stays white with the same
    covariance, so nothing is to be corrected.

    Args:
        path: File.
        key: Dataset at the root instead of ``kspace``, with the same axes.
        slice: Read only this slice; the contents then hold a grid ``(coil, ky, kx)``.

    Raises:
        InputError: if the file is damaged or not as fastMRI writes it.
    """
    path, name = Path(path), key or "kspace"
    with opened(path) as file:
        if not has_dataset(file, name):
            raise InputError(f"{path}: there is no array '{name}'; it has {listing(names(file))}.")
        shape = file[name].shape
        if shape is None or len(shape) not in (3, 4):
            raise InputError(
                f"{path}: '{name}' has shape {shape}, but fastMRI k-space is (slice, [coil,] "
                "height, width)."
            )
        if slice is not None and not -shape[0] <= slice < shape[0]:
            raise InputError(
                f"{path}: there is no slice {slice}; the scan has {shape[0]} (0 to {shape[0] - 1})."
            )
        index = None if slice is None else slice % shape[0]
        array = read_dataset(file, name, index)
        measured = read_dataset(file, "mask") if has_dataset(file, "mask") else None
        facts: dict[str, Any] = {"format": "fastmri", **attributes(file, _ATTRIBUTES)}
        text = read_text(file, "ismrmrd_header")
    header = _header(text, path)
    kspace = complex_tensor(array, f"{path}: '{name}'")
    if kspace.ndim == 3:
        kspace = kspace[:, None]
    kspace = kspace.transpose(-1, -2).contiguous()
    if 0 in kspace.shape:
        empty = "coils" if kspace.shape[1] == 0 else "samples"
        raise InputError(f"{path}: k-space of shape {shape} has no {empty}.")
    lines, full_readout = _lines(kspace, measured, path)
    points = kspace.shape[-1]
    target = oversampling_target(header, points) if full_readout else None
    mask = lines[:, None] & (
        torch.ones(points, dtype=torch.bool) if full_readout else _echo(kspace)
    )
    if target is not None:
        kspace, mask = remove_oversampling(kspace * mask, target), mask[:, :target]
        facts["readout_oversampling_removed"] = (
            f"{points} to {target} points by cropping the image; white noise stays white, its "
            "covariance unchanged"
        )
    elif not full_readout:
        facts["readout_oversampling_removed"] = "no: the echo is partial"
    geometry = _geometry(header, kspace.shape[-2], points)
    facts |= header.facts
    if geometry is not None:
        facts["orientation"] = "not in the file: readout, phase and slice along x, y and z"
    scan = Scan(
        kspace, mask=mask, geometry=geometry, layout="stack", source=str(path), attributes=facts
    )
    if index is not None:
        scan = _placed(scan, index)
    return Contents(scan, slices=int(shape[0]))


def remove_oversampling(kspace: Tensor, points: int) -> Tensor:
    """K-space of the image cropped along the readout (last axis) to its central ``points``."""
    n = kspace.shape[-1]
    start = n // 2 - points // 2  # keeps the centre at index points // 2
    return fft(ifft(kspace, (-1,))[..., start : start + points], (-1,))


def _header(text: str | None, path: Path) -> Header:
    if not text:
        return Header()
    try:
        return parse_header(text, str(path))
    except InputError as error:
        warnings.warn(
            f"{error} Voxel sizes and oversampling are unknown.", SnreconWarning, stacklevel=4
        )
        return Header()


def _lines(kspace: Tensor, measured: np.ndarray | None, path: Path) -> tuple[Tensor, bool]:
    """Sampled lines ``(ky,)``, and whether every readout point of them was acquired.

    Lines that are zero in all coils were filled in, whatever the mask says: fastMRI pads the phase
    encoding with zeros, and its masks do not leave the padding out.
    """
    nonzero = (kspace != 0).any(dim=0).any(dim=0)  # (ky, kx)
    lines = nonzero.any(dim=1)
    if measured is not None:
        stated = numeric_tensor(measured, f"{path}: 'mask'").reshape(-1) != 0
        if stated.shape != lines.shape:
            raise InputError(
                f"{path}: the mask has {stated.numel()} entries, but the k-space has "
                f"{lines.numel()} phase-encoding lines."
            )
        lines = lines & stated
    return lines, bool(nonzero.any(dim=0).all())


def _echo(kspace: Tensor) -> Tensor:
    return (kspace != 0).flatten(0, -2).any(dim=0)


def _geometry(header: Header, lines: int, points: int) -> Geometry | None:
    """Voxel sizes from the encoded field of view, which is one over the k-space step."""
    if header.encoded.fov is None:
        return None
    fov_x, fov_y, fov_z = header.encoded.fov
    partitions = header.encoded.matrix[2] if header.encoded.matrix else 1
    return Geometry(voxel_size=(fov_z / partitions, fov_y / lines, fov_x / points))


def _placed(scan: Scan, index: int) -> Scan:
    """The only slice of a stack that was read from place ``index`` of a file."""
    geometry = scan.geometry
    if geometry is not None:
        x, y, z = geometry.position
        geometry = replace(geometry, position=(x, y, z + index * geometry.voxel_size[0]))
    return replace(scan.slice(0), geometry=geometry)
