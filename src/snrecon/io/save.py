"""``save`` and ``save_image``: the format follows from the ending of the name."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from glob import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snrecon.data import NoiseMap, Scan
from snrecon.errors import InputError, SnreconWarning
from snrecon.io import cfl
from snrecon.io.nifti import sidecar_attributes, write_nifti
from snrecon.io.record import Record, from_image, from_noise_map, plain
from snrecon.io.results import write_hdf5, write_npz
from snrecon.io.staging import Staging, staged

NIFTI = (".nii.gz", ".nii")
ENDINGS = (".h5", ".hdf5", ".npz", ".nii.gz", ".nii", ".cfl")


def save(result: NoiseMap, path: str | Path) -> None:
    """Write image, noise maps and metadata.

    - ``.h5`` (``.hdf5``): datasets ``image`` (and ``dithered``) complex64, ``sigma``,
      ``sigma_complex``, ``sigma_phase``, ``snr``, ``g_factor``, ``standard_error`` float32, and
      ``covariance``; those that do not exist are absent; attributes ``estimator``, ``passes``,
      ``seed``, ``convention``, ``frozen``, ``method``, ``units``, ``acceleration``,
      ``snrecon_version``, ``layout``, ``geometry`` and ``details`` (JSON);
    - ``.npz``: the same names;
    - ``NAME.nii.gz`` (``.nii``): ``NAME_image.nii.gz`` (magnitude), ``NAME_sigma.nii.gz``, ...,
      with JSON sidecars;
    - ``NAME.cfl``: BART's format, ``NAME.cfl`` the complex image, ``NAME_sigma.cfl``, ..., and
      ``NAME.json`` with the metadata.

    Files are written under other names in the same folder and renamed when all are complete.

    Raises:
        InputError: if the ending is unknown or the folder cannot be written to.
        MissingExtraError: for NIfTI without nibabel.
        ValueError: if a map contains NaN or infinite values; nothing is written then.
    """
    ending = ending_of(path)
    write_record(from_noise_map(result), Path(path), ending)


def save_image(
    image: Tensor,
    path: str | Path,
    *,
    scan: Scan | None = None,
    method: str = "",
    units: str = NoiseMap.units,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write an image ``(*grid)`` or ``(slice, ky, kx)`` without noise maps, as :func:`save` does.

    Args:
        image: Complex or real.
        path: File; formats as for :func:`save`.
        scan: Where the image comes from: gives geometry, layout and acceleration.
        method: The reconstruction.
        units: Unit of the image, in words.
        metadata: Further facts, kept as JSON under ``details``.

    Raises:
        InputError: if the ending is unknown or the folder cannot be written to.
        MissingExtraError: for NIfTI without nibabel.
        ValueError: if the image contains NaN or infinite values; nothing is written then.
    """
    ending = ending_of(path)
    attributes: dict[str, Any] = {
        "method": method,
        "units": units,
        "details": json.dumps(plain(dict(metadata or {}))),
    }
    if scan is not None:
        attributes["acceleration"] = scan.acceleration
        attributes["source"] = scan.source
    record = from_image(
        torch.as_tensor(image),
        attributes,
        geometry=None if scan is None else scan.geometry,
        layout="grid" if scan is None else scan.layout,
    )
    write_record(record, Path(path), ending)


def ending_of(path: str | Path) -> str:
    """The ending of an output's name, which is its format.

    Raises:
        InputError: if it is none of :data:`ENDINGS`.
    """
    name = Path(path).name
    for ending in ENDINGS:
        if name.endswith(ending) and len(name) > len(ending):
            return ending
    raise InputError(f"{path}: the name of an output must end in one of {', '.join(ENDINGS)}.")


def write_record(record: Record, path: Path, ending: str) -> None:
    """Write a record in the format of its ending, under other names first.

    Raises:
        InputError: if the folder cannot be written to.
        MissingExtraError: for NIfTI without nibabel.
    """
    base = path.with_name(path.name[: -len(ending)])
    earlier = _earlier(base, ending)
    with staged() as staging:
        if ending in (".h5", ".hdf5"):
            write_hdf5(record, staging.path(path))
        elif ending == ".npz":
            write_npz(record, staging.path(path))
        elif ending == ".cfl":
            _write_cfl(record, base, staging)
        else:
            write_nifti(record, base, ending, staging)
    for old in earlier - {final for _, final in staging.pairs}:
        try:
            old.unlink(missing_ok=True)
        except OSError as error:
            warnings.warn(f"{old}, of an earlier result, could not be removed ({error}).",
                          SnreconWarning, stacklevel=3)


def _earlier(base: Path, ending: str) -> set[Path]:
    """The files of an earlier result of this name: what the new one has no counterpart of must not
    stay beside it, for image and maps are one."""
    if ending not in (".cfl", *NIFTI):
        return set()
    found: set[Path] = set()
    if ending == ".cfl":
        units = _facts(base.with_name(f"{base.name}.json")).get("unit")
        for name in units if isinstance(units, dict) else ():
            target = base if name == "image" else base.with_name(f"{base.name}_{name}")
            found |= set(cfl.parts(target))
        return found
    for sidecar in base.parent.glob(f"{escape(base.name)}_*.json"):
        name = sidecar.stem.removeprefix(f"{base.name}_")
        if _facts(sidecar).get("quantity") == name:
            # Of either ending: both would have this one sidecar.
            found |= {sidecar, *(base.with_name(f"{base.name}_{name}{one}") for one in NIFTI)}
    return found


def _facts(sidecar: Path) -> dict[str, Any]:
    """What a sidecar says; nothing if it is none of ours."""
    try:
        found = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_cfl(record: Record, base: Path, staging: Staging) -> None:
    for name, array in record.arrays.items():
        if name == "covariance":
            continue
        target = base if name == "image" else base.with_name(f"{base.name}_{name}")
        header, data = (staging.path(part) for part in cfl.parts(target))
        cfl.write_pair(header, data, cfl.to_bart(array, coils=False, layout=record.layout))
    staging.path(base.with_name(f"{base.name}.json")).write_text(
        json.dumps({"unit": record.units, **sidecar_attributes(record)}, indent=2) + "\n",
        encoding="utf-8",
    )
