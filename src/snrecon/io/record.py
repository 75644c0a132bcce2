"""What a result file holds, whatever its format: named arrays and plain attributes."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snrecon.data import Geometry, NoiseMap
from snrecon.errors import InputError

MAPS = ("sigma", "sigma_complex", "sigma_phase", "snr", "g_factor", "standard_error")
"""Real maps in the order in which they are written; those that do not exist are left out."""
IMAGES = ("image", "dithered")
"""Complex arrays; their magnitude is what NIfTI gets."""
_RATIOS = ("sigma_phase", "snr", "g_factor")


@dataclass(frozen=True, eq=False)
class Record:
    """Arrays and attributes of a result, checked and ready to be written."""

    arrays: dict[str, np.ndarray]
    """``image`` and ``dithered`` complex64 and real float32 maps of the same shape; ``covariance``
    ``(3, ...)``."""
    attributes: dict[str, Any]
    """Text, numbers, booleans and tuples of text."""
    geometry: Geometry | None = None
    layout: str = "grid"
    units: dict[str, str] = field(default_factory=dict)
    """Unit of each array."""
    descriptions: dict[str, str] = field(default_factory=dict)
    """What arrays are, in words, where they are not those of a noise map."""


def from_noise_map(result: NoiseMap) -> Record:
    """The record of a noise map.

    Where the image is exactly zero, undefined values become 0; ratios are 0 where there is no
    noise.

    Raises:
        ValueError: if NaN or infinite values remain, or shapes disagree: the computation failed.
    """
    image = _numpy(result.image, np.complex64)
    zero = image == 0
    arrays = {"image": _checked(image, zero, "image")}
    for name in MAPS:
        tensor = getattr(result, name)
        if tensor is None:
            continue
        if tensor.shape != result.image.shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, the image {tuple(result.image.shape)}."
            )
        void = zero | (arrays["sigma"] == 0) if name in _RATIOS else zero
        arrays[name] = _checked(_numpy(tensor, np.float32), void, name)
    if result.dithered is not None:
        arrays["dithered"] = _checked(_numpy(result.dithered, np.complex64), zero, "dithered")
        if arrays["dithered"].shape != image.shape:
            raise ValueError("the dithered image does not have the shape of the image.")
    if result.covariance is not None:
        # Squares of small numbers leave float32 early, so the covariance keeps its precision.
        kept = np.float64 if result.covariance.dtype == torch.float64 else np.float32
        arrays["covariance"] = _checked(_numpy(result.covariance, kept), zero, "covariance")
    attributes = {
        "estimator": result.estimator,
        "passes": _finite(result.passes, "passes"),
        "convention": result.convention,
        "frozen": tuple(str(name) for name in result.frozen),
        "method": result.method,
        "units": result.units,
        "acceleration": _finite(result.acceleration, "acceleration"),
        "details": json.dumps(plain(result.details)),
        **_common(result.image, result.geometry, result.layout),
    }
    if result.seed is not None:
        attributes["seed"] = int(result.seed)
    return Record(arrays, attributes, result.geometry, result.layout, _units(arrays, result.units))


def from_image(
    image: Tensor,
    attributes: dict[str, Any],
    geometry: Geometry | None = None,
    layout: str = "grid",
) -> Record:
    """The record of an image without noise maps.

    Raises:
        ValueError: if the image contains NaN or infinite values.
    """
    values = _numpy(image, np.complex64)
    arrays = {"image": _checked(values, np.zeros(values.shape, bool), "image")}
    unit = str(attributes.get("units", "arbitrary"))
    return Record(
        arrays,
        {**attributes, **_common(image, geometry, layout)},
        geometry,
        layout,
        _units(arrays, unit),
    )


def to_noise_map(arrays: dict[str, np.ndarray], attributes: dict[str, Any], name: str) -> NoiseMap:
    """The noise map that was written.

    Args:
        arrays: Arrays of the file.
        attributes: Attributes of the file; what is absent gets its default.
        name: File, for messages.

    Raises:
        InputError: if something is missing or does not fit together.
    """
    for needed in ("image", "sigma", "sigma_complex", "snr"):
        if needed not in arrays:
            raise InputError(
                f"{name}: this is not a result with a noise map: '{needed}' is missing."
            )
    image = arrays["image"]
    if image.dtype.kind != "c" or image.ndim not in (2, 3) or image.size == 0:
        raise InputError(f"{name}: the image is {image.dtype} of shape {image.shape}.")
    tensors: dict[str, Tensor] = {}
    for key in ("image", "dithered", *MAPS, "covariance"):
        if key not in arrays:
            continue
        array = arrays[key]
        shape = (3, *image.shape) if key == "covariance" else image.shape
        kinds = "c" if key in IMAGES else "f"
        if array.shape != shape or array.dtype.kind != kinds:
            raise InputError(
                f"{name}: '{key}' is {array.dtype} of shape {array.shape}, but {shape} is needed."
            )
        if not np.isfinite(array).all():
            raise InputError(f"{name}: '{key}' contains NaN or infinite values.")
        kept: Any = np.complex64 if key in IMAGES else np.float32
        if key == "covariance" and array.dtype.itemsize == 8:
            kept = np.float64
        tensors[key] = torch.from_numpy(np.array(array, dtype=kept, order="C"))
    if bool(attributes.get("real_image", False)):
        for key in set(IMAGES) & set(tensors):
            tensors[key] = tensors[key].real.contiguous()
    reader = _Attributes(attributes, name)
    defaults = {f: getattr(NoiseMap, f) for f in ("convention", "units")}
    layout = reader.text("layout", "grid")
    if layout not in ("grid", "stack"):
        raise InputError(f"{name}: the layout must be 'grid' or 'stack', not '{layout[:40]}'.")
    return NoiseMap(
        **tensors,
        estimator=reader.text("estimator", ""),
        passes=reader.number("passes", 0.0),
        seed=reader.whole("seed"),
        convention=reader.text("convention", str(defaults["convention"])),
        frozen=reader.texts("frozen"),
        method=reader.text("method", ""),
        units=reader.text("units", str(defaults["units"])),
        acceleration=reader.number("acceleration", 1.0),
        geometry=reader.geometry(),
        layout=layout,
        details=reader.mapping("details") or {},
    )


def plain(value: Any) -> Any:
    """A value as JSON can hold it: no NaN, tensors as lists, anything else as its text."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if isinstance(value, Tensor):
        value = value.detach().cpu().resolve_conj().numpy()
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)


