"""Magnitude images as the ground truth of simulated measurements."""

from __future__ import annotations

import math
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from snrecon.errors import InputError
from snrecon.io.limits import reason
from snrecon.io.magnitude import PLANES, may_hold_dicom, read_dicom, read_nifti
from snrecon.physics.fourier import fft, ifft


@dataclass(frozen=True, eq=False)
class Source:
    """Slices of one or several contrasts of the same head, scaled to order 1."""

    slices: Tensor
    """``(slice, contrast, rows, columns)`` real."""
    voxel: float
    """Pixel size, mm."""


def data_folder() -> Path:
    """Where training images are looked for: SNRECON_DATA, or ``../shared/data``."""
    return Path(os.environ.get("SNRECON_DATA", "../shared/data"))


def load_source(entry: str, voxel: float | None = None, first: int = 0) -> Source:
    """Read ``"file.npz:key"`` or ``"file.npz:key+key"``, ``"file.nii.gz"`` or a folder of DICOM
    images; the latter two may end in ``":axial"``, ``":coronal"`` or ``":sagittal"``.

    NIfTI and DICOM know their voxel sizes. Slices are cut across their coarsest axis, or axially
    where voxels are about cubes, and resampled to square pixels where they are not.

    Args:
        entry: File or folder (absolute, relative to here, or under SNRECON_DATA) and arrays
            ``(slice, rows, columns)``.
        voxel: Pixel size, mm; None takes that of the header, or 1 for ``.npz``.
        first: First slice used. Slices that are nearly empty are left out as well.

    Raises:
        InputError: if the file or an array is missing or unfit.
        MissingExtraError: if the library for NIfTI or DICOM is not installed.
    """
    name, _, keys = entry.rpartition(":")
    plane = keys if keys in PLANES else None
    place = _path(name if plane else entry)
    if not (place.exists() or (name and _path(name).exists())):
        missing = Path(name or entry)
        below = "" if missing.is_absolute() else (
            f", neither here nor in {data_folder()}; set SNRECON_DATA to the folder of the images")
        raise InputError(f"{missing}: there is no such file or folder{below}.")
    if place.is_dir() and not may_hold_dicom(place):  # whether or not pydicom is there
        raise InputError(f"{place}: this folder holds no scans or images to train on (prepared "
                         "volumes with index.json, fastMRI's .h5, DICOM); make other scans ready "
                         "with snrecon prepare.")
    if place.is_dir() or place.name.endswith((".nii", ".nii.gz")):
        volume = read_dicom(place) if place.is_dir() else read_nifti(place)
        slices, pixel = volume.slices(plane)
        return _source([_square(slices, pixel)], place, voxel or min(pixel), first)
    if not name or plane:
        raise InputError(f"'{entry}' does not say which array: write file.npz:key.")
    path, volumes = _path(name), []
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for key in keys.split("+"):
                if key not in arrays:
                    raise InputError(f"{path}: there is no array '{key}'; it has "
                                     f"{', '.join(arrays.files)}.")
                values = arrays[key]
                if values.dtype.kind not in "biufc":
                    raise InputError(f"{path}: the array '{key}' does not hold numbers, and "
                                     "images must.")
                volumes.append(np.abs(values).astype(np.float32))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: the images cannot be read ({reason(error)}); give a whole .npz "
                         "file.") from error
    return _source(volumes, path, 1.0 if voxel is None else voxel, first)


def _path(name: str) -> Path:
    return Path(name) if Path(name).exists() else data_folder() / name


def _square(slices: np.ndarray, pixel: tuple[float, float]) -> np.ndarray:
    """``(slice, rows, columns)`` with pixels as small as their smaller side along both axes."""
    finest = min(pixel)
    if max(pixel) < 1.02 * finest:
        return slices
    rows, columns = (round(n * p / finest) for n, p in zip(slices.shape[1:], pixel))
    tensor = torch.from_numpy(np.ascontiguousarray(slices))[:, None]
    finer = functional.interpolate(tensor, size=(rows, columns), mode="bilinear",
                                   align_corners=False)
    return finer[:, 0].numpy()


def _source(volumes: list[np.ndarray], path: Path, voxel: float, first: int) -> Source:
    """Contrasts ``(slice, rows, columns)``, scaled, without their empty slices."""
    if any(v.ndim != 3 or v.shape != volumes[0].shape for v in volumes):
        raise InputError(f"{path}: images must be (slice, rows, columns) of one shape.")
    if not all(np.isfinite(v).all() for v in volumes):
        raise InputError(f"{path}: the images contain NaN or infinite values.")
    if not all(v.size and v.max() > 0 for v in volumes):
        raise InputError(f"{path}: the images are empty.")
    # Soft threshold: the Rician floor of the air is not part of the object.
    scaled = [np.maximum(v / np.percentile(v[v > 0.1 * v.max()], 90) - 0.02, 0) for v in volumes]
    stack = np.stack(scaled, axis=1)[first:]
    filled = (stack.max(axis=1) > 0.1).mean(axis=(1, 2)) > 0.14
    if not filled.any():
        raise InputError(f"{path}: no slice from {first} on shows anything.")
    return Source(torch.from_numpy(stack[filled]), voxel)


