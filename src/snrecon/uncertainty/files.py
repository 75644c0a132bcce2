"""Result files of spread maps: written like noise maps, under names of their own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from snrecon.data import Geometry
from snrecon.errors import InputError
from snrecon.io.hdf5 import attributes, has_dataset, opened, read_dataset, read_text
from snrecon.io.limits import regular_file
from snrecon.io.npz import Archive
from snrecon.io.record import Record, from_image, plain
from snrecon.io.save import ending_of, write_record
from snrecon.uncertainty.intervals import ORDER, STUDENT
from snrecon.uncertainty.spread_map import CONVENTIONS, SpreadMap

MAPS = {
    "magnitude": "mean of the magnitudes",
    "spread": "standard deviation of the magnitude over samples at fixed data; not noise",
    "spread_error": "absolute standard error of spread",
    "spread_complex": "sqrt(E|x - mean|^2) over samples at fixed data",
    "lower": "lower limit of the interval of the magnitude",
    "upper": "upper limit of the interval of the magnitude",
}
"""Real maps beside the mean image, and what they are."""
_TEXTS = ("kind", "interval", "method", "units", "details", "geometry", "seeds")
_NUMBERS = ("level", "count", "seed", "acceleration", "real_image")


def save_spread(result: SpreadMap, path: str | Path) -> None:
    """Write the mean, its maps and metadata.

    - ``.h5`` (``.hdf5``): datasets ``image`` (the mean) complex64; ``magnitude``, ``spread``,
      ``spread_error``, ``spread_complex``, ``lower``, ``upper`` float32; ``samples`` complex64
      ``(sample, *grid)`` where they were kept; attributes ``kind``, ``count``, ``level``,
      ``interval``, ``seed``, ``seeds`` (JSON), ``convention``, ``method``, ``frozen``, ``units``,
      ``acceleration``, ``geometry``, ``details`` (JSON), ``snrecon_version``;
    - ``.npz``: the same names;
    - ``NAME.nii.gz`` (``.nii``, ``.cfl``): ``NAME_image.nii.gz``, ``NAME_spread.nii.gz``, ...,
      with JSON sidecars, without the samples.

    Raises:
        InputError: if the ending is unknown or the folder cannot be written to.
        MissingExtraError: for NIfTI without nibabel.
        ValueError: if a map contains NaN or infinite values; nothing is written then.
    """
    ending = ending_of(path)
    write_record(record(result, ending in (".h5", ".hdf5", ".npz")), Path(path), ending)


def record(result: SpreadMap, with_samples: bool) -> Record:
    """What the file holds."""
    facts: dict[str, Any] = {
        "kind": result.kind,
        "count": result.count,
        "level": result.level,
        "interval": result.interval,
        "seeds": json.dumps(list(result.seeds)),
        "convention": result.convention,
        "method": result.method,
        "frozen": tuple(map(str, result.frozen)),
        "units": result.units,
        "acceleration": result.acceleration,
        "details": json.dumps(plain(dict(result.details))),
    }
    if result.seed is not None:
        facts["seed"] = result.seed
    base = from_image(result.mean, facts, result.geometry)
    arrays = dict(base.arrays)
    for name in MAPS:
        arrays[name] = finite(getattr(result, name), name, np.float32)
    if with_samples and result.samples is not None:
        arrays["samples"] = finite(result.samples, "samples", np.complex64)
    return replace(base, arrays=arrays, units=dict.fromkeys(arrays, result.units),
                   descriptions=MAPS)


def finite(tensor: Tensor, name: str, dtype: Any) -> np.ndarray:
    """A tensor as an array to be written."""
    values = np.ascontiguousarray(tensor.detach().cpu().resolve_conj().numpy().astype(dtype))
    if not np.isfinite(values).all():
        raise ValueError(f"{name} contains NaN or infinite values: nothing is written.")
    return values


def load_spread(path: str | Path) -> SpreadMap:
    """Read a spread map written as HDF5 or ``.npz``, by content, as complex64 and float32.

    Raises:
        InputError: if the file is missing, damaged, or holds no spread map.
    """
    path = regular_file(path)
    arrays, values = read_file(path, ("image", *MAPS, "samples"), _TEXTS, _NUMBERS)
    missing = [name for name in ("image", *MAPS) if name not in arrays]
    if missing:
        raise InputError(f"{path}: this is no posterior result: '{missing[0]}' is missing.")
    shape = arrays["image"].shape
    for name, array in arrays.items():
        inside = array.shape[1:] if name == "samples" else array.shape
        if inside != shape or not np.isfinite(array).all():
            raise InputError(f"{path}: '{name}' is damaged.")
    try:
        return _assembled(arrays, values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: the attributes are damaged ({error}).") from error


def _assembled(arrays: dict[str, np.ndarray], values: dict[str, Any]) -> SpreadMap:
    tensors = {name: torch.from_numpy(np.array(a, order="C")) for name, a in arrays.items()}
    if values.get("real_image"):
        tensors |= {n: tensors[n].real.contiguous() for n in ("image", "samples") if n in tensors}
    geometry = json.loads(values.get("geometry") or "null")
    if values["kind"] not in CONVENTIONS or values["interval"] not in (ORDER, STUDENT):
        raise ValueError("an unknown kind")
    return SpreadMap(
        mean=tensors.pop("image"), samples=tensors.pop("samples", None), **tensors,
        level=float(values["level"]), interval=values["interval"], count=int(values["count"]),
        kind=values["kind"], seed=int(values["seed"]) if "seed" in values else None,
        seeds=tuple(json.loads(values["seeds"])), method=values["method"], units=values["units"],
        frozen=tuple(values.get("frozen", ())), acceleration=float(values["acceleration"]),
        geometry=geometry and Geometry(**{k: tuple(v) for k, v in geometry.items()}),
        details=json.loads(values["details"]),
    )


def read_file(
    path: Path, names: Sequence[str], texts: Sequence[str], numbers: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and attributes of a result in HDF5 or ``.npz``, as far as they are there."""
    if not h5py.is_hdf5(path):
        archive = Archive(path)
        values: dict[str, Any] = {name: archive.text(name) for name in texts if name in archive}
        values |= {name: archive.number(name) for name in numbers if name in archive}
        if "frozen" in archive:
            values["frozen"] = archive.strings("frozen")
        return {name: archive.read(name) for name in names if name in archive}, values
    with opened(path) as file:
        arrays = {name: read_dataset(file, name) for name in names if has_dataset(file, name)}
        values = attributes(file, (*texts, *numbers, "frozen"))
        for name in texts:
            if name not in values and (text := read_text(file, name)) is not None:
                values[name] = text
    return arrays, values