def _common(image: Tensor, geometry: Geometry | None, layout: str) -> dict[str, Any]:
    try:
        release = version("snrecon")
    except PackageNotFoundError:  # run from a source tree
        release = "unknown"
    found: dict[str, Any] = {
        "snrecon_version": release,
        "layout": layout,
        "real_image": not image.is_complex(),
    }
    if geometry is not None:
        found["geometry"] = json.dumps(asdict(geometry))
    return found


def _units(arrays: dict[str, np.ndarray], unit: str) -> dict[str, str]:
    special = {"sigma_phase": "rad", "snr": "1", "g_factor": "1", "covariance": f"({unit})^2"}
    return {name: special.get(name, unit) for name in arrays}


def _numpy(tensor: Tensor, dtype: Any) -> np.ndarray:
    values = tensor.detach().cpu().resolve_conj().resolve_neg().numpy()
    with np.errstate(over="ignore"):  # overflow becomes infinite and is refused
        return np.ascontiguousarray(values.astype(dtype))


def _checked(array: np.ndarray, void: np.ndarray, name: str) -> np.ndarray:
    bad = ~np.isfinite(array)
    if not bad.any():
        return array
    if (bad & ~void).any():
        raise ValueError(
            f"{name} contains {int((bad & ~void).sum())} NaN or infinite values: the computation "
            "failed, and nothing is written."
        )
    return np.where(bad, array.dtype.type(0), array)


def _finite(value: float, name: str) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}: the computation failed, and nothing is written.")
    return float(value)


@dataclass(frozen=True)
class _Attributes:
    """Typed access to the attributes of a file that may be damaged."""

    values: dict[str, Any]
    name: str

    def _wrong(self, key: str) -> InputError:
        return InputError(f"{self.name}: the attribute '{key}' is damaged.")

    def text(self, key: str, default: str) -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key)
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.values.get(key, [])
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise self._wrong(key)
        return tuple(value)

    def number(self, key: str, default: float) -> float:
        value = self.values.get(key, default)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise self._wrong(key)
        return float(value)

    def whole(self, key: str) -> int | None:
        value = self.values.get(key)
        if value is not None and not isinstance(value, int):
            raise self._wrong(key)
        return value

    def mapping(self, key: str) -> dict[str, Any] | None:
        if key not in self.values:
            return None
        try:
            value = json.loads(self.text(key, ""))
        except (ValueError, RecursionError) as error:
            raise self._wrong(key) from error
        if not isinstance(value, dict):
            raise self._wrong(key)
        return value

    def geometry(self) -> Geometry | None:
        value = self.mapping("geometry")
        if value is None:
            return None
        try:
            vectors = {str(k): tuple(float(x) for x in v) for k, v in value.items()}
            if not all(len(v) == 3 and all(map(math.isfinite, v)) for v in vectors.values()):
                raise ValueError("a vector has three finite components")
            return Geometry(**vectors)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError) as error:
            raise self._wrong("geometry") from error