def draw_image(source: Source, size: int, generator: torch.Generator) -> Tensor:
    """A random slice as a scanner with a random field of view would see it.

    Random mixture of contrasts, intensity curve, rotation, scale, shear, shift and flips, on a
    grid twice as fine, then cut to ``size`` in k-space: sharp edges ring as they do in
    measurements.

    Returns:
        ``(size, size)`` real, mean 1 over the head.
    """
    index = int(torch.randint(source.slices.shape[0], (), generator=generator))
    contrasts = source.slices[index]
    weights = torch.rand(contrasts.shape[0], generator=generator).pow(2) + 1e-3
    image = (contrasts * (weights / weights.sum())[:, None, None]).sum(dim=0)
    extent = max(image.shape) * source.voxel
    # Hardly finer than the source, which has nothing to show there.
    lowest = min(max(190.0, source.voxel * size * 0.9), 240.0)
    field_of_view = _uniform(generator, lowest, 290.0)
    fine = 2 * size
    ratio = field_of_view / fine / source.voxel
    if ratio > 1.4:
        image = functional.avg_pool2d(image[None, None], 2)[0, 0]
    image = _warp(image, extent, source.voxel, field_of_view, fine, generator)
    return _resolved(_recolour(image, generator), size)


def draw_shapes(size: int, generator: torch.Generator) -> Tensor:
    """A head-sized ellipse with a bright rim and random ellipses inside, each flat.

    Returns:
        ``(size, size)`` real, mean 1 where it is bright.
    """
    fine = 2 * size
    line = torch.linspace(-1, 1, fine)
    y, x = line[:, None], line
    a, b = _uniform(generator, 0.5, 0.9), _uniform(generator, 0.5, 0.9)
    angle = _uniform(generator, 0.0, 3.14)

    def ellipse(cy: float, cx: float, a: float, b: float, turn: float) -> Tensor:
        c, s = math.cos(turn), math.sin(turn)
        u, v = c * (y - cy) + s * (x - cx), c * (x - cx) - s * (y - cy)
        return ((u / a) ** 2 + (v / b) ** 2 < 1).float()

    image = _uniform(generator, 0.3, 2.0) * ellipse(0.0, 0.0, a, b, angle)
    rim = _uniform(generator, 0.86, 0.98)
    head = ellipse(0.0, 0.0, rim * a, rim * b, angle)
    image = image * (1 - head) + head
    for _ in range(int(torch.randint(0, 25, (), generator=generator))):
        cy, cx = _uniform(generator, -0.5, 0.5), _uniform(generator, -0.5, 0.5)
        tall, wide = (0.02 + 0.4 * _uniform(generator) ** 2 for _ in range(2))
        shape = ellipse(cy, cx, tall, wide, _uniform(generator, 0.0, 3.14)) * head
        image = image + shape * _uniform(generator, -0.6, 0.6)
    return _resolved(image.clamp(min=0), size)


def _resolved(image: Tensor, size: int) -> Tensor:
    """Cut to ``size`` in k-space, scaled to mean 1 where it is bright."""
    spectrum = fft(image.to(torch.complex64), (-2, -1))
    low = image.shape[0] // 2 - size // 2  # from centre to centre, whatever is odd
    image = ifft(spectrum[low : low + size, low : low + size], (-2, -1)).real
    inside = image.abs() > 0.15 * image.abs().max()
    return image / image[inside].abs().mean()


def _warp(
    image: Tensor, extent: float, voxel: float, field_of_view: float, size: int,
    generator: torch.Generator,
) -> Tensor:
    angle = torch.tensor(_uniform(generator, -0.35, 0.35) + (
        torch.pi / 2 * int(torch.randint(4, (), generator=generator))))
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]),
                        torch.stack([angle.sin(), angle.cos()])])
    flip = 1.0 if _uniform(generator) < 0.5 else -1.0
    shear = torch.tensor([[flip * _uniform(generator, 0.88, 1.12), _uniform(generator, -0.1, 0.1)],
                          [_uniform(generator, -0.1, 0.1), _uniform(generator, 0.88, 1.12)]])
    rows, columns = image.shape
    step = extent / max(rows, columns)  # of the (perhaps averaged) source, mm
    spans = torch.tensor([columns * step, rows * step])
    theta = (turn @ shear) * field_of_view / spans[:, None]
    shift = torch.tensor([[_uniform(generator, -0.12, 0.12)], [_uniform(generator, -0.12, 0.12)]])
    grid = functional.affine_grid(torch.cat([theta, shift], 1)[None], [1, 1, size, size],
                                  align_corners=False)
    return functional.grid_sample(image[None, None], grid, mode="bilinear",
                                  align_corners=False)[0, 0]


def _recolour(image: Tensor, generator: torch.Generator) -> Tensor:
    """A random smooth intensity curve through zero: gamma (often one that flattens tissue, as
    proton density does), and often a fold of the middle greys."""
    value = image / image.max().clamp(min=1e-6)
    flat = _uniform(generator) < 0.35
    curve = value.pow(_uniform(generator, 0.15, 0.6) if flat else _uniform(generator, 0.6, 1.6))
    curve = curve * (value / 0.08).clamp(max=1)  # the noise in the air must not be lifted
    if _uniform(generator) < 0.6:
        knots = torch.rand(6, generator=generator) + 0.1
        knots[0] = 0.0
        place = (value * 5).clamp(0, 4.999)
        low = place.long()
        folded = knots[low] + (place - low) * (knots[low + 1] - knots[low])
        share = _uniform(generator, 0.2, 1.0)
        curve = (1 - share) * curve + share * folded
    return curve


def _uniform(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))
