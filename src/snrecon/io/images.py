"""Images in files, for scoring: fastMRI's reconstructions and results of this package."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from snrecon.errors import InputError
from snrecon.io.contents import finite, numeric_tensor
from snrecon.io.hdf5 import attributes, has_dataset, names, opened, read_dataset
from snrecon.io.limits import listing, regular_file
from snrecon.io.npz import Archive

FASTMRI_IMAGES = {"reconstruction_esc": "esc", "reconstruction_rss": "rss", "reconstruction": ""}
"""fastMRI's image datasets ``(slice, height, width)`` and the kind of each; ``reconstruction`` is
what a method submits."""


FULL = 1.01
"""Acceleration up to which data count as fully sampled."""
TEXTS = ("method", "details")
"""What a result of this package says of its image."""


@dataclass(frozen=True, eq=False)
class Images:
    """A volume of images without noise maps."""

    values: Tensor
    """``(slice, ky, kx)``, real or complex."""
    kind: str
    """``rss`` (root sum of squares), ``matched`` (combined with coil maps), ``esc`` (fastMRI's
    emulated single coil), or empty where the file does not say, or holds no reference but the
    reconstruction of undersampled data."""
    method: str
    """The reconstruction, or the dataset's name."""
    source: str
    """File."""
    acceleration: float = math.nan
    """Of a result of this package; NaN where the file does not say."""


def read_images(path: str | Path) -> Images:
    """The images of a fastMRI file (``reconstruction_rss``, ``reconstruction_esc`` of a
    single-coil file, or a submitted ``reconstruction``) or of a result of this package.

    fastMRI's ``(slice, height, width)`` becomes ``(slice, ky=width, kx=height)``, as its k-space
    does.

    Raises:
        InputError: if the file is missing, damaged or holds no images.
    """
    path = regular_file(path)
    if h5py.is_hdf5(path):
        return _from_hdf5(path)
    with path.open("rb") as stream:
        zipped = stream.read(2) == b"PK"
    if not zipped:
        raise InputError(f"{path}: images are read from .h5 and .npz files, and this is neither.")
    archive = Archive(path)
    if "image" not in archive:
        raise InputError(
            f"{path}: there is no array 'image'; it has {listing(archive.names)}."
        )
    method, details = (archive.text(name) if name in archive else "" for name in TEXTS)
    told = archive.read("acceleration") if "acceleration" in archive else math.nan
    return _result(archive.read("image"), method, details, told, path)


def has_reference(path: str | Path) -> bool:
    """Whether a file is fastMRI's and brings its fully sampled images."""
    if not (Path(path).is_file() and h5py.is_hdf5(path)):
        return False
    with opened(path) as file:
        return any(has_dataset(file, name) for name, kind in FASTMRI_IMAGES.items() if kind)


def _from_hdf5(path: Path) -> Images:
    with opened(path) as file:
        found = [name for name in FASTMRI_IMAGES if has_dataset(file, name)]
        if not found and not has_dataset(file, "image"):
            raise InputError(
                f"{path}: there are no images, neither 'image' nor 'reconstruction_rss'; it has "
                f"{listing(names(file))}."
            )
        if not found:
            told = attributes(file, (*TEXTS, "acceleration"))
            method, details = (str(told.get(name, "")) for name in TEXTS)
            rate = told.get("acceleration", math.nan)
            return _result(read_dataset(file, "image"), method, details, rate, path)
        # A multi-coil file has no use for the emulated single coil.
        single = not has_dataset(file, "kspace") or len(file["kspace"].shape) == 3
        name = found[0] if single or len(found) == 1 else "reconstruction_rss"
        array = read_dataset(file, name)
    values = _volume(array, path, name).transpose(-1, -2).contiguous()
    return Images(values, FASTMRI_IMAGES[name], name, str(path))


def _result(array: np.ndarray, method: str, details: str, told: Any, path: Path) -> Images:
    try:
        facts = json.loads(details or "{}")
    except ValueError:
        facts = {}
    combined = facts.get("combine") if isinstance(facts, dict) else None
    rss = method.endswith(":rss") or combined == "rss"
    try:
        acceleration = float(told)
    except (TypeError, ValueError):
        acceleration = math.nan
    kind = "rss" if rss else "matched" if method else ""
    if acceleration > FULL:
        kind = ""
    return Images(_volume(array, path, "image"), kind, method, str(path), acceleration)


def _volume(array: np.ndarray, path: Path, name: str) -> Tensor:
    what = f"{path}: '{name}'"
    values = finite(numeric_tensor(array, what), what)
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise InputError(f"{what} has shape {tuple(values.shape)}, but images are (slice, y, x).")
    if not values.is_complex():
        values = values.to(torch.promote_types(values.dtype, torch.float32))
    return values if values.ndim == 3 else values[None]
