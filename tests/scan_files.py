"""Small scan files of every format, made with numpy alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np


def image(shape: tuple[int, ...]) -> np.ndarray:
    """A complex object without any symmetry: the value says where each voxel is."""
    index = np.indices(shape).astype(float)
    weights = (1.0, 10.0, 100.0)[-len(shape) :]
    values = sum(w * (1 + i) for w, i in zip(weights, index))
    bright = np.zeros(shape)
    bright[tuple(slice(1, n // 2) for n in shape)] = 1  # one corner, not centred
    return values * bright * np.exp(0.3j * index[-1])


def centred_fft(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Centred orthonormal transform, image to k-space."""
    shifted = np.fft.ifftshift(x, axes=axes)
    return np.fft.fftshift(np.fft.fftn(shifted, axes=axes, norm="ortho"), axes=axes)


def centred_ifft(y: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Inverse of :func:`centred_fft`."""
    shifted = np.fft.ifftshift(y, axes=axes)
    return np.fft.fftshift(np.fft.ifftn(shifted, axes=axes, norm="ortho"), axes=axes)


def coil_maps(coils: int, shape: tuple[int, ...]) -> np.ndarray:
    """Smooth complex weights ``(coil, *shape)``, different for every coil."""
    index = np.indices(shape)
    ramps = [i / n for i, n in zip(index, shape)]
    weight = [0.5 + sum((c + 1 + a) * r for a, r in enumerate(ramps)) for c in range(coils)]
    return np.stack([w * np.exp(1j * c) for c, w in enumerate(weight)])


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """White circular complex noise, ``E|n|^2 = 1``."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2)


def kspace(coils: int = 3, shape: tuple[int, ...] = (12, 10), sd: float = 0.0) -> np.ndarray:
    """Fully sampled complex64 k-space ``(coil, *shape)`` of :func:`image`."""
    axes = tuple(range(1, len(shape) + 1))
    data = centred_fft(coil_maps(coils, shape) * image(shape), axes)
    return (data + sd * noise(data.shape)).astype(np.complex64)


def lines(shape: tuple[int, ...], step: int = 2) -> np.ndarray:
    """Regular mask: every ``step``-th ky line."""
    mask = np.zeros(shape, dtype=bool)
    mask[..., ::step, :] = True
    return mask


HEADER = """<?xml version="1.0" encoding="utf-8"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
 <acquisitionSystemInformation><systemVendor>NONE</systemVendor>
 <systemFieldStrength_T>2.89</systemFieldStrength_T></acquisitionSystemInformation>
 <encoding>
  <encodedSpace><matrixSize><x>{ex}</x><y>{ey}</y><z>1</z></matrixSize>
   <fieldOfView_mm><x>{fx}</x><y>{fy}</y><z>5</z></fieldOfView_mm></encodedSpace>
  <reconSpace><matrixSize><x>{rx}</x><y>{ey}</y><z>1</z></matrixSize>
   <fieldOfView_mm><x>{gx}</x><y>{fy}</y><z>5</z></fieldOfView_mm></reconSpace>
  <trajectory>cartesian</trajectory>
 </encoding>
 <sequenceParameters><TR>500</TR><TE>10</TE><flipAngle_deg>90</flipAngle_deg></sequenceParameters>
</ismrmrdHeader>"""


def header(readout: int, width: int, oversampling: int = 1) -> str:
    """A header with voxels of 1 mm along the readout and 2 mm along the phase encoding."""
    kept = readout // oversampling
    return HEADER.format(ex=readout, ey=width, rx=kept, fx=readout, gx=kept, fy=2 * width)


def write_fastmri(
    path: Path,
    data: np.ndarray,
    *,
    mask: np.ndarray | None = None,
    xml: str | None = None,
    attributes: dict[str, Any] | None = None,
) -> Path:
    """A file as fastMRI writes it: ``data`` (slice, [coil,] height, width)."""
    with h5py.File(path, "w") as file:
        file.create_dataset("kspace", data=data)
        if mask is not None:
            file.create_dataset("mask", data=mask)
        if xml is not None:
            file.create_dataset("ismrmrd_header", data=xml.encode())
        for name, value in (attributes or {}).items():
            file.attrs[name] = value
    return path
