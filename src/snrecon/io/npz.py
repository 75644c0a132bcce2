"""Scans in NumPy files: ``.npz`` with named arrays, ``.npy`` with k-space alone.

Names in an ``.npz``: ``kspace`` ``(coil, ky, kx)`` or ``(coil, kz, ky, kx)``, or
``(slice, coil, ky, kx)`` with ``layout="stack"``; optional ``mask`` (grid), ``maps`` (as kspace),
``noise`` (coil, samples) with ``noise_dwell_ratio``, ``noise_covariance`` (coil, coil) and
``noise_spectrum`` (readout).
"""

from __future__ import annotations

import lzma
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import Tensor

from snrecon.data import Scan
from snrecon.errors import InputError, SnreconWarning
from snrecon.io import npy
from snrecon.io.contents import Contents, complex_tensor, finite, numeric_tensor
from snrecon.io.limits import listing, reason, regular_file

_COMPANIONS = ("mask", "maps", "noise", "noise_dwell_ratio", "noise_covariance", "noise_spectrum")
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    OSError,
    EOFError,
    KeyError,
    IndexError,
    ValueError,
    OverflowError,
    NotImplementedError,  # an exotic compression method
    RuntimeError,  # encrypted
)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turn what the zip library raises on damaged files into one sentence."""
    try:
        yield
    except InputError:
        raise
    except _DAMAGE as error:
        raise InputError(
            f"{path}: the .npz archive is truncated or damaged ({reason(error)})."
        ) from error


class Archive:
    """The arrays of an ``.npz`` file, read by name.

    Raises:
        InputError: if the file is not a readable archive.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = regular_file(path)
        with _damage(self.path), zipfile.ZipFile(self.path) as archive:
            self._infos = {
                info.filename.removesuffix(".npy"): info
                for info in archive.infolist()
                if info.filename.endswith(".npy")
            }

    @property
    def names(self) -> list[str]:
        """Names of the arrays."""
        return list(self._infos)

    def __contains__(self, name: str) -> bool:
        return name in self._infos

    def label(self, name: str) -> str:
        """File and array, for messages."""
        return f"{self.path}: '{name}'"

    def read(self, name: str) -> np.ndarray:
        """One array.

        Raises:
            InputError: if it is absent, damaged, holds Python objects or is too large.
        """
        if name not in self._infos:
            raise InputError(
                f"{self.path}: there is no array '{name}'; it has {listing(self.names)}."
            )
        info = self._infos[name]
        with _damage(self.path), zipfile.ZipFile(self.path) as archive:
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise InputError(f"{self.label(name)} is compressed in a way NumPy does not use.")
            with archive.open(info) as stream:
                array = npy.read_array(
                    stream,
                    info.file_size,
                    info.compress_size,
                    self.label(name),
                )
                if stream.read(1):  # reaching the end also checks the sum over the content
                    raise InputError(f"{self.label(name)} is followed by unknown data.")
                return array

    def text(self, name: str) -> str:
        """A single string, or raise InputError."""
        array = self.read(name)
        if array.dtype.kind == "U" and array.size == 1:
            with _damage(self.path):
                return str(array.reshape(-1)[0])
        if array.dtype.kind == "S" and array.size == 1:
            return bytes(array.reshape(-1)[0]).decode("latin1")
        raise InputError(f"{self.label(name)} must be a single string.")

    def strings(self, name: str) -> list[str]:
        """A list of strings, or raise InputError."""
        array = self.read(name)
        if array.ndim != 1 or (array.size and array.dtype.kind != "U"):
            raise InputError(f"{self.label(name)} must be a list of texts.")
        with _damage(self.path):
            return [str(value) for value in array]

    def number(self, name: str) -> float:
        """A single finite real number, or raise InputError."""
        array = self.read(name)
        if array.dtype.kind not in "biuf" or array.size != 1 or not np.isfinite(array).all():
            raise InputError(f"{self.label(name)} must be a single finite number.")
        return float(array.reshape(-1)[0])

    def complex_arrays(self) -> list[str]:
        """Names of the complex arrays with three or four axes; only headers are read."""
        found = []
        with _damage(self.path), zipfile.ZipFile(self.path) as archive:
            for name, info in self._infos.items():
                with archive.open(info) as stream:
                    try:
                        dtype, _, shape, _ = npy.read_header(stream, self.label(name))
                    except InputError:
                        continue
                if dtype.kind == "c" and len(shape) in (3, 4):
                    found.append(name)
        return found


