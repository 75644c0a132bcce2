"""NIfTI output: one float32 volume per map, each with a JSON sidecar."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from snrecon.errors import MissingExtraError
from snrecon.io.record import IMAGES, Record
from snrecon.io.staging import Staging

_DESCRIPTIONS = {
    "image": "magnitude of the image",
    "dithered": "magnitude of the image with noise added for display; see details",
    "sigma": "standard deviation of the magnitude image to first order",
    "sigma_complex": "sqrt(E|dx|^2), standard deviation of the complex image",
    "sigma_phase": "standard deviation of the phase image",
    "snr": "magnitude over sigma",
    "g_factor": "noise amplification beyond sqrt(R) against optimal fully sampled SENSE",
    "standard_error": "absolute standard error of sigma",
}


def write_nifti(record: Record, base: Path, ending: str, staging: Staging) -> None:
    """Write ``BASE_image.nii.gz`` (magnitude), ``BASE_sigma.nii.gz``, ... with ``.json`` beside.

    Axes are ``(x, y, z)`` = (readout, phase encoding, slice or kz): the reverse of the arrays in
    memory. The affine comes from the geometry, in RAS millimetres; without one it is the identity,
    voxels of 1 mm, and the sidecar says so. The 2x2 covariance is not written.

    Raises:
        MissingExtraError: if nibabel is not installed.
    """
    try:
        import nibabel
    except ImportError as error:
        raise MissingExtraError("Writing NIfTI", "nifti") from error
    shape = record.arrays["image"].shape
    known = record.geometry is not None
    placed = record.geometry is not None and record.geometry.placed
    affine = record.geometry.affine(shape, record.layout) if record.geometry else np.eye(4)
    for name, array in record.arrays.items():
        description = record.descriptions.get(name, _DESCRIPTIONS.get(name))
        if description is None:
            continue
        values = np.abs(array) if name in IMAGES else array
        volume = values.astype(np.float32).transpose(tuple(range(values.ndim))[::-1])
        image = nibabel.Nifti1Image(volume, affine)
        # Code 1: scanner coordinates. Code 2: some coordinates, where the scan says nothing.
        image.set_sform(affine, code=1 if placed else 2)
        image.set_qform(affine, code=1 if placed else 2)
        image.header.set_xyzt_units("mm")
        image.header["descrip"] = f"{name} [{record.units[name]}]".encode()[:79]
        nibabel.save(image, staging.path(base.with_name(f"{base.name}_{name}{ending}")))
        sidecar: dict[str, Any] = {
            "quantity": name,
            "description": description,
            "unit": record.units[name],
            "axes": "x = readout, y = phase encoding, z = slice or second phase encoding",
            "affine": "RAS, millimetres, from the scan's geometry"
            if placed
            else "voxel sizes only: the scan does not say where in the scanner they are"
            if known
            else "identity: the scan states no geometry, so voxels of 1 mm are assumed",
            **sidecar_attributes(record),
        }
        staging.path(base.with_name(f"{base.name}_{name}.json")).write_text(
            json.dumps(sidecar, indent=2) + "\n", encoding="utf-8"
        )


def sidecar_attributes(record: Record) -> dict[str, Any]:
    """The attributes with their nested parts as JSON objects instead of text."""
    return {
        key: json.loads(value) if key in ("details", "geometry") else value
        for key, value in record.attributes.items()
    }
