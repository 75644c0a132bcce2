"""Does the estimated risk follow the true error, and does it find the best lambda?

A simulated brain whose noiseless k-space is known, 8 coils, with its true coil maps or with maps
estimated from the calibration lines, fully sampled and undersampled. Total variation and wavelets
over a range of lambda: the estimates, from one noisy measurement each, beside the true projected
error, the true prediction error and the true mean squared error of the image. Then lambda="sure"
against the lambda that would be best if the truth were known, for the same projected error and for
that of the image; and the bias of the estimate over many measurements.

    python -m benchmarks.sure [--quick]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from benchmarks.real_scans import ROOT
from benchmarks.table import insert, publish, table
from snrecon.data import Scan
from snrecon.physics.fourier import fft, grid_axes
from snrecon.physics.masks import make_mask
from snrecon.physics.phantom import WHITE, brain_phantom, coil_maps, noise_covariance
from snrecon.physics.thermal import NoiseColouring
from snrecon.recon.forward_model import forward_model
from snrecon.recon.registry import load
from snrecon.recon.risk import PredictionRisk, ProjectedRisk, Risk
from snrecon.recon.sure_lambda import least
from snrecon.uncertainty.sure import sure

PICTURE = ROOT / "docs" / "images" / "sure.png"
METHODS = ("tv", "wavelet")
SNR = 20.0
"""About that of white matter, were the scan fully sampled."""
CURVE = tuple(2.0**k for k in range(-5, 4))
"""lambda over that of the noise-level rule."""


@dataclass(frozen=True)
class Setting:
    """How a brain is measured."""

    acceleration: int
    exact_maps: bool
    size: int = 48
    seed: int = 3

    @property
    def name(self) -> str:
        """For tables and the picture."""
        return f"R = {self.acceleration}, {'true' if self.exact_maps else 'estimated'} maps"


SETTINGS = (Setting(1, True), Setting(2, True), Setting(4, True), Setting(4, False))


@dataclass(frozen=True, eq=False)
class Known:
    """A measurement of which everything is known."""

    scan: Scan
    truth: Tensor
    """The object in the units of the scan's maps."""
    risks: dict[str, Risk]
    goals: dict[str, Tensor]
    """``T m`` of each risk, from the noiseless k-space."""

    def error(self, kind: str, image: Tensor) -> float:
        """The true squared error that a risk estimates, per element; "image" for all of it."""
        if kind == "image":
            support = self.risks["projected"].counted
            return float((image - self.truth).abs().square()[support].double().mean())
        risk = self.risks[kind]
        gap = (risk.image(image) - self.goals[kind]).abs().square().double()
        return float(gap[risk.counted].mean())

    def signal(self, kind: str) -> float:
        """Mean square of what the error is measured against."""
        if kind == "image":
            return float(self.truth.abs().square()[self.risks["projected"].counted].mean())
        return float(self.goals[kind].abs().square()[self.risks[kind].counted].mean())


def measured(setting: Setting, repeat: int = 0) -> Known:
    """One noisy measurement of the brain; maps, where estimated, are those of the first."""
    generator = torch.Generator().manual_seed(setting.seed)
    grid = (setting.size, setting.size)
    image, maps = brain_phantom(grid, generator), coil_maps(8, grid)
    model = noise_covariance(8, generator, level=math.sqrt(2) * WHITE / SNR)
    mask = torch.ones(grid, dtype=torch.bool)
    if setting.acceleration > 1:
        lines = round(0.12 * setting.size)
        mask = make_mask("random", grid, setting.acceleration, lines, setting.seed).tensor
    clean = fft(maps * image, grid_axes(2)) * mask
    bare = Scan(clean, mask, None, model, source="simulated brain")

    def drawn(index: int) -> Tensor:
        noise = torch.Generator().manual_seed(5_000_000 + index)
        return clean + NoiseColouring.of(bare).sample(noise, clean.dtype)

    white = model.whiten(maps)
    if setting.exact_maps:
        used = white / white.abs().square().sum(0).sqrt()
    else:
        used = forward_model(replace(bare, kspace=drawn(0))).maps
    scan = replace(bare, kspace=drawn(repeat), maps=model.unwhiten(used))
    own = forward_model(scan)
    risks: dict[str, Risk] = {"projected": ProjectedRisk(own), "prediction": PredictionRisk(own)}
    goals = {kind: risk.data(clean) for kind, risk in risks.items()}
    return Known(scan, (used.conj() * white).sum(0) * image, risks, goals)


