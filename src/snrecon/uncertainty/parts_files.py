"""Result files of decompositions: written like noise maps, under names of their own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from snrecon.data import Geometry
from snrecon.errors import InputError
from snrecon.io.limits import regular_file
from snrecon.io.record import Record, from_image, plain
from snrecon.io.save import ending_of, write_record
from snrecon.uncertainty.decompose import Decomposition, Part
from snrecon.uncertainty.files import finite, read_file
from snrecon.uncertainty.rounds import PARTS

KIND = "decomposition"
CONVENTION = (
    "Parts of a stochastic reconstruction's variance over repeated scans, in units squared: total "
    "= thermal (by which the mean of its draws varies from scan to scan) + posterior (by which "
    "draws vary at the data of one scan). fixed_seed: the variance at one fixed seed, no part of "
    "that sum. NAME: of the component along the phase of the mean image; NAME_complex: of both "
    "components; NAME_error, NAME_complex_error: their standard errors. Estimates are unbiased, so "
    "that single voxels may lie below 0. None of this is the error against the truth. image: mean "
    "of all samples."
)
QUANTITIES = {
    "": "variance", "_error": "variance_error", "_complex": "variance_complex",
    "_complex_error": "variance_complex_error",
}
"""Endings of the names of maps, and what they are of a part."""
MAPS = {
    f"{part}{ending}": f"{quantity.replace('_', ' ')} of the {part.replace('_', ' ')} part"
    for part in PARTS for ending, quantity in QUANTITIES.items()
}
_TEXTS = ("kind", "estimator", "method", "units", "details", "geometry", "regions")
_NUMBERS = ("rounds", "seeds", "seed", "acceleration", "real_image")


def save_parts(result: Decomposition, path: str | Path) -> None:
    """Write the mean, the maps of all parts and metadata.

    - ``.h5`` (``.hdf5``): datasets ``image`` (the mean) complex64 and float32 maps ``thermal``,
      ``posterior``, ``total``, ``fixed_seed``, each also with ``_error``, ``_complex`` and
      ``_complex_error``; attributes ``kind``, ``estimator``, ``rounds``, ``seeds`` (a round),
      ``seed``, ``regions`` (JSON), ``convention``, ``method``, ``units``, ``acceleration``,
      ``geometry``, ``details`` (JSON), ``snrecon_version``;
    - ``.npz``: the same names;
    - ``NAME.nii.gz`` (``.nii``, ``.cfl``): ``NAME_image.nii.gz``, ``NAME_thermal.nii.gz``, ...,
      with JSON sidecars.

    Raises:
        InputError: if the ending is unknown or the folder cannot be written to.
        MissingExtraError: for NIfTI without nibabel.
        ValueError: if a map contains NaN or infinite values; nothing is written then.
    """
    write_record(_record(result), Path(path), ending_of(path))


def _record(result: Decomposition) -> Record:
    regions = {part: dict(getattr(result, part).regions) for part in PARTS}
    facts: dict[str, Any] = {
        "kind": KIND,
        "estimator": result.estimator,
        "rounds": result.rounds,
        "seeds": result.seeds,
        "seed": result.seed,
        "regions": json.dumps(regions),
        "convention": CONVENTION,
        "method": result.method,
        "units": result.units,
        "acceleration": result.acceleration,
        "details": json.dumps(plain(dict(result.details))),
    }
    base = from_image(result.mean, facts, result.geometry)
    arrays, units = dict(base.arrays), dict(base.units)
    for part in PARTS:
        for ending, quantity in QUANTITIES.items():
            name = f"{part}{ending}"
            arrays[name] = finite(getattr(getattr(result, part), quantity), name, np.float32)
            units[name] = f"({result.units})^2"
    return replace(base, arrays=arrays, units=units, descriptions=MAPS)


def load_parts(path: str | Path) -> Decomposition:
    """Read a decomposition written as HDF5 or ``.npz``, by content, as complex64 and float32.

    Raises:
        InputError: if the file is missing, damaged, or holds no decomposition.
    """
    path = regular_file(path)
    arrays, values = read_file(path, ("image", *MAPS), _TEXTS, _NUMBERS)
    missing = [name for name in ("image", *MAPS) if name not in arrays]
    if missing or values.get("kind") != KIND:
        raise InputError(f"{path}: this is no result of a decomposition.")
    for name, array in arrays.items():
        if array.shape != arrays["image"].shape or not np.isfinite(array).all():
            raise InputError(f"{path}: '{name}' is damaged.")
    try:
        tensors = {name: torch.from_numpy(np.array(a, order="C")) for name, a in arrays.items()}
        regions = json.loads(values["regions"])
        parts: dict[str, Any] = {
            part: Part(
                **{field: tensors[f"{part}{ending}"] for ending, field in QUANTITIES.items()},
                regions={name: _row(row) for name, row in regions[part].items()},
            )
            for part in PARTS
        }
        mean, geometry = tensors["image"], json.loads(values.get("geometry") or "null")
        fields: dict[str, Any] = {
            "mean": mean.real.contiguous() if values.get("real_image") else mean,
            "geometry": geometry and Geometry(**{k: tuple(v) for k, v in geometry.items()}),
            "details": json.loads(values["details"]),
            "acceleration": float(values["acceleration"]),
            **{name: int(values[name]) for name in ("rounds", "seeds", "seed")},
            **{name: values[name] for name in ("estimator", "method", "units")},
        }
        return Decomposition(**fields, **parts)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: the attributes are damaged ({error}).") from error


def _row(values: list[float]) -> tuple[float, float, float, float]:
    """Variance, its error, complex variance, its error."""
    variance, error, complex_, complex_error = map(float, values)
    return variance, error, complex_, complex_error
