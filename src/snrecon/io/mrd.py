"""ISMRMRD (MRD) raw data in HDF5: readouts with headers, and an XML header.

What is read: Cartesian 2D, stacks of slices and 3D; averages, repetitions, reversed readouts,
partial echoes and partial Fourier, embedded and separate calibration lines, noise readouts. See
:func:`load_mrd` for what becomes of each, and the modules ``mrd_*`` for how.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import torch
from torch import Tensor

from snrecon.data import NoiseModel, Scan
from snrecon.errors import InputError, SnreconWarning
from snrecon.io.hdf5 import opened
from snrecon.io.mrd_assemble import assemble, crop_phase_oversampling
from snrecon.io.mrd_geometry import geometry
from snrecon.io.mrd_header import library, parse_header
from snrecon.io.mrd_noise import noise_model
from snrecon.io.mrd_plan import Plan, cropped, make_plan, ratio
from snrecon.io.mrd_readouts import Readouts, is_readouts, read_xml
from snrecon.physics.coils import estimate_maps

DEFAULT_KEY = "dataset"


def is_mrd(path: str | Path) -> bool:
    """Whether a file is HDF5 with a group of ISMRMRD readouts; False for anything unreadable."""
    try:
        with opened(path) as file:
            return bool(_groups(file))
    except InputError:
        return False


def load_mrd(path: str | Path, key: str | None = None) -> Scan:
    """Read an ISMRMRD file.

    - Readout oversampling is removed by cropping the image to the reconstructed field of view,
      phase and slice oversampling only where every line was acquired; white noise stays white
      with the same covariance. Grid, mask and partial Fourier keep the encoded lines, with the
      centre of k-space at ``n // 2``; a larger reconstructed matrix (interpolation) is not applied.
    - Repeated lines are averaged. Repetitions become ``Scan.repetitions``, as long as they sample
      the same points; k-space is the first. Slices become a stack in the order of their positions.
    - Calibration lines in the gaps of the lattice are part of k-space. A separate reference scan
      may have another contrast, so it gives the coil maps (ESPIRiT) and not samples.
    - Noise readouts give the covariance (:func:`snrecon.io.mrd_noise.noise_model`). If they are not
      usable, the noise is None, with a warning, and ``noise_unknown`` says why.
    - Of several contrasts, phases, sets or encoding spaces one is read; ``attributes`` says what
      was left out. Nothing about the patient or the institution is carried over.

    Args:
        path: File.
        key: Name of the dataset group; default ``"dataset"``, else the only one.

    Raises:
        InputError: if the file is missing, damaged, not ISMRMRD, not Cartesian, or inconsistent.
        MissingExtraError: if the library ``ismrmrd`` is not installed.
    """
    name = str(path)
    tools = library()
    with opened(path) as file:
        group = file[_choose(_groups(file), key, name)]
        text = read_xml(group, name)
        readouts = Readouts(group, name, tools)
        header = parse_header(text, name)
        plan = make_plan(readouts, header)
        kspace, counts = assemble(plan, readouts, plan.imaging)
        noise, unknown = noise_model(readouts, header, plan, counts[0])
        reference = None
        if plan.separate.size:
            once = replace(plan, repetitions=1, place=plan.place * [0, 1, 1, 1])
            reference = assemble(once, readouts, plan.separate)
        interval = float(readouts.dwell[plan.imaging[0]])
        place = geometry(plan, readouts, plan.facts)
    masks = counts > 0
    same = (masks == masks[0]).flatten(1).all(dim=1)
    if not bool(same.all()):
        plan.facts["repetitions_left_out"] = f"{int((~same).sum())}, which sample other points"
        kspace = kspace[same]
    mask = masks[0]
    if bool(mask.all()):
        kspace = crop_phase_oversampling(kspace, plan)
        mask = torch.ones_like(kspace[0, :, 0], dtype=torch.bool)
    maps = None if reference is None else _maps(reference[0][0], reference[1][0] > 0, noise, name)
    if maps is not None and maps.shape != kspace.shape[1:]:
        maps = None  # fully sampled and cropped: the data calibrate themselves
    stack = len(plan.slices) > 1
    volume = plan.grid[0] > 1
    if not volume:
        kspace, mask = kspace.squeeze(-3), mask.squeeze(-3)
        maps = None if maps is None else maps.squeeze(-3)
    if not stack:
        kspace, mask = kspace.squeeze(1), mask[0]
        maps = None if maps is None else maps[0]
    elif bool((mask == mask[0]).all()):
        mask = mask[0]
    return Scan(
        kspace[0],
        mask=mask,
        maps=maps,
        noise=noise,
        geometry=place,
        layout="stack" if stack else "grid",
        repetitions=kspace if kspace.shape[0] > 1 else None,
        source=name,
        attributes={"format": "ISMRMRD", **header.facts, **_facts(plan, counts[0], interval)},
        noise_unknown=unknown,
    )


def _groups(file: h5py.File) -> list[str]:
    return [
        name
        for name in file
        if isinstance(file.get(name, getlink=True), h5py.HardLink) and is_readouts(file[name])
    ]


def _choose(groups: list[str], key: str | None, name: str) -> str:
    if not groups:
        raise InputError(
            f"{name}: this is not an ISMRMRD file: no group in it holds readouts ('data')."
        )
    if key is not None and key not in groups:
        raise InputError(
            f"{name}: there is no ISMRMRD dataset '{key}'; the file has {', '.join(groups)}."
        )
    chosen = key or (DEFAULT_KEY if DEFAULT_KEY in groups else groups[0])
    if key is None and len(groups) > 1 and DEFAULT_KEY not in groups:
        raise InputError(
            f"{name}: the file has several ISMRMRD datasets; choose one of {', '.join(groups)} as "
            "key."
        )
    return chosen


def _maps(kspace: Tensor, mask: Tensor, noise: NoiseModel | None, name: str) -> Tensor | None:
    """Coil maps ``(slice, coil, nz, ny, nx)`` of a reference scan, in the file's coil basis."""
    found = []
    try:
        for data, sampled in zip(kspace, mask, strict=True):
            flat = 0 if data.shape[1] == 1 else None  # 2D: without the axis z
            data = data if flat is None else data.squeeze(1)
            white = data if noise is None else noise.whiten(data)
            maps, _ = estimate_maps(white, sampled if flat is None else sampled.squeeze(0))
            maps = maps if noise is None else noise.unwhiten(maps)
            found.append(maps if flat is None else maps.unsqueeze(1))
    except InputError as error:
        warnings.warn(
            f"{name}: the separate reference scan gives no coil maps: {error}",
            SnreconWarning,
            stacklevel=3,
        )
        return None
    return torch.stack(found)


def _facts(plan: Plan, counts: Tensor, interval: float) -> dict[str, Any]:
    encoding, taken = plan.encoding, counts[counts > 0]
    facts: dict[str, Any] = {
        "encoded_matrix": encoding.encoded.matrix,
        "reconstructed_matrix": encoding.recon.matrix,
        "encoded_field_of_view_m": encoding.encoded.field_of_view,
        "averages": int(taken.max()),
    }
    if int(taken.min()) != int(taken.max()):
        facts["averages"] = f"{int(taken.min())} to {int(taken.max())}"
    if 0 < interval < float("inf"):
        facts["dwell_time_s"] = interval
    if encoding.acceleration is not None:
        facts["nominal_acceleration"] = encoding.acceleration
    left = [
        axis
        for axis, points, dimension in (("phase", plan.grid[1], 1), ("slice", plan.grid[0], 2))
        if points > 1
        and cropped(points, ratio(encoding, dimension)) != points
        and f"{axis}_oversampling_removed" not in plan.facts
    ]
    if left:
        facts["oversampling_kept"] = f"along {' and '.join(left)}: not every line was acquired"
    return facts | plan.facts
