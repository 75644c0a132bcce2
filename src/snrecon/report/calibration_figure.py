"""One figure of how well predicted uncertainties fit the errors: reliability and coverage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from snrecon.errors import InputError
from snrecon.uncertainty import Calibration

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
"""Told apart by colour-blind readers (Okabe and Ito)."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def calibration_figure(
    methods: Mapping[str, Calibration],
    path: str | Path,
    title: str | None = None,
    unit: str = "image units",
) -> Path:
    """Draw the calibration of one or more methods and write it as an image file.

    On the left the reliability diagram, RMS error against predicted SD in bins of it, with the
    identity: above it a method is too confident. On the right, in the same colours, what the
    intervals cover, against what they claim. Bars are 95 % limits of the bootstrap over scans or
    blocks.

    Args:
        methods: Calibrations by the name to show, in the same units.
        path: ``.png``, ``.pdf`` or ``.svg``.
        title: Line over the figure.
        unit: Of SD and error.

    Returns:
        ``path``.

    Raises:
        InputError: for no methods, or more than there are colours (7).
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not 1 <= len(methods) <= len(COLOURS):
        raise InputError(f"a calibration figure shows 1 to {len(COLOURS)} methods, not "
                         f"{len(methods)}.")
    style: Any = {"font.size": 11, "axes.titlesize": 12, "axes.spines.top": False,
                  "axes.spines.right": False}
    with matplotlib.rc_context(style):
        drawing = Figure(figsize=(10.2, 4.9), facecolor="white", layout="constrained")
        FigureCanvasAgg(drawing)
        left, right = drawing.subplots(1, 2, width_ratios=(1.0, 1.0))
        if title:
            drawing.suptitle(title, fontsize=13)
        _reliability(left, methods, unit)
        _coverage(right, methods)
        drawing.savefig(path, dpi=120)
    return Path(path)


def _reliability(axes: Any, methods: Mapping[str, Calibration], unit: str) -> None:
    """RMS error against predicted SD, on logarithmic axes where the values span decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    everything = np.concatenate(
        [np.concatenate([c.predicted, c.error]) for c in methods.values()])
    positive = everything[everything > 0]
    low, high = (positive.min(), positive.max()) if positive.size else (0.1, 1.0)
    wide = high > 12 * low
    low, high = (low / 1.5, high * 1.5) if wide else (0.0, 1.08 * high)
    if wide:
        axes.set(xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            few = (1, 2, 5) if high < 100 * low else (1,)
            axis.set_major_locator(LogLocator(subs=few))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
    axes.plot([low, high], [low, high], color="0.6", lw=1, zorder=0)
    for (name, found), colour, marker in zip(methods.items(), COLOURS, MARKERS):
        bars = [np.maximum(found.error - found.error_lower, 0),
                np.maximum(found.error_upper - found.error, 0)]
        axes.errorbar(found.predicted, found.error, yerr=bars, color=colour, marker=marker, ms=5,
                      lw=1.2, elinewidth=1, capsize=2, label=name)
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal", title="reliability",
             xlabel=f"predicted SD [{unit}]", ylabel=f"RMS error [{unit}]")


def _coverage(axes: Any, methods: Mapping[str, Calibration]) -> None:
    """A row for each method, the first on top; dashed lines at what is claimed."""
    for level in sorted({found.level for found in methods.values()}):
        axes.axvline(100 * level, color="0.6", lw=1, ls="--", zorder=0)
    rows = range(len(methods) - 1, -1, -1)
    names = []
    for row, (name, found), colour, marker in zip(rows, methods.items(), COLOURS, MARKERS):
        low, high = (100 * share for share in found.coverage_limits)
        middle = 100 * found.coverage
        bars = [[max(middle - low, 0)], [max(high - middle, 0)]]
        axes.errorbar([middle], [row], xerr=bars, color=colour, marker=marker, ms=7, capsize=3)
        names.append(
            f"{name}\n{middle:.1f} %, width {found.width:.3g}, z SD {found.z_sd:.2f}")
    lowest = min(100 * min(found.coverage_limits[0], found.level) for found in methods.values())
    axes.set(xlim=(max(lowest - 5, 0), 102), ylim=(-0.5, len(methods) - 0.5),
             title="coverage of the intervals", xlabel="references inside the interval [%]")
    axes.set_yticks(list(rows), names, fontsize=10)
    for label, colour in zip(reversed(axes.get_yticklabels()), reversed(COLOURS[: len(methods)]),
                             strict=True):
        label.set_color(colour)
    axes.tick_params(axis="y", length=0)
