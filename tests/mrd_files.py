"""Real ISMRMRD files from a simulated scan, written with the ISMRMRD library."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ismrmrd
import ismrmrd.xsd as xsd
import numpy as np

DIRECTIONS = {
    "read_dir": (0.0, 1.0, 0.0),
    "phase_dir": (0.0, 0.0, 1.0),
    "slice_dir": (1.0, 0.0, 0.0),
    "position": (10.0, -20.0, 30.0),
}


def phantom(*grid: int, seed: int = 0) -> np.ndarray:
    """An image without any symmetry, so that a flip, a shift or a swap of axes shows."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.arange(n) - n // 2 for n in grid], indexing="ij")
    image = np.zeros(grid, dtype=complex)
    for _ in range(4):
        inside = sum(
            ((a - rng.uniform(-0.2, 0.2) * n) / (rng.uniform(0.1, 0.25) * n + 0.5)) ** 2
            for a, n in zip(axes, grid, strict=True)
        )
        image += (inside < 1) * rng.uniform(0.5, 1.5) * np.exp(2j * np.pi * rng.uniform())
    return image * np.exp(1j * 0.7 * axes[-1] / grid[-1])


def maps(coils: int, *grid: int) -> np.ndarray:
    """Smooth maps with ``sum |S|^2 = 1``, ``(coil, *grid)``."""
    axes = np.meshgrid(*[(np.arange(n) - n // 2) / n for n in grid], indexing="ij")
    found = []
    for c in range(coils):
        angle = 2 * np.pi * c / coils
        place = (np.cos(angle) * 0.6, np.sin(angle) * 0.6)
        distance = (axes[-2] - place[0]) ** 2 + (axes[-1] - place[1]) ** 2
        found.append(np.exp(-1.5 * distance + 1j * angle + 1j * axes[-2] * c))
    stack = np.array(found)
    return stack / np.sqrt((np.abs(stack) ** 2).sum(0))


def centred(x: np.ndarray, axes: tuple[int, ...], inverse: bool = False) -> np.ndarray:
    """Centred orthonormal discrete Fourier transform, written independently of the package."""
    for axis in axes:
        n = x.shape[axis]
        r = np.arange(n) - n // 2
        matrix = np.exp((2j if inverse else -2j) * np.pi * np.outer(r, r) / n) / np.sqrt(n)
        x = np.moveaxis(np.tensordot(matrix, x, axes=(1, axis)), 0, axis)
    return x


def oversampled(images: np.ndarray, factor: int = 2, axis: int = -1) -> np.ndarray:
    """The images in a larger, empty field of view: ``n`` to ``factor * n`` along one axis."""
    n = images.shape[axis]
    start = factor * n // 2 - n // 2
    pad = [(0, 0)] * images.ndim
    pad[axis] = (start, factor * n - n - start)
    return np.pad(images, pad)


def header(
    encoded: tuple[int, int, int],
    recon: tuple[int, int, int] | None = None,
    fov: tuple[float, float, float] = (400.0, 220.0, 5.0),
    recon_fov: tuple[float, float, float] | None = None,
    centre: tuple[int, int] | None = None,
    trajectory: str = "cartesian",
    acceleration: tuple[int, int] | None = None,
    mode: str | None = None,
    bandwidth: float | None = None,
    encodings: int = 1,
) -> Any:
    """A header for matrices ``(x, y, z)`` and fields of view in millimetres."""
    recon = recon or (encoded[0] // 2, encoded[1], encoded[2])
    recon_fov = recon_fov or (fov[0] / 2, fov[1], fov[2])
    centre = (encoded[1] // 2, encoded[2] // 2) if centre is None else centre

    def space(matrix: tuple[int, int, int], extent: tuple[float, float, float]) -> Any:
        return xsd.encodingSpaceType(
            matrixSize=xsd.matrixSizeType(x=matrix[0], y=matrix[1], z=matrix[2]),
            fieldOfView_mm=xsd.fieldOfViewMm(x=extent[0], y=extent[1], z=extent[2]),
        )

    parallel = None
    if acceleration is not None:
        parallel = xsd.parallelImagingType(
            accelerationFactor=xsd.accelerationFactorType(
                kspace_encoding_step_1=acceleration[0], kspace_encoding_step_2=acceleration[1]
            ),
            calibrationMode=None if mode is None else xsd.calibrationModeType(mode),
        )
    encoding = xsd.encodingType(
        encodedSpace=space(encoded, fov),
        reconSpace=space(recon, recon_fov),
        encodingLimits=xsd.encodingLimitsType(
            kspace_encoding_step_1=xsd.limitType(
                minimum=0, maximum=encoded[1] - 1, center=centre[0]
            ),
            kspace_encoding_step_2=xsd.limitType(
                minimum=0, maximum=encoded[2] - 1, center=centre[1]
            ),
        ),
        trajectory=xsd.trajectoryType(trajectory),
        parallelImaging=parallel,
    )
    return xsd.ismrmrdHeader(
        subjectInformation=xsd.subjectInformationType(patientName="Secret^Name"),
        acquisitionSystemInformation=xsd.acquisitionSystemInformationType(
            systemVendor="Vendor",
            systemFieldStrength_T=2.89,
            relativeReceiverNoiseBandwidth=bandwidth,
            institutionName="Secret Hospital",
        ),
        experimentalConditions=xsd.experimentalConditionsType(H1resonanceFrequency_Hz=123200000),
        encoding=[encoding] * encodings,
        sequenceParameters=xsd.sequenceParametersType(TR=[500.0], TE=[4.0, 8.0]),
    )


def readout(data: np.ndarray, *flags: str, **fields: Any) -> Any:
    """One acquisition of ``(coil, samples)``; fields of the header and of its counters by name."""
    counters = {
        name: fields.pop(short)
        for short, name in (
            ("y", "kspace_encode_step_1"),
            ("z", "kspace_encode_step_2"),
            *((n, n) for n in ("average", "slice", "contrast", "phase", "repetition", "set")),
        )
        if short in fields
    }
    values = {
        "center_sample": data.shape[1] // 2,
        "sample_time_us": 5.0,
        **DIRECTIONS,
        **fields,
    }
    acquisition = ismrmrd.Acquisition.from_array(np.ascontiguousarray(data, dtype=np.complex64))
    for name, value in values.items():
        setattr(acquisition, name, value)
    for name, value in counters.items():
        setattr(acquisition.idx, name, int(value))
    for flag in flags:
        acquisition.setFlag(getattr(ismrmrd, "ACQ_" + flag))
    return acquisition


def lines(
    kspace: np.ndarray, steps: Iterable[int] | None = None, *flags: str, **fields: Any
) -> list[Any]:
    """Readouts of ``(coil, ky, kx)`` at the given phase-encoding steps, all by default."""
    chosen = range(kspace.shape[1]) if steps is None else steps
    return [readout(kspace[:, y], *flags, y=y, **fields) for y in chosen]


def write(path: Path, head: Any, readouts: Iterable[Any], key: str = "dataset") -> Path:
    """Write a file with the library."""
    with ismrmrd.Dataset(str(path), key) as dataset:
        text = head if isinstance(head, bytes) else xsd.ToXML(head).encode()
        dataset.write_xml_header(text)
        for acquisition in readouts:
            dataset.append_acquisition(acquisition)
    return path
