"""The XML header of an ISMRMRD file, reduced to what a reconstruction needs."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

from snrecon.errors import InputError, MissingExtraError
from snrecon.io.limits import reason


@dataclass(frozen=True)
class Space:
    """Matrix and field of view of one space, along (x = readout, y, z)."""

    matrix: tuple[int, int, int]
    """Number of points, each at least 1."""
    field_of_view: tuple[float, float, float]
    """Metres; 0 where the header does not state a positive number."""


@dataclass(frozen=True)
class EncodingSpace:
    """One entry ``encoding`` of the header."""

    encoded: Space
    """What was acquired, with readout oversampling."""
    recon: Space
    """What the image should cover."""
    centre: tuple[int | None, int | None]
    """Encode index of the k-space centre along (y, z); None if the header does not say."""
    trajectory: str
    """``cartesian``, ``epi``, ``radial``, ..."""
    acceleration: tuple[int, int] | None = None
    """Nominal acceleration along (y, z)."""
    calibration_mode: str | None = None
    """``embedded``, ``interleaved``, ``separate``, ``external``, ``other``."""


@dataclass(frozen=True)
class Header:
    """The header of a file."""

    encodings: tuple[EncodingSpace, ...]
    """Encoding spaces, referred to by number from the readouts."""
    noise_bandwidth: float | None = None
    """``relativeReceiverNoiseBandwidth``: equivalent noise bandwidth of the noise scan over its
    nominal bandwidth."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Technical facts for the user, units in the names; nothing about the patient or the place."""


def library() -> ModuleType:
    """The optional library ``ismrmrd``.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        import ismrmrd
        import ismrmrd.xsd
    except ImportError as error:
        raise MissingExtraError("Reading ISMRMRD", "mrd") from error
    return ismrmrd


def parse_header(xml: str, name: str) -> Header:
    """Read the XML header with the schema of the ISMRMRD library.

    Args:
        xml: The document.
        name: File, for messages.

    Raises:
        InputError: if it is not an ISMRMRD header or its encoding makes no sense.
        MissingExtraError: if the library is absent.
    """
    if "<!DOCTYPE" in xml or "<!ENTITY" in xml:
        # A document type could read other files or expand without end; no ISMRMRD header has one.
        raise InputError(f"{name}: the XML header defines entities, which ISMRMRD does not allow.")
    schema = library().xsd
    try:
        with warnings.catch_warnings():
            # A value of the wrong type stays text with a warning: what is used is checked below,
            # what is not used (dates, names) may be wrong.
            warnings.simplefilter("ignore")
            text = xml.encode("utf-8", errors="replace")
            document = _schema_parser().from_bytes(text, schema.ismrmrdHeader)
    except Exception as error:  # the schema parser raises errors of many kinds
        raise InputError(
            f"{name}: the XML header is not a valid ISMRMRD header ({reason(error)})."
        ) from error
    encodings = tuple(
        _encoding(e, f"{name}: encoding {i}") for i, e in enumerate(document.encoding)
    )
    if not encodings:
        raise InputError(f"{name}: the XML header describes no encoding.")
    system = document.acquisitionSystemInformation
    bandwidth = None if system is None else system.relativeReceiverNoiseBandwidth
    if bandwidth is not None and not (_is_number(bandwidth) and 0 < bandwidth < math.inf):
        raise InputError(
            f"{name}: relativeReceiverNoiseBandwidth in the header must be positive, not "
            f"{bandwidth}."
        )
    return Header(encodings, bandwidth, _facts(document))


@cache
def _schema_parser() -> Any:
    """Parser of the library's schema that skips elements of newer versions of the format.

    Kept, because it looks at every class of the schema once, which takes longer than to parse.
    """
    from xsdata.formats.dataclass.context import XmlContext
    from xsdata.formats.dataclass.parsers import XmlParser
    from xsdata.formats.dataclass.parsers.config import ParserConfig

    config = ParserConfig(fail_on_unknown_properties=False)
    return XmlParser(config=config, context=XmlContext())


def _encoding(entry: Any, name: str) -> EncodingSpace:
    limits = entry.encodingLimits
    trajectory = entry.trajectory
    parallel = entry.parallelImaging
    acceleration, mode = None, None
    if parallel is not None:
        factors = parallel.accelerationFactor
        pair = (factors.kspace_encoding_step_1, factors.kspace_encoding_step_2)
        if all(isinstance(f, int) and f >= 1 for f in pair):
            acceleration = pair
        mode = getattr(parallel.calibrationMode, "value", None)
    return EncodingSpace(
        _space(entry.encodedSpace, f"{name}: encodedSpace"),
        _space(entry.reconSpace, f"{name}: reconSpace"),
        (
            _centre(limits.kspace_encoding_step_1, name),
            _centre(limits.kspace_encoding_step_2, name),
        ),
        str(getattr(trajectory, "value", trajectory)),
        acceleration,
        mode,
    )


def _space(entry: Any, name: str) -> Space:
    size, extent = entry.matrixSize, entry.fieldOfView_mm
    matrix = (size.x, size.y, size.z)
    if not all(isinstance(n, int) and 1 <= n <= 65535 for n in matrix):
        raise InputError(f"{name}: the matrix size must be whole positive numbers, not {matrix}.")
    metres = [
        v * 1e-3 if _is_number(v) and math.isfinite(v) and v > 0 else 0.0
        for v in (extent.x, extent.y, extent.z)
    ]
    return Space(matrix, (metres[0], metres[1], metres[2]))


def _centre(limit: Any, name: str) -> int | None:
    if limit is None:
        return None
    if not isinstance(limit.center, int):
        raise InputError(f"{name}: the centre of k-space must be a whole number.")
    return int(limit.center)


def _facts(document: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    system = document.acquisitionSystemInformation
    if system is not None:
        if isinstance(system.systemVendor, str):
            found["vendor"] = system.systemVendor.strip()[:200]
        if _is_number(system.systemFieldStrength_T) and math.isfinite(system.systemFieldStrength_T):
            found["field_strength_T"] = float(system.systemFieldStrength_T)
    sequence = document.sequenceParameters
    if sequence is not None:
        for key, values, unit in (
            ("repetition_time_s", sequence.TR, 1e-3),
            ("echo_time_s", sequence.TE, 1e-3),
            ("inversion_time_s", sequence.TI, 1e-3),
            ("flip_angle_deg", sequence.flipAngle_deg, 1.0),
        ):
            numbers = [float(v) * unit for v in values if _is_number(v) and math.isfinite(v)]
            if numbers:
                found[key] = numbers[0] if len(numbers) == 1 else numbers
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
