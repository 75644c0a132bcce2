"""Tables, pictures and the generated part of the report of :mod:`benchmarks.noise_paper`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.device import timed_table
from benchmarks.noise_paper import (
    KINDS,
    LEVELS,
    PAIRS,
    RATES,
    Cell,
    Setting,
    sigma_complex,
    state_of,
    state_path,
)
from benchmarks.real_scans import ROOT
from benchmarks.table import insert, publish, table
from snrecon.errors import InputError
from snrecon.noise.problem import Problem
from snrecon.recon.registry import load

IMAGES = ROOT / "docs" / "images"
DOCUMENT = ROOT / "docs" / "published_experiment.md"
PUBLISHED = {
    "e2e_varnet": ("99.9 / 0.7", "99.9 / 0.5"), "modl": ("99.9 / 0.5", "99.7 / 1.1"),
    "unet": ("99.4 / 1.7", "99.7 / 1.8"), "ssdu": ("99.9 / -", "-"),
}
"""Knee and brain, R = 8, alpha = 1: Pearson correlation and NRMSE in per cent."""
NAMES = {"poisson": "Poisson disc", "random": "random 1D", "gaussian2d": "random 2D",
         "equispaced_fraction": "equispaced"}
Cells = Mapping[Setting, Cell]


def published(network: str) -> tuple[str, str]:
    """The published figures of a network's method for knee and brain, if there are any."""
    method, _, weights = network.partition(":")
    return PUBLISHED.get(weights or method, ("-", "-"))


def named_tables(cells: Cells) -> str:
    """The paper's figures beside the published ones; first order against exact rows and replicas;
    cost."""
    paper = table(
        ["scan", "network", "R", "Pearson / NRMSE, %", "by sampling error alone",
         "published, knee", "published, brain", "corrected r in the head"],
        [(s.scan, s.network, f"{c.acceleration:.2f}",
          f"{100 * c.pearson:.2f} / {100 * c.nrmse:.2f}",
          f"{100 * c.ceiling:.2f} / {100 * c.floor:.2f}", *published(s.network),
          f"{c.corrected:.4f}") for s, c in cells.items()])
    order = table(
        ["scan", "network", "mean ratio, noise x 0.01", "corrected r, noise x 0.01",
         "RMS ratio, true noise",
         "predicted by the linearity check", "linearity residual, %", "difference, %"],
        [(s.scan, s.network, _optional(c.small), _optional(c.small_corrected),
          f"{c.rms_ratio:.4f}",
          f"{c.predicted:.4f} +- {c.predicted_error:.4f}", f"{100 * c.residual:.1f}",
          f"{100 * c.difference:.1f}") for s, c in cells.items()])
    truth = table(
        ["scan", "network", "sketch: mean ratio", "RMS difference, % (of it sampling)",
         "Monte Carlo: mean ratio", "RMS difference, % (of it sampling)"],
        [(s.scan, s.network, *_exact(c.exact_sketch), *_exact(c.exact_replicas))
         for s, c in cells.items()])
    cost = timed_table(
        ["scan", "network", "probe, ms", "replica, ms", "probe / replica", "MB a probe"],
        [(s.scan, s.network, *(f"{1000 * t:.0f}" for t in c.seconds),
          f"{c.seconds[0] / c.seconds[1]:.2f}", f"{c.bytes / 1e6:.0f}")
         for s, c in cells.items()], [c.device for c in cells.values()])
    return (f"The paper's figures, over the whole slice:\n\n{paper}\n\nFirst order against "
            f"replicas, inside the head:\n\n{order}\n\nBoth against exact rows, at voxels drawn "
            f"from the head:\n\n{truth}\n\nTime and memory:\n\n{cost}")


