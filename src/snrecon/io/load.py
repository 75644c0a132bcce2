"""``load``: read a scan of any format, detected by content, and settle what its noise is."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from snrecon.data import NoiseModel, Scan
from snrecon.errors import InputError, SnreconWarning, naming
from snrecon.io import cfl, fastmri, npy
from snrecon.io.contents import Contents, finite, numeric_tensor
from snrecon.io.hdf5 import names, opened
from snrecon.io.limits import listing, regular_file
from snrecon.io.npz import Archive, read_npy_scan, read_npz
from snrecon.physics.background import ADVICE
from snrecon.physics.coverage import fully_sampled
from snrecon.physics.masks import Mask, make_mask
from snrecon.physics.noise_estimation import covariance_from_background, covariance_from_noise_scan

FORMATS = ("npz", "npy", "fastmri", "mrd", "cfl")
SMALL_MATRIX = 64
"""Images of at most so many points along an axis are announced as rung over by their object."""
_STATE = "snrecon_state"
"""Attribute of the state files that the noise estimators keep."""


def load(
    path: str | Path,
    *,
    key: str | None = None,
    slice: int | None = None,
    undersample: Mask | Tensor | Mapping[str, Any] | tuple[Any, ...] | None = None,
    maps: str | Path | Tensor | np.ndarray | None = None,
    noise_covariance: str | Path | Tensor | np.ndarray | None = None,
) -> Scan:
    """Read a scan; the format is found from the content of the file, not from its name.

    Formats: NumPy ``.npz`` and ``.npy``, fastMRI HDF5, ISMRMRD HDF5, BART ``.cfl/.hdr`` (named
    with or without the ending).

    The noise comes from, in this order: ``noise_covariance``; the file's noise covariance; the
    file's noise-only scan; the background of a fully sampled scan (with a
    :class:`~snrecon.errors.SnreconWarning`). Failing all, ``scan.noise`` is None and
    ``scan.noise_unknown`` says why. A noise spectrum over the readout stated by the file goes with
    any of them.

    Args:
        path: File.
        key: Name of the k-space array in a file that holds several.
        slice: Pick this slice of a stack, from 0; negative counts from the end.
        undersample: Keep only these samples: a mask, a boolean tensor ``(*grid)``, or a dictionary
            (or tuple) of ``kind``, ``acceleration``, ``calibration``, ``seed`` (``mask`` and
            ``mask_seed`` mean the same as on the command line) for
            :func:`snrecon.physics.masks.make_mask`. The noise is estimated before, from all data.
        maps: Coil maps with the shape of the k-space, or their file (``.npz`` with ``maps``,
            ``.npy``, ``.cfl``); used as they are, in the coil basis of the file.
        noise_covariance: ``(coil, coil)`` matrix ``E[n n^H]``, its file (``.npy``, ``.npz``,
            ``.cfl``), or ``"identity"`` for data that are already whitened.

    Returns:
        The scan, complex64, or complex128 if the file holds that.

    Raises:
        InputError: if the file is missing, damaged, foreign, or its content is not usable.
    """
    contents = read(path, key=key, slice=slice)
    scan = contents.scan
    total = contents.slices or scan.slices
    if slice is not None and contents.slices is None:
        scan = scan.slice(slice)
    if maps is not None:
        given = _maps(maps, scan)
        if slice is not None and given.ndim == 4 and scan.kspace.ndim == 3:
            if given.shape[0] != total:
                raise InputError(
                    f"{scan.source}: there are coil maps for {given.shape[0]} slices, but the scan "
                    f"has {total}."
                )
            given = given[slice]
        scan = replace(scan, maps=given)  # checks the shape
    scan = _with_noise(replace(contents, scan=scan), noise_covariance)
    return scan if undersample is None else _undersample(scan, undersample)


def detect(path: str | Path) -> str:
    """Format of a file by its content: one of ``FORMATS`` or ``"result"``.

    Raises:
        InputError: if the file is missing, unreadable, or of no known format.
    """
    if cfl.is_cfl(path):
        return "cfl"
    path = regular_file(path)
    with path.open("rb") as stream:
        start = stream.read(16)
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "npz"
    if start[:6] == npy.MAGIC:
        return "npy"
    if h5py.is_hdf5(path):
        return _detect_hdf5(path)
    if path.suffix in (".cfl", ".hdr"):
        return "cfl"  # its reader says which part is missing
    raise InputError(
        f"{path}: this is not a scan of a known format (.npz, .npy, fastMRI or ISMRMRD HDF5, "
        "BART .cfl/.hdr), or the file is damaged."
    )


def _detect_hdf5(path: Path) -> str:
    with opened(path) as file:
        if fastmri.is_fastmri(file):
            return "fastmri"
        found = names(file)
        if _STATE in file.attrs:
            raise InputError(f"{path}: this is a state file, not a scan; use --state or merge.")
    if {"image", "sigma"} <= set(found):
        return "result"
    mrd = import_module("snrecon.io.mrd")  # needs an optional library only if this is its format
    if mrd.is_mrd(path):
        return "mrd"
    raise InputError(
        f"{path}: this HDF5 file is neither fastMRI (a dataset 'kspace') nor ISMRMRD (a group with "
        f"'data' and 'xml'); it has {listing(found)}."
    )


def read(path: str | Path, *, key: str | None = None, slice: int | None = None) -> Contents:
    """What a file holds, before its noise is settled; ``slice`` only spares reading the others.

    Raises:
        InputError: if the file is missing, damaged, foreign, or its content is not usable.
    """
    found = detect(path)
    if found == "npz":
        return read_npz(path, key)
    if found == "mrd":
        return Contents(import_module("snrecon.io.mrd").load_mrd(path, key=key))
    if found == "fastmri":
        return fastmri.read_fastmri(path, key=key, slice=slice)
    if found == "result":
        raise InputError(f"{path}: this is a result with a noise map, not a scan.")
    if key is not None:
        raise InputError(f"{path}: this file holds a single array, so there is no array '{key}'.")
    return read_npy_scan(path) if found == "npy" else cfl.read_cfl_scan(path)


def _with_noise(
    contents: Contents, option: str | Path | Tensor | np.ndarray | None
) -> Scan:
    """The scan with its noise, or with the reason why that is not known."""
    scan = contents.scan
    model: NoiseModel | None
    unknown = ""
    with naming(scan.source):
        if option is not None:
            model = _given_noise(option, scan)
        elif contents.noise_covariance is not None:
            model = NoiseModel(_real_or_complex(contents.noise_covariance), source="file")
        elif scan.noise is not None:
            model = scan.noise
        elif contents.noise_scan is not None:
            model = _measured_noise(contents)
        else:
            model, unknown = _background(scan)
        if model is not None and contents.noise_spectrum is not None:
            model = replace(model, spectrum=contents.noise_spectrum.to(torch.float64))
        return replace(scan, noise=model, noise_unknown=unknown)


def _given_noise(option: str | Path | Tensor | np.ndarray, scan: Scan) -> NoiseModel:
    if isinstance(option, str) and option == "identity":
        return NoiseModel(torch.eye(scan.coils, dtype=scan.kspace.dtype), source="identity")
    if isinstance(option, str | Path):
        name = str(option)
        tensor = _matrix(option)
    else:
        name, tensor = "the given noise covariance", torch.as_tensor(option)
    if tuple(tensor.shape) != (scan.coils, scan.coils):
        raise InputError(
            f"{name} has shape {tuple(tensor.shape)}, but the noise covariance of this scan must "
            f"be ({scan.coils}, {scan.coils})."
        )
    with naming(name):
        return NoiseModel(_real_or_complex(tensor), source="given")


def _measured_noise(contents: Contents) -> NoiseModel:
    noise, scan = contents.noise_scan, contents.scan
    assert noise is not None
    if noise.ndim != 2 or noise.shape[0] != scan.coils or noise.shape[1] == 0:
        raise InputError(
            f"the noise scan has shape {tuple(noise.shape)}, but (coil, samples) with {scan.coils} "
            "coils is needed."
        )
    if not noise.is_complex():
        raise InputError("the noise scan is not complex.")
    if not 0 < contents.dwell_ratio < float("inf"):
        raise InputError(f"noise_dwell_ratio must be positive, not {contents.dwell_ratio:g}.")
    return covariance_from_noise_scan(noise, dwell_ratio=contents.dwell_ratio)


def _background(scan: Scan) -> tuple[NoiseModel | None, str]:
    """Noise from the image background; None and why, where that does not show it."""
    try:
        model = covariance_from_background(scan.kspace, scan.sampled, layout=scan.layout)
    except InputError as error:
        why = str(error).removesuffix(f": {ADVICE}").rstrip(".")
        return None, scan.noise_unknown or why
    why = "its noise readouts are not usable" if scan.noise_unknown else "the file states none"
    rows, columns = scan.grid[-2:]
    ringing = (
        f", and at a matrix of {rows} x {columns} it may be wrong several-fold, for ringing "
        "of the object may reach the background"
        if min(rows, columns) <= SMALL_MATRIX
        else ""
    )
    warnings.warn(
        f"{scan.source}: the noise was estimated from the image background, because {why}"
        f"{ringing}; give a noise covariance if one was measured.",
        SnreconWarning,
        stacklevel=4,
    )
    return model, ""


def _undersample(
    scan: Scan, option: Mask | Tensor | Mapping[str, Any] | tuple[Any, ...]
) -> Scan:
    facts: dict[str, Any] = {"kind": "given"}
    if isinstance(option, tuple):
        option = dict(zip(("kind", "acceleration", "calibration", "seed"), option, strict=False))
    if isinstance(option, Mapping):
        names_of = {"mask": "kind", "mask_seed": "seed"}  # as the options of the command line
        option = {names_of.get(str(name), name): value for name, value in option.items()}
        unknown = set(option) - {"kind", "acceleration", "calibration", "seed"}
        if unknown or "kind" not in option or option.get("acceleration") is None:
            raise InputError(
                "undersampling needs a mask kind and an acceleration, and knows besides them only "
                f"calibration and seed, not {listing([str(n) for n in unknown])}."
                if unknown
                else "undersampling needs a mask kind and an acceleration."
            )
        seed = option.get("seed")
        calibration = option.get("calibration")
        option = make_mask(
            option["kind"],
            scan.grid,
            option["acceleration"],
            calibration=calibration,
            seed=0 if seed is None else seed,
        )
        facts = {"seed": 0 if seed is None else seed}
    if isinstance(option, Mask):
        facts |= {"kind": option.kind, "nominal_acceleration": option.nominal,
                  "calibration": option.calibration}
        mask = option.tensor
    else:
        mask = torch.as_tensor(option) != 0
    reduced = scan.undersample(mask)
    if not all(fully_sampled(one) for one in scan.sampled.reshape(-1, *scan.grid)):
        warnings.warn(
            f"{scan.source}: the scan is undersampled already (acceleration "
            f"{scan.acceleration:.2f}); the mask leaves a part of its samples (acceleration "
            f"{reduced.acceleration:.2f}).",
            SnreconWarning,
            stacklevel=4,
        )
    facts["achieved_acceleration"] = reduced.acceleration
    return replace(reduced, attributes={**scan.attributes, "undersampling": facts})


def _maps(option: str | Path | Tensor | np.ndarray, scan: Scan) -> Tensor:
    """Coil maps from memory or a file, complex, with the axes of the k-space."""
    if not isinstance(option, str | Path):
        tensor, name = torch.as_tensor(option), "the given coil maps"
    else:
        tensor, name = _array(option, "maps", cfl.read_cfl_maps), str(option)
    finite(tensor, name)
    return tensor.to(scan.kspace.dtype)


def _matrix(path: str | Path) -> Tensor:
    tensor = _array(path, "noise_covariance", lambda p: torch.from_numpy(cfl.read_cfl(p).squeeze()))
    return tensor.reshape(1, 1) if tensor.numel() == 1 else tensor


def _array(path: str | Path, name: str, from_cfl: Any) -> Tensor:
    """An array beside a scan: the entry ``name`` of an archive or its only one, or the array."""
    if cfl.is_cfl(path):
        found: Tensor = from_cfl(path)
        return found
    path = regular_file(path)
    with path.open("rb") as stream:
        start = stream.read(6)
    if start[:2] == b"PK":
        archive = Archive(path)
        names = archive.names
        if name not in names and len(names) != 1:
            raise InputError(f"{path}: there is no array '{name}'; it has {listing(names)}.")
        chosen = name if name in names else names[0]
        return numeric_tensor(archive.read(chosen), archive.label(chosen))
    if start == npy.MAGIC:
        return numeric_tensor(npy.read_npy(path), str(path))
    if path.suffix in (".cfl", ".hdr"):
        from_cfl(path)  # says which part is missing
    raise InputError(f"{path}: {name.replace('_', ' ')} must come from a .npz, .npy or .cfl file.")


def _real_or_complex(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_complex() or tensor.is_floating_point() else tensor.to(torch.float64)
