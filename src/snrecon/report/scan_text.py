"""What was understood of a scan, as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.physics.gram import varying_axes
from snrecon.report.mask_picture import mask_picture

AXES = ("kz", "ky", "kx")
ENOUGH_LINES = 12
"""Fewer calibration lines than this give poor coil maps."""


def describe_scan(scan: Scan, encoding: str = "utf-8") -> str:
    """A table of facts, and the sampling pattern as a small picture.

    Args:
        scan: The scan.
        encoding: Of the terminal; without block characters the picture is ASCII.
    """
    rows: list[tuple[str, str]] = [("scan", scan.source)]
    names = AXES[-len(scan.grid) :]
    rows.append(("matrix", f"{_times(scan.grid)} ({' x '.join(names)})"))
    rows.append(("coils", str(scan.coils)))
    rows.append(("slices", str(scan.slices) if scan.layout == "stack" else _one_slice(scan)))
    if scan.repetitions is not None:
        rows.append(("repetitions", str(scan.repetitions.shape[0])))
    rows.append(("sampling", _sampling(scan)))
    rows.append(("acceleration", f"{scan.acceleration:.3f} (grid points over sampled points)"))
    rows.append(("calibration", _calibration(scan)))
    rows.append(("coil maps", "given" if scan.maps is not None else "not given: estimated"))
    rows += _noise(scan)
    rows.append(("SNR units", _readiness(scan)))
    rows += _geometry(scan)
    rows += _facts(scan.attributes)
    width = max(len(name) for name, _ in rows) + 2
    text = "\n".join(f"{name:<{width}}{value}" for name, value in rows)
    picture = mask_picture(_first_mask(scan), encoding)
    if picture:
        text += f"\n\nsampled points {_picture_axes(scan)}:\n{picture}"
    return text.encode(encoding, errors="replace").decode(encoding)


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _one_slice(scan: Scan) -> str:
    return "1" if len(scan.grid) == 2 else "a 3D volume"


def _first_mask(scan: Scan) -> torch.Tensor:
    return scan.sampled[0] if scan.sampled.ndim > len(scan.grid) else scan.sampled


def _varying(scan: Scan) -> list[str]:
    mask = _first_mask(scan)
    return [AXES[axis] for axis in varying_axes(mask)]


def _sampling(scan: Scan) -> str:
    varying = _varying(scan)
    per_slice = scan.sampled.ndim > len(scan.grid)
    differs = per_slice and bool((scan.sampled != scan.sampled[:1]).any())
    note = ", different in every slice (the first is shown)" if differs else ""
    if not varying:
        return f"full{note}"
    mask = _first_mask(scan)
    if len(varying) == 1:
        axis = AXES.index(varying[0]) - 3
        lines = mask.movedim(axis, 0).flatten(1)[:, 0]
        spacing = torch.nonzero(lines).flatten().diff().unique()
        regular = f", every {_ordinal(int(spacing[0]))}" if len(spacing) == 1 else ""
        if len(spacing) == 1 and int(spacing[0]) == 1:
            regular = ", a contiguous part (partial Fourier)"
        return (
            f"undersampled along {varying[0]}: {int(lines.sum())} of {lines.numel()} lines"
            f"{regular}{note}"
        )
    total = f"{int(mask.sum())} of {mask.numel()} points"
    return f"undersampled along {' and '.join(varying)}: {total}{note}"


def _ordinal(n: int) -> str:
    return {2: "second", 3: "third"}.get(n, f"{n}th")


def _calibration_shape(scan: Scan) -> tuple[int, ...]:
    """Extent of the fully sampled centre along every axis of the grid; zeros when there is none."""
    from snrecon.physics.coils import calibration_region

    try:
        region = calibration_region(_first_mask(scan))
    except InputError:
        return (0,) * len(scan.grid)
    return tuple(len(range(*s.indices(n))) for s, n in zip(region, scan.grid, strict=True))


def _calibration(scan: Scan) -> str:
    varying = _varying(scan)
    if not varying:
        return "all of k-space"
    shape = dict(zip(AXES[-len(scan.grid) :], _calibration_shape(scan), strict=True))
    sizes = [shape[name] for name in varying]
    if min(sizes) < 2:
        return "none"
    unit = "fully sampled central lines" if len(sizes) == 1 else "fully sampled central block"
    return f"{_times(tuple(sizes))} {unit}"


def _noise(scan: Scan) -> list[tuple[str, str]]:
    noise = scan.noise
    if noise is None:
        why = f", because {scan.noise_unknown}" if scan.noise_unknown else ""
        advice = "give --noise-covariance FILE, or 'identity' if whitened"
        return [("noise", f"not known{why}: {advice}")]
    shown = {k: v for k, v in noise.details.items() if k != "colour" and _is_short(v)}
    facts = ", ".join(
        f"{_label(k)} {f'{v:.3g}' if isinstance(v, float) else v}" for k, v in shown.items()
    )
    rows = [("noise", f"covariance from: {noise.source}" + (f" ({facts})" if facts else ""))]
    sd = noise.covariance.diagonal().real.sqrt()
    rows.append(("noise SD", f"{float(sd.min()):.4g} to {float(sd.max()):.4g} per sample and coil"))
    if noise.coils > 1:
        pairs = torch.triu_indices(noise.coils, noise.coils, 1)
        off = noise.correlation()[pairs[0], pairs[1]]
        text = f"median {float(off.median()):.2f}, largest {float(off.max()):.2f}"
        rows.append(("coil correlation", text))
    if noise.spectrum is None:
        rows.append(("readout colour", "white"))
    else:
        low, high = float(noise.spectrum.min()), float(noise.spectrum.max())
        rows.append(("readout colour", f"coloured, noise variance x {low:.2f} to x {high:.2f}"))
    return rows


def _readiness(scan: Scan) -> str:
    missing = []
    if scan.noise is None:
        missing.append("the noise covariance")
    if scan.maps is None and _varying(scan) and max(_needed(scan), default=ENOUGH_LINES) < 2:
        missing.append("coil maps or calibration lines")
    if missing:
        return f"no, missing: {' and '.join(missing)}"
    notes = []
    if scan.noise is not None and scan.noise.source == "background":
        notes.append("the noise level is only estimated from the background of the image")
    if scan.noise is not None and scan.noise.source == "identity":
        notes.append("only if the data are whitened, as you say")
    if scan.maps is None and min(_needed(scan), default=ENOUGH_LINES) < ENOUGH_LINES:
        notes.append("few calibration lines for coil maps")
    return "yes" + (f", but {' and '.join(notes)}" if notes else "")


def _needed(scan: Scan) -> list[int]:
    """Extent of the calibration block along the undersampled axes."""
    shape = dict(zip(AXES[-len(scan.grid) :], _calibration_shape(scan), strict=True))
    return [shape[name] for name in _varying(scan)]


def _geometry(scan: Scan) -> list[tuple[str, str]]:
    if scan.geometry is None:
        return [("geometry", "not known")]
    size = " x ".join(f"{1e3 * s:.3g}" for s in scan.geometry.voxel_size)
    rows = [("voxel", f"{size} mm (slice x phase x readout)")]
    if any(scan.geometry.position):
        place = ", ".join(f"{1e3 * p:.1f}" for p in scan.geometry.position)
        rows.append(("centre", f"{place} mm (left, back, head)"))
    return rows


def _picture_axes(scan: Scan) -> str:
    varying = _varying(scan)
    if len(varying) == 1:
        return f"along {varying[0]}, one mark a line"
    return f"({varying[0]} down, {varying[1]} across)"


def _facts(attributes: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Facts of the header that fit on a line; those of a nested table on one line together."""
    rows = []
    for name, value in attributes.items():
        if isinstance(value, Mapping):
            inner = ", ".join(f"{_label(k)} {_value(v)}" for k, v in value.items() if _is_short(v))
            rows.append((_label(name), inner))
        elif _is_short(value):
            rows.append((_label(name), _value(value)))
    return [row for row in rows if row[1]]


def _label(name: str) -> str:
    return name.replace("_", " ")


def _is_short(value: Any) -> bool:
    return isinstance(value, str | int | float | bool) and len(str(value)) <= 100


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else "not given"
    return " ".join(str(value).split())