def read_npz(path: str | Path, key: str | None = None) -> Contents:
    """A scan from an ``.npz`` file.

    Args:
        path: File.
        key: Name of the k-space array; by default ``kspace``, or the only complex array with three
            or four axes. Other entries are used with a named array only where they fit it.

    Raises:
        InputError: if the file is damaged, the array is absent, or the entries do not fit together.
    """
    archive = Archive(path)
    source = str(archive.path)
    if {"image", "sigma"} <= set(archive.names) and "kspace" not in archive and key is None:
        raise InputError(f"{source}: this is a result with a noise map, not a scan.")
    name = key if key is not None else _kspace_name(archive)
    kspace = complex_tensor(archive.read(name), archive.label(name))
    layout = archive.text("layout") if "layout" in archive else "grid"
    if layout not in ("grid", "stack"):
        raise InputError(
            f"{archive.label('layout')} must be 'grid' or 'stack', not '{layout[:40]}'."
        )
    if layout == "stack" and kspace.ndim == 3 and key is not None:
        layout = "grid"  # a single slice beside the stack

    entries: dict[str, Tensor] = {}
    for entry in _COMPANIONS:
        if entry not in archive or entry == "noise_dwell_ratio":
            continue
        array = archive.read(entry)
        tensor = finite(numeric_tensor(array, archive.label(entry)), archive.label(entry))
        if key not in (None, "kspace") and not _fits(entry, tensor, kspace, layout):
            warnings.warn(
                f"{archive.label(entry)} does not fit '{name}' and is not used.",
                SnreconWarning,
                stacklevel=3,
            )
            continue
        entries[entry] = tensor
    if "maps" in entries and not entries["maps"].is_complex():
        entries["maps"] = entries["maps"].to(kspace.dtype)
    mask = entries.get("mask")
    if mask is not None:
        mask = mask != 0
    return Contents(
        scan=Scan(
            kspace,
            mask=mask,
            maps=entries.get("maps"),
            layout="stack" if layout == "stack" else "grid",
            source=source,
            attributes={"format": "npz", "array": name},
        ),
        noise_covariance=entries.get("noise_covariance"),
        noise_scan=entries.get("noise"),
        dwell_ratio=archive.number("noise_dwell_ratio") if "noise_dwell_ratio" in archive else 1.0,
        noise_spectrum=entries.get("noise_spectrum"),
    )


def read_npy_scan(path: str | Path) -> Contents:
    """K-space alone, ``(coil, ky, kx)`` or ``(coil, kz, ky, kx)``, from a ``.npy`` file.

    Raises:
        InputError: if the file is damaged or not complex k-space.
    """
    kspace = complex_tensor(npy.read_npy(path), f"{path}: the array")
    return Contents(Scan(kspace, source=str(path), attributes={"format": "npy"}))


def _kspace_name(archive: Archive) -> str:
    if "kspace" in archive:
        return "kspace"
    candidates = [n for n in archive.complex_arrays() if n not in _COMPANIONS]
    if len(candidates) == 1:
        return candidates[0]
    raise InputError(
        f"{archive.path}: there is no array 'kspace'; choose one with --key: it has "
        f"{listing(archive.names)}."
    )


def _fits(entry: str, tensor: Tensor, kspace: Tensor, layout: str) -> bool:
    coils = kspace.shape[1 if layout == "stack" else 0]
    grid = tuple(kspace.shape[2 if layout == "stack" else 1 :])
    if entry == "mask":
        return tuple(tensor.shape) in (grid, (kspace.shape[0], *grid))
    if entry == "maps":
        return tensor.shape == kspace.shape
    if entry == "noise_covariance":
        return tuple(tensor.shape) == (coils, coils)
    if entry == "noise_spectrum":
        return tuple(tensor.shape) == grid[-1:]
    return tensor.ndim == 2 and tensor.shape[0] == coils
