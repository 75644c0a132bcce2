"""Where slices of real scans come from: prepared volumes, or fastMRI files as they are."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from snrecon.data import NoiseModel, Scan
from snrecon.errors import InputError, SnreconWarning
from snrecon.io import load
from snrecon.io.hdf5 import has_dataset, opened
from snrecon.io.mapped import mapped_array
from snrecon.physics.coverage import fully_sampled
from snrecon.training.images import data_folder
from snrecon.training.prepare import INDEX, read_index
from snrecon.training.volume import prepare_slice

CACHE_BYTES = 2**30
"""Slices of raw files that a process keeps in memory once their maps are estimated, all files
together."""
Part = tuple[Tensor, Tensor, Tensor]
"""Whitened k-space and maps ``(coil, ky, kx)``, mask ``(ky, kx)``."""


class Volume(Protocol):
    """Slices of one scan, read when they are needed."""

    name: str
    path: Path
    slices: int

    @property
    def shape(self) -> tuple[int, ...]:
        """``(coil, ky, kx)``."""

    def full(self, index: int) -> bool:
        """Whether a slice is fully sampled, so that it has a reference; of raw files their
        middle slice is read for that, once."""

    def read(self, index: int) -> Part:
        """One slice."""


class PreparedVolume:
    """A volume that ``snrecon prepare`` wrote; a slice is read without the others.

    Raises:
        InputError: if the file is missing or is not such a volume.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = self.path.name
        kspace, maps = (mapped_array(path, name) for name in ("kspace", "maps"))
        if kspace.ndim != 4 or maps.shape != kspace.shape or kspace.dtype.kind != "c":
            raise InputError(f"{path}: this is not a prepared volume; run snrecon prepare again.")
        self.slices = int(kspace.shape[0])
        self.shape = tuple(int(n) for n in kspace.shape[1:])
        self.mask = torch.from_numpy(np.array(mapped_array(path, "mask"))) != 0
        covariance = torch.from_numpy(np.array(mapped_array(path, "noise_covariance")))
        white = torch.equal(covariance, torch.eye(len(covariance), dtype=covariance.dtype))
        self.noise = None if white else NoiseModel(covariance)

    def full(self, index: int) -> bool:
        return fully_sampled(self.mask[index] if self.mask.ndim == 3 else self.mask)

    def read(self, index: int) -> Part:
        kspace, maps = (torch.from_numpy(np.array(mapped_array(self.path, name)[index]))
                        for name in ("kspace", "maps"))
        if self.noise is not None:
            kspace, maps = self.noise.whiten(kspace), self.noise.whiten(maps)
        return kspace, maps, self.mask[index] if self.mask.ndim == 3 else self.mask


_KEPT: OrderedDict[tuple[str, int, int], Part] = OrderedDict()


def _size(part: Part) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in part)


class RawVolume:
    """A fastMRI file: noise from the background of its middle slice, maps of each slice estimated
    when it is first read. A slice without signal is replaced by the next that has some.

    Raises:
        InputError: if the file is not fastMRI's; when a slice is read, also if it is undersampled,
            which leaves no background to measure the noise in.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = self.path.name
        with opened(path) as file:
            if not has_dataset(file, "kspace"):
                raise InputError(f"{path}: this is not a fastMRI file (a dataset 'kspace'); make "
                                 "other formats ready with snrecon prepare.")
            self.slices = int(file["kspace"].shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        return self._facts[0]

    def full(self, index: int) -> bool:
        return self._facts[1]  # fastMRI samples all slices of a file alike

    @cached_property
    def _facts(self) -> tuple[tuple[int, ...], bool]:
        """Shape, and whether the file is fully sampled: of the middle slice, which has signal."""
        scan = self._scan(self.slices // 2, "identity")
        return tuple(scan.kspace.shape), fully_sampled(scan.sampled)

    @cached_property
    def noise(self) -> NoiseModel:
        """Of the whole file."""
        scan = self._scan(self.slices // 2, None)
        if scan.noise is None:
            why = f", because {scan.noise_unknown}" if scan.noise_unknown else ""
            raise InputError(
                f"{self.path}: the noise of this scan is not known{why}; give its covariance to "
                "snrecon prepare --noise-covariance FILE (or 'identity' if the data are already "
                "whitened), and train on the folder that it makes."
            )
        return scan.noise

    def read(self, index: int) -> Part:
        key = (str(self.path.resolve()), self.path.stat().st_mtime_ns, index)
        found = _KEPT.get(key)
        if found is None:
            found = self._prepared(index)
            _KEPT[key] = found
            while len(_KEPT) > 1 and sum(map(_size, _KEPT.values())) > CACHE_BYTES:
                _KEPT.popitem(last=False)
        return found

    def _prepared(self, index: int) -> Part:
        for step in range(self.slices):
            place = (index + step) % self.slices
            if not self._measured(place):
                continue
            scan = self._scan(place, "identity")
            found = prepare_slice(replace(scan, noise=self.noise))
            if found is not None:
                return found[:3]
        raise InputError(f"{self.path}: no slice shows any signal.")

    def _measured(self, index: int) -> bool:
        """Whether a slice has any sample: nothing can be read from one of zeros."""
        with opened(self.path) as file:
            return bool(np.any(file["kspace"][index]))

    def _scan(self, index: int, noise: str | None) -> Scan:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SnreconWarning)  # noise from the background
            return load(self.path, slice=index, noise_covariance=noise)


def find_scans(entry: str) -> Path | None:
    """The folder or file of an entry under ``[data]`` that names real scans: a folder made by
    ``snrecon prepare``, a folder of ``.h5`` files, or one such file (absolute, relative to here or
    under SNRECON_DATA). None for anything else, such as magnitude images."""
    for path in (Path(entry), data_folder() / entry):
        if path.is_dir() and ((path / INDEX).is_file() or any(path.glob("*.h5"))):
            return path
        if path.is_file() and path.suffix in (".h5", ".hdf5"):
            return path
    return None


def raw_files(path: Path) -> list[Path]:
    """The fastMRI files of a folder, or the one file; none of a folder of prepared volumes."""
    if (path / INDEX).is_file():
        return []
    return sorted(path.glob("*.h5")) if path.is_dir() else [path]


def open_volumes(path: str | Path, split: str = "train") -> list[Volume]:
    """The volumes of ``split`` of a folder made by ``snrecon prepare``, or all fastMRI files of a
    folder (or the one file).

    Raises:
        InputError: if there are none.
    """
    path = Path(path)
    if (path / INDEX).is_file():
        entries = [entry for entry in read_index(path) if entry["split"] == split]
        if not entries:
            raise InputError(f"{path}: none of its volumes is for {split}.")
        return [PreparedVolume(path / entry["file"]) for entry in entries]
    files = raw_files(path)
    if not files:
        raise InputError(f"{path}: this folder holds neither prepared volumes (index.json) nor "
                         "fastMRI files (.h5); prepare other formats with snrecon prepare.")
    return [RawVolume(file) for file in files]
