"""A spread map in numbers, as text."""

from __future__ import annotations

from snrecon.uncertainty import SpreadMap

BRIGHT = 0.1
"""Medians are over voxels above this share of the largest magnitude."""


def describe_spread(result: SpreadMap) -> str:
    """A table: method, samples and seed, spread with its error, intervals, units, frozen parts."""
    where = result.magnitude > BRIGHT * result.magnitude.max()
    rows: list[tuple[str, str]] = [("method", result.method or "callable")]
    seed = "" if result.seed is None else f", seed {result.seed}"
    rows.append(("samples", f"{result.count}{seed}"))
    rows.append(("acceleration", f"{result.acceleration:.3f}"))
    if bool(where.any()):
        spread, size = result.spread[where], result.magnitude[where]
        rows.append(("spread", f"{float(spread.median()):.4g} (median SD of the magnitude at fixed "
                               f"data), {float((spread / size).median()):.2%} of the image"))
        moving = spread > 0
        if bool(moving.any()):
            ratio = (result.spread_error[where][moving] / spread[moving]).double()
            rows.append(("its error", f"{float(ratio.square().mean().sqrt()):.2%} (RMS, relative)"))
    else:
        rows.append(("spread", "the image is 0 everywhere"))
    how = "Student's t: few samples" if result.interval == "student" else result.interval
    rows.append(("intervals", f"{result.level:.3g}, {how}"))
    rows.append(("units", result.units))
    rows.append(("frozen", ", ".join(result.frozen) or "nothing"))
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:<{width}}{value}" for name, value in rows)
