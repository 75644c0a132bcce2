"""Result files in HDF5 and ``.npz``: the same names in both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from snrecon.data import NoiseMap
from snrecon.errors import InputError
from snrecon.io import npy
from snrecon.io.hdf5 import attributes, has_dataset, opened, read_dataset, read_text
from snrecon.io.limits import regular_file
from snrecon.io.npz import Archive
from snrecon.io.record import IMAGES, MAPS, Record, to_noise_map

ARRAYS = (*IMAGES, *MAPS, "covariance")
_TEXTS = ("estimator", "convention", "method", "units", "layout", "geometry", "details")
_NUMBERS = ("passes", "seed", "acceleration", "real_image")
_ATTRIBUTE_BYTES = 60_000
"""HDF5 keeps attributes up to 64 KiB in the object's header; longer texts become datasets."""


def write_hdf5(record: Record, path: Path) -> None:
    """Datasets at the root, everything else as attributes of the root."""
    with h5py.File(path, "w") as file:
        for name, array in record.arrays.items():
            data = file.create_dataset(name, data=array, compression="gzip", shuffle=True)
            data.attrs["units"] = record.units[name]
        for name, value in record.attributes.items():
            if isinstance(value, tuple):
                texts = np.array(value, dtype=object)
                file.attrs.create(name, texts, (len(value),), h5py.string_dtype())
            elif isinstance(value, str) and len(value.encode()) > _ATTRIBUTE_BYTES:
                file.create_dataset(name, data=value, dtype=h5py.string_dtype())
            else:
                file.attrs[name] = value


def write_npz(record: Record, path: Path) -> None:
    """Arrays and attributes as entries; texts are unicode arrays, nothing is pickled."""
    entries: dict[str, Any] = dict(record.arrays)
    for name, value in record.attributes.items():
        entries[name] = np.array(list(value), dtype=np.str_) if isinstance(value, tuple) else value
    entries = {name: np.asarray(value) for name, value in entries.items()}
    if any(value.dtype.hasobject for value in entries.values()):
        raise TypeError("a result of objects would be pickled")
    with path.open("wb") as stream:
        np.savez_compressed(stream, **entries)


def load_result(path: str | Path) -> NoiseMap:
    """Read a result written as HDF5 or ``.npz``, by content.

    Values come back in the precision of the file: complex64 and float32.

    Raises:
        InputError: if the file is missing, damaged, or not a result with a noise map.
    """
    path = regular_file(path)
    with path.open("rb") as stream:
        start = stream.read(4)
    if start == b"PK\x03\x04":
        arrays, values = _from_npz(path)
    elif h5py.is_hdf5(path):
        arrays, values = _from_hdf5(path)
    else:
        kind = "an array" if start == npy.MAGIC[:4] else "a file of another kind or damaged"
        raise InputError(f"{path}: results are read from .h5 and .npz; this is {kind}.")
    return to_noise_map(arrays, values, str(path))


def _from_hdf5(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with opened(path) as file:
        arrays = {name: read_dataset(file, name) for name in ARRAYS if has_dataset(file, name)}
        values = attributes(file, (*_TEXTS, *_NUMBERS, "frozen"))
        for name in _TEXTS:
            if name not in values and (text := read_text(file, name)) is not None:
                values[name] = text
    return arrays, values


def _from_npz(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    archive = Archive(path)
    arrays = {name: archive.read(name) for name in ARRAYS if name in archive}
    values: dict[str, Any] = {name: archive.text(name) for name in _TEXTS if name in archive}
    for name in _NUMBERS:
        if name in archive:
            number = archive.number(name)
            values[name] = int(number) if name == "seed" else number
    if "frozen" in archive:
        values["frozen"] = archive.strings("frozen")
    return arrays, values