@dataclass(frozen=True)
class Point:
    """Everything at one lambda, each error over the signal that it is measured against."""

    lamda: float
    estimates: dict[str, tuple[float, float]]
    """By kind: estimate and its error from the probes."""
    errors: dict[str, float]
    """The true ones."""


def curve(known: Known, method: str, factors: Sequence[float] = CURVE) -> list[Point]:
    """Estimates and true errors over lambda."""
    rule = float(load(method).bind(known.scan).details["lambda"])
    points = []
    for factor in factors:
        bound = load(method, lamda=factor * rule).bind(known.scan)
        image = bound(known.scan.kspace)
        estimates = {}
        for kind in ("projected", "prediction"):
            found = sure(bound, known.scan, risk=kind, probes=4, noise_error=False)
            scale = known.signal(kind)
            estimates[kind] = (found.risk / scale, found.standard_error / scale)
        errors = {k: known.error(k, image) / known.signal(k)
                  for k in ("projected", "prediction", "image")}
        points.append(Point(factor * rule, estimates, errors))
    return points


@dataclass(frozen=True)
class Choice:
    """lambda="sure" on one measurement, against what the truth would choose."""

    lamda: float
    ratio: float
    """Over the lambda of least true projected error."""
    regret: float
    """True projected error over the least there is."""
    image: float
    """True error of the image over its least."""
    rule: float
    """The same for the lambda of the noise-level rule."""
    tracked: float
    """Estimated over true projected error at the chosen lambda."""
    stated: float
    """The error that the estimate states of itself, of probes and noise, over the true one."""
    published: float
    """The published estimate over the true error of the image there."""


def choice(known: Known, method: str, **options: Any) -> Choice:
    """What lambda="sure" is worth."""
    scan = known.scan
    bound = load(method, lamda="sure", **options).bind(scan)
    lamda = float(bound.details["lambda"])
    seen: dict[float, Tensor] = {}

    def image(value: float) -> Tensor:
        if value not in seen:
            seen[value] = load(method, lamda=value, **options)(scan)
        return seen[value]

    best: dict[str, float] = {}
    where: dict[str, float] = {}
    for kind in ("projected", "image"):
        true = partial(known.error, kind)
        where[kind] = math.exp(least(lambda t, e=true: e(image(math.exp(t))), math.log(lamda))[0])
        best[kind] = known.error(kind, image(where[kind]))
    error = known.error("projected", image(lamda))
    mse = known.error("image", image(lamda))
    ruled = load(method, **options)(scan) if method != "sense" else image(lamda)
    found = sure(bound, scan, probes=8)
    return Choice(
        lamda=lamda,
        ratio=lamda / where["projected"],
        regret=error / best["projected"],
        image=mse / best["image"],
        rule=known.error("image", ruled) / best["image"],
        tracked=found.risk / error,
        stated=math.hypot(found.standard_error, found.noise_error or 0) / error,
        published=sure(bound, scan, risk="published", probes=8).risk / mse,
    )


def bias(setting: Setting, recon: Any, kind: str, repeats: int) -> tuple[float, float, float]:
    """Mean of estimate minus true error, over the mean true error; its standard error; and the
    stated noise error over the actual scatter."""
    bound = recon.bind(measured(setting).scan)
    gaps, errors, stated = [], [], []
    for index in range(repeats):
        known = measured(setting, index)
        found = sure(bound, known.scan, risk=kind, probes=4, seed=index)
        errors.append(known.error(kind, bound(known.scan.kspace)))
        gaps.append(found.risk - errors[-1])
        stated.append(math.hypot(found.noise_error or 0, found.standard_error) ** 2)
    size = fmean(errors)
    scatter = math.sqrt(fmean(g * g for g in gaps))
    return (fmean(gaps) / size, stdev(gaps) / math.sqrt(repeats) / size,
            math.sqrt(fmean(stated)) / scatter)  # fmt: skip


