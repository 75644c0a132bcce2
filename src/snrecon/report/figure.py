"""One figure of a result: image, noise maps, their error, and a check against another estimator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snrecon.data import NoiseMap
from snrecon.report.agreement import agreement
from snrecon.report.result_text import inside

Panel = Callable[[Any, Any], None]
"""``panel(axes, figure)`` draws itself."""
COLUMNS = 4
UNIT = "image units"


def figure(
    result: NoiseMap,
    path: str | Path,
    monte_carlo: NoiseMap | None = None,
    other: NoiseMap | None = None,
    title: str | None = None,
) -> Path:
    """Draw a result and write it as an image file.

    Panels: image, sigma, SNR, g-factor; then, where there is something to show, the standard error
    of sigma in per cent, the ratio to and the scatter against a Monte Carlo map, and the sigma of
    another method on the same scale. Where there is no signal (``|x| < 3 sigma``) maps are grey.
    A volume or stack is shown at its middle slice.

    Args:
        result: What is shown.
        path: ``.png``, ``.pdf`` or ``.svg``.
        monte_carlo: Independent estimate of the same map.
        other: Another method's result for the same scan.
        title: Line over the figure; by default method, estimator and acceleration.

    Returns:
        ``path``.
    """
    import matplotlib

    result, monte_carlo, other = (_middle(r) for r in (result, monte_carlo, other))  # type: ignore
    panels = _panels(result, monte_carlo, other)
    rows = -(-len(panels) // COLUMNS)
    with matplotlib.rc_context({"font.size": 11, "axes.titlesize": 12}):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        columns = min(COLUMNS, len(panels))
        drawing = Figure(figsize=(3.2 * columns, 3.15 * rows + 0.4), layout="constrained")
        FigureCanvasAgg(drawing)
        drawing.suptitle(title or _title(result), fontsize=13)
        grid = drawing.subplots(rows, columns, squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            panel(axes, drawing)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        drawing.savefig(path, dpi=110)
    return Path(path)


def _middle(result: NoiseMap | None) -> NoiseMap | None:
    """The middle slice of a volume or stack."""
    from dataclasses import replace

    if result is None or result.image.ndim == 2:
        return result
    index = result.image.shape[0] // 2

    def pick(map_: Tensor | None) -> Tensor | None:
        return None if map_ is None else map_[index]

    names = ("image", "sigma", "sigma_complex", "snr", "sigma_phase", "g_factor", "standard_error")
    chosen: dict[str, Any] = {name: pick(getattr(result, name)) for name in names}
    return replace(result, **chosen, covariance=None)


def _title(result: NoiseMap) -> str:
    return (
        f"{result.method or 'reconstruction'}, R = {result.acceleration:.2f}: noise map by "
        f"{result.estimator}, {result.passes:g} passes"
    )


def _panels(result: NoiseMap, monte_carlo: NoiseMap | None, other: NoiseMap | None) -> list[Panel]:
    where = inside(result)
    size = result.image.abs()
    shared = [result.sigma[where]]
    if other is not None:
        shared.append(other.sigma[inside(other) & where])
    sigma_top = _top(torch.cat(shared), 0.995)
    panels = [
        _map("image |x|", size, None, "gray", 0, _top(size[result.sigma > 0], 0.995), UNIT),
        _map("noise sigma", result.sigma, where, "viridis", 0, sigma_top, UNIT),
        _map("SNR = |x| / sigma", result.snr, where, "magma", 0, _top(result.snr[where], 0.99), ""),
    ]
    if result.g_factor is not None:
        top = max(_top(result.g_factor[where], 0.995), 1.0)
        panels.append(_map("g-factor", result.g_factor, where, "inferno", 0, top, ""))
    if result.standard_error is not None and bool((result.standard_error > 0).any()):
        relative = 100 * result.standard_error / result.sigma.clamp_min(1e-30)
        low, high = _range(relative[where])
        panels.append(
            _map("standard error of sigma", relative, where, "cividis", low, high, "% of sigma")
        )
    if monte_carlo is not None:
        panels += [_ratio(result, monte_carlo, where), _scatter(result, monte_carlo, where)]
    if other is not None:
        name = f"noise sigma of {other.method} ({other.estimator})"
        panels.append(_map(name, other.sigma, inside(other), "viridis", 0, sigma_top, UNIT))
    return panels


def _top(values: Tensor, quantile: float) -> float:
    """A robust maximum, never 0."""
    if values.numel() == 0:
        return 1.0
    return max(float(np.quantile(values.double().cpu().numpy(), quantile)), 1e-30)


def _range(values: Tensor) -> tuple[float, float]:
    if values.numel() == 0:
        return 0.0, 1.0
    low, high = np.quantile(values.double().cpu().numpy(), [0.005, 0.995])
    return float(low), float(high if high > low else low + 1e-6)


def _map(
    title: str,
    values: Tensor,
    where: Tensor | None,
    colours: str,
    low: float,
    high: float,
    unit: str,
) -> Panel:
    """An image panel with its colour bar; readout runs across, phase encoding down."""

    def draw(axes: Any, drawing: Any) -> None:
        shown = values.detach().cpu().double().numpy()
        if where is not None:
            shown = np.ma.masked_where(~where.cpu().numpy(), shown)
        axes.set_facecolor("0.82")
        picture = axes.imshow(
            shown, cmap=colours, vmin=low, vmax=high, interpolation="nearest", origin="upper"
        )
        axes.set(title=title, xticks=[], yticks=[])
        bar = drawing.colorbar(picture, ax=axes, fraction=0.046, pad=0.02)
        bar.set_label(unit)

    return draw


def _ratio(result: NoiseMap, monte_carlo: NoiseMap, where: Tensor) -> Panel:
    """Ratio of both maps, centred on 1."""
    ratio = result.sigma / monte_carlo.sigma.clamp_min(1e-30)
    width = max(_top((ratio[where] - 1).abs(), 0.99), 0.05)
    return _map(
        f"{result.estimator} / Monte Carlo", ratio, where, "RdBu_r", 1 - width, 1 + width, "ratio"
    )


def _scatter(result: NoiseMap, monte_carlo: NoiseMap, where: Tensor) -> Panel:
    """Both maps against each other, with the identity line."""

    def draw(axes: Any, drawing: Any) -> None:
        where_both = where & (monte_carlo.sigma > 0)
        a = monte_carlo.sigma[where_both].detach().cpu().double().numpy()
        b = result.sigma[where_both].detach().cpu().double().numpy()
        top = 1.05 * max(np.quantile(a, 0.999), np.quantile(b, 0.999))
        counts = axes.hexbin(a, b, gridsize=45, extent=(0, top, 0, top), mincnt=1, cmap="Blues",
                             bins="log")  # fmt: skip
        axes.plot([0, top], [0, top], color="tab:red", lw=1)
        axes.set(xlim=(0, top), ylim=(0, top), aspect="equal", title="agreement, every voxel")
        axes.set_xlabel(f"sigma, Monte Carlo ({monte_carlo.passes:g} replicas)")
        axes.set_ylabel(f"sigma, {result.estimator}")
        axes.ticklabel_format(scilimits=(-2, 3))
        drawing.colorbar(counts, ax=axes, fraction=0.046, pad=0.02).set_label("voxels")
        both = agreement(result, monte_carlo, where_both)
        axes.text(
            0.04, 0.96,
            f"r = {both.corrected:.3f}, corrected\n(raw {both.correlation:.3f})\n"
            f"mean ratio {both.mean_ratio:.3f}",
            transform=axes.transAxes, va="top", fontsize=10,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2},
        )  # fmt: skip

    return draw
