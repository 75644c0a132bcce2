"""One figure of a result: image, noise maps, their error, and a check against another estimator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snrecon.data import NoiseMap
from snrecon.report.agreement import Agreement, agreement
from snrecon.report.result_text import inside

Panel = Callable[[Any], None]
"""Draws itself into the axes it is given."""
ONE_ROW = 5
"""Up to so many panels stand side by side; more make two rows."""
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
    of sigma (and its root mean square relative to sigma), the ratio to and the scatter against a
    Monte Carlo map, and the sigma of another method on the same scale. Maps are grey where most
    voxels have no signal (``|x| < 3 sigma``).
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
    with matplotlib.rc_context({"font.size": 11, "axes.titlesize": 12}):
        drawing = _draw(panels, title or _title(result))
        drawing.savefig(path, dpi=100)
    return Path(path)


def _draw(panels: list[Panel], title: str) -> Any:
    """Panels on a grid of equal squares, each with room for its colour bar."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = len(panels) if len(panels) <= ONE_ROW else -(-len(panels) // 2)
    rows = -(-len(panels) // columns)
    square, right, below, above = 2.35, 0.85, 0.65, 0.5  # inches
    width, height = columns * (square + right) + 0.1, rows * (square + below) + above
    drawing = Figure(figsize=(width, height))
    FigureCanvasAgg(drawing)
    drawing.text(0.5, 1 - 0.24 / height, title, ha="center", va="center", fontsize=13)
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        left = 0.1 + column * (square + right)
        bottom = height - above - (row + 1) * (square + below) + 0.45
        axes = drawing.add_axes((left / width, bottom / height, square / width, (square) / height))
        panel(axes)
    return drawing


def _bar(axes: Any, mappable: Any, label: str) -> Any:
    """A colour bar as high as its panel."""
    bar = axes.figure.colorbar(mappable, cax=axes.inset_axes((1.02, 0, 0.05, 1)))
    bar.set_label(label, labelpad=2)
    return bar


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
    where = _shown(result)
    size = result.image.abs()
    shared = [result.sigma[where]]
    if other is not None:
        shared.append(other.sigma[_shown(other) & where])
    sigma_top = _top(torch.cat(shared), 0.995)
    panels = [
        _map("image |x|", size, None, "gray", 0, _top(size[where], 0.95), UNIT),
        _map(
            f"noise sigma ({result.estimator})", result.sigma, where, "viridis", 0, sigma_top, UNIT
        ),
        _map("SNR = |x| / sigma", result.snr, where, "magma", 0, _top(result.snr[where], 0.99), ""),
    ]
    if result.g_factor is not None:
        top = max(_top(result.g_factor[where], 0.995), 1.0)
        panels.append(_map("g-factor", result.g_factor, where, "inferno", 0, top, ""))
    error = result.standard_error
    if error is not None and bool((error > 0).any()):
        name = f"error bar of sigma: {100 * result.relative_error:.1f} %"
        panels.append(_map(name, error, where, "cividis", 0, _top(error[where], 0.995), UNIT))
    if monte_carlo is not None:
        panels += [_ratio(result, monte_carlo, where), _scatter(result, monte_carlo)]
    if other is not None:
        name = f"sigma of {other.method} ({other.estimator})"
        panels.append(_map(name, other.sigma, _shown(other), "viridis", 0, sigma_top, UNIT))
    return panels


def _top(values: Tensor, quantile: float) -> float:
    """A robust maximum, never 0."""
    if values.numel() == 0:
        return 1.0
    return max(float(np.quantile(values.double().cpu().numpy(), quantile)), 1e-30)


def _shown(result: NoiseMap) -> Tensor:
    """Voxels to colour: :func:`inside`, with single voxels filled in or dropped by majority."""
    where = inside(result)
    share = torch.nn.functional.avg_pool2d(
        where[None].float(), 5, stride=1, padding=2, count_include_pad=False
    )[0]
    return (share > 0.5) & (result.sigma > 0)


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

    def draw(axes: Any) -> None:
        shown = values.detach().cpu().double().numpy()
        if where is not None:
            shown = np.ma.masked_where(~where.cpu().numpy(), shown)
        axes.set_facecolor("0.82")
        picture = axes.imshow(
            shown, cmap=colours, vmin=low, vmax=high, interpolation="nearest", origin="upper"
        )
        axes.set(title=title, xticks=[], yticks=[])
        _bar(axes, picture, unit).formatter.set_useOffset(False)

    return draw


def _ratio(result: NoiseMap, monte_carlo: NoiseMap, where: Tensor) -> Panel:
    """Ratio of both maps, centred on 1."""
    ratio = result.sigma / monte_carlo.sigma.clamp_min(1e-30)
    width = max(_top((ratio[where] - 1).abs(), 0.99), 0.05)
    return _map(
        f"{result.estimator} / Monte Carlo", ratio, where, "RdBu_r", 1 - width, 1 + width, ""
    )


def _scatter(result: NoiseMap, monte_carlo: NoiseMap) -> Panel:
    """Both maps against each other, with the identity line."""

    def draw(axes: Any) -> None:
        where_both = inside(result) & (monte_carlo.sigma > 0)
        a = monte_carlo.sigma[where_both].detach().cpu().double().numpy()
        b = result.sigma[where_both].detach().cpu().double().numpy()
        top = 1.05 * max(np.quantile(a, 0.999), np.quantile(b, 0.999))
        counts = axes.hexbin(a, b, gridsize=45, extent=(0, top, 0, top), mincnt=1, cmap="Blues",
                             bins="log")  # fmt: skip
        axes.plot([0, top], [0, top], color="tab:red", lw=1)
        axes.set(xlim=(0, top), ylim=(0, top), aspect="equal", title="agreement, voxel by voxel")
        axes.set_xlabel("sigma, Monte Carlo")
        axes.set_ylabel(f"sigma, {result.estimator}")
        axes.ticklabel_format(scilimits=(-2, 3))
        axes.tick_params(labelleft=False)  # the same numbers as across
        _bar(axes, counts, "voxels")
        both = agreement(result, monte_carlo, where_both)
        axes.text(
            0.04, 0.96,
            f"{_correlation(both)}\n(raw {both.correlation:.3f})\n"
            f"mean ratio {both.mean_ratio:.3f}",
            transform=axes.transAxes, va="top", fontsize=10,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2},
        )  # fmt: skip

    return draw


def _correlation(both: Agreement) -> str:
    if both.ceiling == 0:
        return "no spatial structure"
    return f"r = {both.corrected:.3f}, corrected"
