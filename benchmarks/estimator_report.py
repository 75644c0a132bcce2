"""Tables and picture of what :mod:`benchmarks.estimators` found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from benchmarks.device import timed_table
from benchmarks.estimators import COUNTS, WAYS, Cell, Setting
from benchmarks.real_scans import ROOT
from benchmarks.table import insert, publish, table
from snrecon.noise.certified import schedule

TARGETS = (0.10, 0.05)
PICTURE = ROOT / "docs" / "images" / "estimators.png"
COLOURS = {"plain": "0.6", "replicas": "0.8", "control variate": "tab:orange",
           "shrinkage": "tab:green", "certified": "tab:blue", "predicted": "tab:red"}


def passes_to(errors: Sequence[float | None], target: float) -> float | None:
    """Probes to reach an error, interpolated; None if never."""
    points = [(c, e) for c, e in zip(COUNTS, errors, strict=False) if e is not None]
    for (c1, e1), (c2, e2) in pairwise(points):
        if e2 <= target <= e1:
            if e1 == e2:
                return float(c2)
            part = (torch.log(torch.tensor(e1 / target)) / torch.log(torch.tensor(e1 / e2)))
            return float(c1 * (c2 / c1) ** float(part))
    return float(points[0][0]) if points and points[0][1] <= target else None


def cost(cell: Cell, way: str, passes: float) -> float:
    """Seconds of so many passes."""
    seconds = cell.seconds
    each = {"plain": "full", "shrinkage": "full", "control variate": "full", "replicas": "replica",
            "low precision": "low", "certified": "low", "predicted": "low"}[way]
    total = passes * seconds[each]
    if way in ("control variate", "certified", "predicted"):
        total += passes * seconds["surrogate"] + seconds["building"]
    if way in ("certified", "predicted"):
        stops = max(1, sum(schedule(n) for n in range(16, int(passes) + 1)))
        total += stops * seconds["certificate"]
    return total


def passes_table(found: Mapping[Setting, Cell]) -> str:
    """Passes and forward-pass seconds to 10 and 5 %."""
    rows: list[list[Any]] = []
    devices = [cell.device for cell in found.values() for _ in WAYS]
    for setting, cell in found.items():
        for way in WAYS:
            row: list[Any] = [setting.scan, setting.network, setting.kind, way]
            for kind in ("sigma", "complex"):
                for target in TARGETS:
                    passes = passes_to(cell.errors[way][kind], target)
                    row.append("-" if passes is None else f"{passes:.0f}")
            for target in TARGETS:
                passes = passes_to(cell.errors[way]["sigma"], target)
                row.append("-" if passes is None
                           else f"{cost(cell, way, passes) / cell.seconds['forward']:.0f}")
            rows.append(row)
    return timed_table(
        ["scan", "network", "mask", "way", "sigma: 10 %", "5 %", "sigma_complex: 10 %", "5 %",
         "forward passes' time to 10 % of sigma", "to 5 %"], rows, devices)


def certificate_table(found: Mapping[Setting, Cell]) -> str:
    """Do the bounds hold, how slack are they, and what do the intervals cover?"""
    rows = []
    for setting, cell in found.items():
        holds = sum(own <= bound for own, bound in cell.bounds)
        ratios = sorted(bound / own for own, bound in cell.bounds)
        covered = [c for c in cell.coverage if c is not None]
        mean = 100 * sum(covered) / len(covered)
        also = sum(share <= pair[1] for share, pair in zip(cell.shares, cell.bounds, strict=False))
        rows.append((setting.scan, setting.network, setting.kind,
                     f"{holds} of {len(cell.bounds)}", f"{ratios[len(ratios) // 2]:.2f}",
                     f"{also} of {len(cell.shares)}" if cell.shares else "-",
                     f"{mean:.1f} ({100 * min(covered):.1f} to {100 * max(covered):.1f})",
                     *(f"{100 * cell.controls[name]:.1f}" if name in cell.controls else "-"
                       for name in ("true", "scaled", "blurred"))))
    cells_ = list(found.values())
    pairs = [pair for cell in cells_ for pair in cell.bounds]
    ratios = sorted(bound / own for own, bound in pairs)
    total = (f"Together {sum(own <= bound for own, bound in pairs)} of {len(pairs)} bounds hold, "
             f"median bound over true error {ratios[len(ratios) // 2]:.2f}.")
    return table(["scan", "network", "mask", "bound holds", "median bound / true error",
                  "holds for the error as a share of the true sigma",
                  "intervals cover, % (over numbers of probes)",
                  "bound of the true map by all probes, %", "of it times 1.05", "of it blurred"],
                 rows) + "\n\n" + total


def seconds_table(found: Mapping[Setting, Cell]) -> str:
    """What a probe costs, and exact rows."""
    rows = []
    for setting, cell in found.items():
        s, r = cell.seconds, cell.rows
        rows.append((
            setting.scan, setting.network, setting.kind, f"{1000 * s['forward']:.0f}",
            *(f"{s[k] / s['forward']:.2f}" for k in ("full", "low", "replica", "surrogate")),
            f"{s['certificate'] / s['forward']:.1f}", f"{cell.bytes / 1e6:.0f}",
            f"{r['vjps'] * r['forward_passes_per_vjp']:.0f}",
            f"{100 * r['compression_error']:.2f}" if "compression_error" in r else "rows alone"))
    return timed_table(
        ["scan", "network", "mask", "forward, ms", "probe", "low-precision probe", "replica",
         "surrogate", "certificate", "MB a probe", "exact rows, passes", "their error, %"], rows,
        [cell.device for cell in found.values()])


def picture(found: Mapping[Setting, Cell]) -> None:
    """Error of sigma against passes, a panel for every network and mask."""
    from matplotlib.figure import Figure

    columns = min(4, len(found))
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(3.2 * columns, 3.0 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    for axis, (setting, cell) in zip(axes, found.items(), strict=False):
        for way, colour in COLOURS.items():
            points = [(n, 100 * e) for n, e in
                      zip(COUNTS, cell.errors[way]["sigma"], strict=False) if e is not None]
            if points:
                axis.loglog(*zip(*points, strict=True), color=colour, label=way,
                            linestyle="--" if way == "replicas" else "-")
        axis.set_title(f"{setting.network}, {setting.kind}, {setting.scan}", fontsize=9)
        axis.set_yticks([3, 5, 10, 20, 30], ["3", "5", "10", "20", "30"])
        axis.set_xticks([6, 12, 24, 48, 96, 192], ["6", "12", "24", "48", "96", "192"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    for axis in axes[len(found):]:
        axis.set_visible(False)
    for axis in axes[max(0, len(found) - columns):len(found)]:
        axis.tick_params(labelbottom=True)
    figure.supxlabel("passes")
    figure.supylabel("relative RMS error of sigma in the head, %")
    handles, labels = max((axis.get_legend_handles_labels() for axis in figure.axes),
                          key=lambda pair: len(pair[0]))
    figure.legend(handles, labels, loc="outside upper center", ncols=6, fontsize=8)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=110)


def report(found: Mapping[Setting, Cell], keep: bool) -> None:
    """Print the tables; keep them and the picture."""
    body = (f"Passes to an error, and the time they take in forward passes:\n\n"
            f"{passes_table(found)}\n\nCertificates:\n\n{certificate_table(found)}\n\n"
            f"Cost, in forward passes where no unit stands:\n\n{seconds_table(found)}")
    publish("estimators", "Noise maps from fewer and cheaper passes", body, keep)
    if keep:
        picture(found)
        insert(ROOT / "docs" / "results.md", "estimators", summary(found))


def summary(found: Mapping[Setting, Cell]) -> str:
    """What the documents say of it."""
    rows = []
    for setting, cell in found.items():
        best = "predicted" if any(cell.errors["predicted"]["sigma"]) else "certified"
        row: list[object] = [setting.scan, setting.network, setting.kind]
        for target in TARGETS:
            for way in ("plain", "certified", "predicted"):
                passes = passes_to(cell.errors[way]["sigma"], target)
                known = way != "predicted" or best == "predicted"
                row.append(f"{passes:.0f}" if passes is not None else
                           (f"> {COUNTS[-1]}" if known else "-"))
        rows.append(row)
    return table(["scan", "network", "mask", "10 %: plain", "certified", "with prediction",
                  "5 %: plain", "certified", "with prediction"], rows)
