"""The ISMRMRD header inside fastMRI files, read with the standard library alone.

The reader of ISMRMRD files proper uses the schema of that format's own, optional, library.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from snrecon.errors import InputError

_HEADER_CHARS = 2**22


@dataclass(frozen=True)
class Space:
    """Matrix and field of view along (x = readout, y, z); None where the header is silent."""

    matrix: tuple[int, int, int] | None = None
    fov: tuple[float, float, float] | None = None
    """Metres."""


@dataclass(frozen=True)
class Header:
    """Facts of an ISMRMRD header, SI units."""

    encoded: Space = Space()
    recon: Space = Space()
    facts: dict[str, Any] = field(default_factory=dict)
    """Field strength, repetition and echo times, flip angle (SI units) and vendor, where stated;
    nothing about the patient or the place."""


def parse_header(text: str, name: str) -> Header:
    """Read an ISMRMRD XML header.

    Elements are found by their local name, whatever the namespace. Documents that define entities
    are refused, so nothing is expanded or fetched.

    Raises:
        InputError: if the text is not XML, or defines entities.
    """
    if len(text) > _HEADER_CHARS:
        raise InputError(f"{name}: the ISMRMRD header is too long.")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError(f"{name}: the ISMRMRD header defines entities, which is not allowed.")
    try:
        # Bytes after the document's end are padding of fixed-length strings.
        root = ElementTree.fromstring(text.strip().rstrip("\x00").encode("utf-8"))
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        raise InputError(f"{name}: the ISMRMRD header is not valid XML.") from error
    encoding = _find(root, "encoding")
    facts: dict[str, Any] = {}
    for key, path, scale in (
        ("field_strength", ("acquisitionSystemInformation", "systemFieldStrength_T"), 1.0),
        ("repetition_time", ("sequenceParameters", "TR"), 1e-3),
        ("echo_time", ("sequenceParameters", "TE"), 1e-3),
        ("flip_angle", ("sequenceParameters", "flipAngle_deg"), math.pi / 180),
    ):
        value = _number(_find(root, *path))
        if value is not None:
            facts[key] = value * scale
    for key, path in (
        ("vendor", ("acquisitionSystemInformation", "systemVendor")),
        ("trajectory", ("encoding", "trajectory")),
    ):
        element = _find(root, *path)
        if element is not None and element.text:
            facts[key] = element.text.strip()[:200]
    return Header(
        encoded=_space(_find(encoding, "encodedSpace")),
        recon=_space(_find(encoding, "reconSpace")),
        facts=facts,
    )


def oversampling_target(header: Header, samples: int) -> int | None:
    """Readout points that remain when oversampling is removed, or None if there is none.

    Read from the fields of view, or, where these are not stated, from the matrix sizes.
    """
    encoded, recon = header.encoded, header.recon
    if encoded.fov and recon.fov:
        ratio = recon.fov[0] / encoded.fov[0]
    elif encoded.matrix and recon.matrix:
        ratio = recon.matrix[0] / encoded.matrix[0]
    else:
        return None
    target = round(samples * ratio)
    return target if 1 <= target < samples else None


def _local(element: ElementTree.Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _find(element: ElementTree.Element | None, *path: str) -> ElementTree.Element | None:
    for name in path:
        if element is None:
            return None
        element = next((child for child in element if _local(child) == name), None)
    return element


def _number(element: ElementTree.Element | None) -> float | None:
    try:
        value = float((element.text or "") if element is not None else "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _whole(element: ElementTree.Element | None) -> int | None:
    value = _number(element)
    return int(value) if value is not None and 0 <= value < 2**31 else None


def _space(element: ElementTree.Element | None) -> Space:
    matrix = [_whole(_find(element, "matrixSize", axis)) for axis in "xyz"]
    fov = [_number(_find(element, "fieldOfView_mm", axis)) for axis in "xyz"]
    return Space(
        matrix=_positive(matrix),
        fov=_positive([None if v is None else v * 1e-3 for v in fov]),
    )


def _positive(values: list[Any]) -> tuple[Any, ...] | None:
    return tuple(values) if all(v is not None and v > 0 for v in values) else None
