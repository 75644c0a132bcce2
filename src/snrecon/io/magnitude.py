"""Magnitude volumes with their voxel sizes: NIfTI files and folders of DICOM images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from snrecon.errors import InputError, MissingExtraError
from snrecon.io.limits import reason

PLANES = ("sagittal", "coronal", "axial")
"""Normal to the patient's x, y and z axis."""


@dataclass(frozen=True, eq=False)
class Magnitude:
    """A volume of real numbers in the patient's space."""

    values: np.ndarray
    """Three axes, float32, not negative."""
    axes: np.ndarray
    """``(3, 3)``: column ``i`` is the step of axis ``i``, RAS (or LPS: signs are not used), mm."""
    source: str

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along each axis, mm."""
        x, y, z = np.linalg.norm(self.axes, axis=0).tolist()
        return x, y, z

    def slices(self, plane: str | None = None) -> tuple[np.ndarray, tuple[float, float]]:
        """The volume as ``(slice, rows, columns)``, and the pixel size of the slices in mm.

        Args:
            plane: ``axial``, ``coronal`` or ``sagittal``: the axis nearest to that normal counts
                the slices. None takes the axis with the largest voxel size, and axial slices
                where the voxels are about cubes.
        """
        spacing = self.spacing
        if plane is None and max(spacing) > 1.2 * sorted(spacing)[1]:
            axis = int(np.argmax(spacing))
        else:
            row = PLANES.index(plane or "axial")
            axis = int(np.argmax(np.abs(self.axes[row]) / np.array(spacing)))
        rest = [spacing[i] for i in range(3) if i != axis]
        return np.moveaxis(self.values, axis, 0), (rest[0], rest[1])


def read_nifti(path: str | Path) -> Magnitude:
    """A NIfTI volume, scaled as its header says; negative values, which magnitudes do not have
    (interpolation makes them), become 0.

    Raises:
        InputError: if the file cannot be read or is not one volume.
        MissingExtraError: if nibabel is not installed.
    """
    try:
        import nibabel
    except ImportError as error:
        raise MissingExtraError("Reading NIfTI", "nifti") from error
    try:
        image: Any = nibabel.load(str(path))
        values: np.ndarray = np.asarray(image.get_fdata(dtype=np.float32))
        affine = np.asarray(image.affine, dtype=float)
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file.") from error
    except Exception as error:  # nibabel has no common class of errors
        raise InputError(f"{path}: this NIfTI file cannot be read ({reason(error)}).") from error
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    return _checked(values, affine[:3, :3], str(path))


def may_hold_dicom(folder: str | Path) -> bool:
    """Whether a file of a folder is marked as DICOM, or cannot be opened; needs no library."""
    for path in Path(folder).iterdir():
        try:
            if path.is_file():
                with path.open("rb") as stream:
                    if stream.read(132)[128:] == b"DICM":
                        return True
        except OSError:
            return True
    return False


def read_dicom(folder: str | Path) -> Magnitude:
    """The one series of DICOM images in a folder, scaled as they say and sorted by position.

    Files that are not DICOM images are passed over. Multi-frame images are understood.

    Raises:
        InputError: if there are no images, several series, or slices that do not fit together.
        MissingExtraError: if pydicom is not installed.
    """
    try:
        pydicom = import_module("pydicom")
        invalid = import_module("pydicom.errors").InvalidDicomError
    except ImportError as error:
        raise MissingExtraError("Reading DICOM", "dicom") from error
    found: dict[str, list[_Frame]] = {}
    names: dict[str, str] = {}
    for path in sorted(p for p in Path(folder).iterdir() if p.is_file()):
        try:
            data = pydicom.dcmread(path)
            if not hasattr(data, "PixelData"):
                continue  # a DICOMDIR or a report
            frames = _frames(data)
        except invalid:
            continue
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except Exception as error:  # a damaged file can fail anywhere in the library
            raise InputError(
                f"{path}: this DICOM file cannot be read ({reason(error)})."
            ) from error
        series = str(getattr(data, "SeriesInstanceUID", ""))
        found.setdefault(series, []).extend(frames)
        names[series] = str(getattr(data, "SeriesDescription", "") or series)
    if not found:
        raise InputError(f"{folder}: this folder holds no DICOM images.")
    if len(found) > 1:
        shown = ", ".join(sorted(names.values())[:6])
        raise InputError(f"{folder}: this folder holds {len(found)} series ({shown}); give each a "
                         "folder of its own.")
    return _stacked(next(iter(found.values())), str(folder))


@dataclass(frozen=True, eq=False)
class _Frame:
    values: np.ndarray
    """``(rows, columns)``."""
    along_row: np.ndarray
    """Unit vector of increasing column, LPS."""
    along_column: np.ndarray
    """Unit vector of increasing row, LPS."""
    pixel: tuple[float, float]
    """Distance of rows and of columns, mm."""
    position: np.ndarray
    """Of the first pixel, LPS, mm."""


def _frames(data: Any) -> list[_Frame]:
    pixels = np.asarray(data.pixel_array)
    if int(getattr(data, "SamplesPerPixel", 1)) != 1:
        raise InputError("this is a colour image, not a magnitude.")
    several = pixels.ndim == 3
    frames = []
    for index, values in enumerate(pixels if several else pixels[None]):
        parts = [data]
        if several or hasattr(data, "SharedFunctionalGroupsSequence"):
            for group, place in (("PerFrameFunctionalGroupsSequence", index),
                                 ("SharedFunctionalGroupsSequence", 0)):
                parts += list(getattr(data, group, ()))[place : place + 1]
        direction = np.array(_value(parts, "PlaneOrientationSequence", "ImageOrientationPatient"),
                             dtype=float)
        spacing = _value(parts, "PixelMeasuresSequence", "PixelSpacing")
        scale = "PixelValueTransformationSequence"
        slope = float(_value(parts, scale, "RescaleSlope", 1))
        intercept = float(_value(parts, scale, "RescaleIntercept", 0))
        frames.append(_Frame(
            slope * values.astype(np.float32) + intercept, direction[:3], direction[3:],
            (float(spacing[0]), float(spacing[1])),
            np.array(_value(parts, "PlanePositionSequence", "ImagePositionPatient"), dtype=float),
        ))
    return frames


def _value(parts: Sequence[Any], group: str, name: str, default: Any = None) -> Any:
    """An attribute of the image itself or of one of its functional groups."""
    for part in parts:
        inner = list(getattr(part, group, ()))
        for holder in (part, *inner[:1]):
            if getattr(holder, name, None) is not None:
                return getattr(holder, name)
    if default is None:
        raise InputError(f"the DICOM attribute {name} is missing.")
    return default


def _stacked(frames: list[_Frame], name: str) -> Magnitude:
    first = frames[0]
    same = all(f.values.shape == first.values.shape and np.allclose(f.pixel, first.pixel)
               and np.allclose(f.along_row, first.along_row, atol=1e-3)
               and np.allclose(f.along_column, first.along_column, atol=1e-3) for f in frames)
    if not same:
        raise InputError(f"{name}: the images differ in matrix, pixel size or orientation.")
    normal = np.cross(first.along_row, first.along_column)
    places = np.array([float(f.position @ normal) for f in frames])
    order = np.argsort(places)
    steps = np.diff(places[order])
    if len(frames) > 1 and steps.min() < 1e-3:
        raise InputError(f"{name}: several images lie at one place (echoes or repetitions); keep "
                         "one image for each slice.")
    step = float(np.median(steps)) if len(frames) > 1 else max(first.pixel)
    axes = np.stack([normal * step, first.along_column * first.pixel[0],
                     first.along_row * first.pixel[1]], axis=1)
    return _checked(np.stack([frames[i].values for i in order]), axes, name)


def _checked(values: np.ndarray, axes: np.ndarray, name: str) -> Magnitude:
    if values.ndim != 3 or 0 in values.shape:
        raise InputError(f"{name}: the images have shape {values.shape}, but one volume of three "
                         "axes is needed.")
    if not np.isfinite(values).all():
        raise InputError(f"{name}: the images contain NaN or infinite values.")
    spacing = np.linalg.norm(axes, axis=0)
    if not (np.isfinite(spacing).all() and spacing.min() > 0):
        raise InputError(f"{name}: the header states no usable voxel size.")
    return Magnitude(np.maximum(values, 0).astype(np.float32), axes, name)