def _optional(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _exact(found: tuple[float, float, float] | None) -> tuple[str, str]:
    if found is None:
        return "", ""
    ratio, difference, sampling = found
    return f"{ratio:.4f}", f"{100 * difference:.2f} ({100 * sampling:.2f})"


def grid_table(cells: Cells) -> str:
    """A cell a row."""
    return table(
        ["scan", "network", "R", "alpha", "pattern", "Pearson, %", "ceiling, %", "NRMSE, %",
         "sampling alone, %", "corrected r", "RMS ratio", "predicted", "difference, %",
         "linearity residual, %"],
        [(s.scan, s.network, f"{c.acceleration:.2f}", f"{s.level:g}", NAMES[s.kind],
          f"{100 * c.pearson:.2f}", f"{100 * c.ceiling:.2f}", f"{100 * c.nrmse:.2f}",
          f"{100 * c.floor:.2f}", f"{c.corrected:.4f}", f"{c.rms_ratio:.4f}",
          f"{c.predicted:.4f}", f"{100 * c.difference:.1f}", f"{100 * c.residual:.1f}")
         for s, c in cells.items()])


def summary_table(cells: Cells) -> str:
    """Means over patterns and accelerations: a scan and network a row, a noise level a column.
    Where some have not run there is no mean, but how many have."""
    rows = []
    every = len(KINDS) * len(RATES)
    for scan, network in dict.fromkeys((s.scan, s.network) for s in cells):
        row = [scan, network]
        for level in LEVELS:
            chosen = [c for s, c in cells.items()
                      if (s.scan, s.network, s.level) == (scan, network, level)]
            if len(chosen) == every:
                means = (np.mean([getattr(c, key) for c in chosen])
                         for key in ("difference", "residual", "rms_ratio", "predicted"))
                difference, residual, ratio, predicted = means
                row.append(f"{100 * difference:.1f} % ({100 * residual:.0f} %), "
                           f"{ratio:.3f} ({predicted:.3f})")
            else:
                row.append(f"{len(chosen)} of {every} cells")
        rows.append(row)
    return table(["scan", "network", *(f"alpha = {level:g}" for level in LEVELS)], rows)


def _whole(cells: Cells) -> list[str]:
    """Networks all of whose cells have run on some scan."""
    every = len(KINDS) * len(RATES) * len(LEVELS)
    counts: dict[tuple[str, str], int] = {}
    for s in cells:
        counts[s.scan, s.network] = counts.get((s.scan, s.network), 0) + 1
    return list(dict.fromkeys(name for (_, name), count in counts.items() if count == every))


def _drawing(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(drawing)
    return drawing


def maps_picture(setting: Setting, path: Path) -> None:
    """Image, SD by sketch, by Monte Carlo, and their difference ten times enlarged, in the head."""
    drawing = _drawing(11.5, 2.75)
    row = drawing.subplots(1, 4)
    chosen = setting.case()
    problem = Problem.of(load(setting.network), chosen.scan)
    (a, _), (b, _) = (sigma_complex(state_of(setting, problem, name))
                      for name in ("sketch", "replicas"))
    ys, xs = (torch.nonzero(chosen.head.any(d)).flatten() for d in (1, 0))
    window = (slice(max(int(ys[0]) - 3, 0), int(ys[-1]) + 4),
              slice(max(int(xs[0]) - 3, 0), int(xs[-1]) + 4))
    image = problem.image.abs()
    top = float(np.quantile(b[chosen.head].numpy(), 0.99))
    unit = "complex noise SD"
    shown = [
        ("image", image, "gray", float(np.quantile(image[chosen.head].numpy(), 0.985)), False),
        (f"sketch, {setting.probes} probes", a, "viridis", top, True),
        (f"Monte Carlo, {setting.samples} replicas", b, "viridis", top, True),
        ("|difference|", (a - b).abs(), "magma", top / 10, True),
    ]
    for axes, (title, values, colours, limit, masked) in zip(row, shown, strict=True):
        hidden = ~chosen.head[window].numpy() & masked
        axes.set_facecolor("0.82")
        drawn = axes.imshow(np.ma.masked_where(hidden, values[window].numpy()), cmap=colours,
                            vmin=0, vmax=limit, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.set_title(title, fontsize=11)
        bar = drawing.colorbar(drawn, ax=axes, fraction=0.05, pad=0.02)
        bar.set_label(f"{'|x|' if title == 'image' else 'SD'} / {unit}", fontsize=8)
    row[0].set_ylabel(setting.network, fontsize=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=75)


def levels_picture(cells: Cells, path: Path) -> None:
    """Relative RMS difference of sketch and Monte Carlo over the noise level: a pattern a row, an
    acceleration a column, a network a line (mean over scans); dotted, the linearity residual."""
    drawing = _drawing(10.5, 2.4 * len(KINDS))
    panels = drawing.subplots(len(KINDS), len(RATES), sharex=True, sharey=True, squeeze=False)
    for i, kind in enumerate(KINDS):
        for j, rate in enumerate(RATES):
            axes = panels[i][j]
            for number, network in enumerate(_whole(cells)):
                levels, differences, residuals = [], [], []
                for level in LEVELS:
                    chosen = [c for s, c in cells.items()
                              if (s.network, s.kind, s.rate, s.level)
                              == (network, kind, rate, level)]
                    if chosen:
                        levels.append(level)
                        differences.append(100 * float(np.mean([c.difference for c in chosen])))
                        residuals.append(100 * float(np.mean([c.residual for c in chosen])))
                axes.plot(levels, differences, "o-", color=f"C{number}", label=network, ms=3)
                axes.plot(levels, residuals, ":", color=f"C{number}", lw=1)
            axes.set(xscale="log", yscale="log")
            axes.set_title(f"{NAMES[kind]}, R = {rate:g}", fontsize=10)
            axes.grid(alpha=0.3)
            if i == len(KINDS) - 1:
                axes.set_xlabel("noise level alpha (times the measured SD)")
            if j == 0:
                axes.set_ylabel("% of SD")
    lines, names = panels[0][0].get_legend_handles_labels()
    if lines:
        drawing.legend(lines, names, loc="outside upper center", ncols=len(lines), fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=75)


def prediction_picture(cells: Cells, path: Path) -> None:
    """SD of first order over SD of replicas in every cell, over what the linearity check says."""
    from matplotlib.ticker import FixedLocator, NullLocator

    drawing = _drawing(6.2, 5.2)
    axes = drawing.subplots()
    predicted = np.array([c.predicted for c in cells.values()])
    found = np.array([c.rms_ratio for c in cells.values()])
    level = np.array([s.level for s in cells])
    ends = [0.98 * min(predicted.min(), found.min()), 1.02 * max(predicted.max(), found.max())]
    axes.plot(ends, ends, "k-", lw=0.8)
    points = axes.scatter(predicted, found, c=np.log10(level), s=14, cmap="plasma")
    axes.set(xlabel=f"predicted by the linearity check ({PAIRS[False]} pairs of draws)",
             ylabel="sketch over Monte Carlo", xscale="log", yscale="log",
             title="RMS noise in the head, first order over replicas")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator([0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 10]))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    bar = drawing.colorbar(points, ax=axes, ticks=np.log10(LEVELS))
    bar.ax.set_yticklabels([f"{value:g}" for value in LEVELS])
    bar.set_label("noise level alpha")
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=75)


def report(deep: Cells, wide: Cells, keep: bool) -> None:
    """Print all tables; with ``keep`` write them, the pictures and the report's generated part.

    Args:
        deep: The named cells.
        wide: The cells of the grid.
        keep: Whether these are the networks that ship.
    """
    if deep:
        publish("noise_paper", "Sketch against Monte Carlo: the named cells", named_tables(deep),
                keep)
    if wide:
        means = summary_table(wide)
        publish("noise_paper_grid", "Sketch against Monte Carlo: the grid",
                f"{means}\n\n{grid_table(wide)}", keep, script="noise_paper")
    if not keep:
        return
    if deep:
        shown = []
        for setting in deep:
            name = f"noise_paper_{setting.scan}_{setting.network.replace(':', '-')}.png"
            if all(state_path(setting, part).exists() for part in ("sketch", "replicas")):
                try:
                    maps_picture(setting, IMAGES / name)
                except InputError as error:  # samples of an earlier version of the package
                    print(f"{name} stays as it is: {error}")
            if (IMAGES / name).exists():
                shown.append(
                    f"![{setting.scan}, {setting.network}: image, SD by sketch and by Monte Carlo, "
                    f"their difference on a tenth of the scale](images/{name})")
        insert(DOCUMENT, "named cells", "\n\n".join([named_tables(deep), *shown]))
    if wide:
        insert(DOCUMENT, "grid", summary_table(wide))
        levels_picture(wide, IMAGES / "noise_paper_levels.png")
        prediction_picture(wide, IMAGES / "noise_paper_prediction.png")