def draw(curves: dict[tuple[str, str], list[Point]], chosen: dict[tuple[str, str], float],
         path: Path) -> None:
    """A panel for every method and setting."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(method for method, _ in curves))
    names = list(dict.fromkeys(name for _, name in curves))
    figure = Figure(figsize=(3.4 * len(names), 3.0 * len(methods)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(methods), len(names), squeeze=False)
    for (method, name), points in curves.items():
        axis = axes[methods.index(method)][names.index(name)]
        x = [p.lamda for p in points]
        for kind, colour in (("projected", "tab:blue"), ("prediction", "tab:orange")):
            axis.plot(x, [p.errors[kind] for p in points], color=colour, label=f"true {kind}")
            axis.errorbar(
                x, [p.estimates[kind][0] for p in points],
                [p.estimates[kind][1] for p in points], fmt="o", markersize=3, capsize=2,
                linewidth=0.8, color=colour, label=f"estimated {kind}",
            )  # fmt: skip
        axis.plot(x, [p.errors["image"] for p in points], "k--", label="true, whole image")
        axis.axvline(chosen[method, name], color="0.6", linewidth=0.8, label="lambda by SURE")
        axis.set(xscale="log", yscale="log", title=f"{method}, {name}")
        axis.title.set_fontsize(9)
        axis.tick_params(which="both", labelsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("lambda")
    for row in axes:
        row[0].set_ylabel("normalised squared error")
    axes[0][0].legend(fontsize=6)
    figure.savefig(path, dpi=80)


def main() -> None:
    """Curves, choices and bias."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few and small, nothing written")
    quick = parser.parse_args().quick
    settings = (Setting(1, True, 32), Setting(4, True, 32)) if quick else SETTINGS
    repeats, runs = (8, 1) if quick else (60, 2)
    curves, chosen, rows = {}, {}, []
    for setting in settings:
        for method in METHODS:
            found = [choice(measured(setting, k), method) for k in range(runs)]
            key = (method, setting.name)
            chosen[key] = found[0].lamda
            curves[key] = curve(measured(setting), method, CURVE[::3] if quick else CURVE)
            rows.append((
                method, setting.name,
                ", ".join(f"{f.ratio:.2f}" for f in found),
                *(f"{fmean(v):.3f} ({max(v):.3f})"
                  for v in ([f.regret for f in found], [f.image for f in found],
                            [f.rule for f in found])),
                ", ".join(f"{f.tracked:.2f} +- {f.stated:.2f}" for f in found),
                f"{fmean(f.published for f in found):.2f}",
            ))  # fmt: skip
            print(rows[-1], flush=True)
    choices = table(
        ["method", "sampling", "lambda / best lambda", "projected error / least",
         "image error / least", "the same, noise-level rule", "estimate / true projected error",
         "published estimate / true image error"],
        rows,
    )  # fmt: skip
    biases = table(
        ["method", "sampling", "risk", "(estimate - true) / true", "stated / actual scatter"],
        [
            (name, setting.name, kind, f"{b[0]:+.4f} +- {b[1]:.4f}", f"{b[2]:.2f}")
            for setting in settings[::2]
            for name, recon in (("sense, lambda 0.05", load("sense", lamda=0.05)),
                                ("wavelet, 20 steps", load("wavelet", lamda=0.3, iterations=20)))
            for kind in ("projected", "prediction")
            for b in [bias(setting, recon, kind, repeats)]
        ],
    )  # fmt: skip
    note = (
        f"\n\nSimulated brain, 8 coils, random lines, SNR {SNR:g} of white matter were it fully "
        f"sampled; means over {runs} measurements (largest in brackets). Least: over lambda, the "
        "truth being known.\n\n"
        f"Bias of the estimate over {repeats} measurements, and its scatter about the actual "
        "error of each:\n\n"
    )
    publish("sure", "Risk estimates against true errors", choices + note + biases, keep=not quick)
    if not quick:
        draw(curves, chosen, PICTURE)
        insert(ROOT / "docs" / "results.md", "sure", choices + note + biases)


if __name__ == "__main__":
    main()
