"""What is uncertain in generative reconstructions: noise through a sampler, and calibration.

**Noise.** The central 64x64 samples of the measured brain ``pulseq``, four virtual coils, 2D
Gaussian mask, R = 4; the sampler ``dds`` with 50 evaluations. The variance at one fixed seed by
Jacobian sketch is compared with replicas (noise scaled by 0.01, where first order is what they
sample): mean variances in the head, with standard errors from the scatter of several runs; then the
variance is decomposed (:func:`snrecon.uncertainty.decompose`).

**Calibration.** Posterior spread of the samplers (16 draws), spread of restarts of the untrained
network, and thermal noise maps of varnet and tv, each against the error that was made, on

- ``flair``: a simulated measurement of the validation image (a brain of the contrast and grid that
  the prior was validated on),
- ``pulseq`` and ``mripy``: measured brains of other people, coils and scanners,
- ``cloudmr``: a measured phantom, an anatomy that no training ever saw.

The reference of the measured scans is their fully sampled matched filter, which carries noise of
its own (SD 0.71 in these units) that counts as error here.

    python -m benchmarks.uncertainty [--quick] [--finished] [--part noise|calibration]
                                     [--scans pulseq ...] [--methods dds ...] [--device cuda]
                                     [--limit-minutes 10]

Maps are kept under ``build/benchmarks/uncertainty`` and reused; in them stands on which device they
were measured. ``--limit-minutes`` begins no map after so many minutes.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.device import CPU, Limit, add_options, chosen_device, label
from benchmarks.generative import COILS
from benchmarks.real_scans import ROOT, case, full_scan
from benchmarks.table import publish, table
from snrecon.data import NoiseMap, Scan
from snrecon.errors import SnreconWarning
from snrecon.noise import noise_map
from snrecon.physics.fourier import grid_axes, ifft
from snrecon.physics.masks import make_mask
from snrecon.recon.base import Reconstructor
from snrecon.recon.forward_model import forward_model
from snrecon.recon.registry import load
from snrecon.report.calibration_figure import calibration_figure
from snrecon.training.images import draw_image, load_source
from snrecon.training.simulate import simulate_scan
from snrecon.uncertainty import Calibration, Estimate, SpreadMap, calibration, decompose, posterior

CACHE = ROOT / "build" / "benchmarks" / "uncertainty"
IMAGES = ROOT / "docs" / "images"
MASKS = (("gaussian1d", 4.0), ("gaussian2d", 8.0))
SCANS = ("flair", "pulseq", "mripy", "cloudmr")
SAMPLERS: dict[str, Callable[[], Reconstructor]] = {
    "dds": lambda: load("score"),
    "langevin": lambda: load("langevin"),
    "convdecoder": lambda: load("convdecoder"),
}
NOISE = ("varnet", "tv")
"""Methods whose thermal noise map is held against the error."""
DRAWS = {"dds": 16, "langevin": 16, "convdecoder": 5}
PROBES, RUNS, ROUNDS = 48, 6, 16
SMALL = 64


def low_resolution() -> tuple[Scan, Tensor]:
    """The central samples of ``pulseq``, undersampled, and its head."""
    full = full_scan("pulseq", COILS)
    middle = tuple(slice((n - SMALL) // 2, (n + SMALL) // 2) for n in full.grid)
    scan = Scan(kspace=full.kspace[(slice(None), *middle)].contiguous(),
                noise=replace(full.require_noise(), spectrum=None), source="pulseq, 64x64")
    power = ifft(scan.kspace, grid_axes(2)).abs().square().sum(0).sqrt()
    head = power > 0.15 * power.flatten().quantile(0.99)
    return scan.undersample(make_mask("gaussian2d", scan.grid, 4.0, 10, seed=0).tensor), head


def moved(scan: Scan, where: torch.device | str) -> Scan:
    """The scan on a device, with the coil maps that the CPU finds."""
    if torch.device(where).type == "cpu":
        return scan
    if scan.maps is None:
        scan = replace(scan, maps=scan.require_noise().unwhiten(forward_model(scan).maps))
    return scan.to(where)


def noise_part(quick: bool, where: torch.device | str = CPU) -> str:
    """Fixed-seed variance by both estimators, decomposition, and the picture of it."""
    scan, head = low_resolution()
    scan, head = moved(scan, where), head.to(where)
    device = torch.device(where).type
    state = None if quick else _place("decompose.h5" if device == CPU else f"decompose-{device}.h5")
    recon = load("score")
    each, runs = (2, 3) if quick else (PROBES // RUNS, RUNS)
    both: dict[str, Tensor] = {}
    for estimator in ("sketch", "replicas"):
        options: dict[str, Any] = {"noise_scale": 0.01} if estimator == "replicas" else {}
        found = [noise_map(recon, scan, estimator=estimator, tolerance=0, max_passes=each,
                           seed=100 * (estimator == "replicas") + run, **options)
                 for run in range(runs)]
        both[estimator] = torch.stack([(one.sigma_complex[head] ** 2).mean() for one in found])
    mean = {name: float(values.mean()) for name, values in both.items()}
    error = {name: float(values.std() / runs**0.5) for name, values in both.items()}
    parts = decompose(recon, scan, rounds=3 if quick else ROUNDS, seeds=3, regions={"head": head},
                      seed=5, state=state)
    lines = []
    for name in ("thermal", "posterior", "total", "fixed_seed"):
        _, _, value, width = getattr(parts, name).regions["head"]
        lines.append([name.replace("_", " "), f"{value:.3f} +- {width:.3f}"])
    if not quick:
        _picture(parts, head, IMAGES / "sampler_noise.png")
    scatter = sum(value**2 for value in error.values()) ** 0.5
    off = (mean["sketch"] - mean["replicas"]) / scatter
    told = ", ".join(f"{name} {mean[name]:.3f} +- {error[name]:.3f}" for name in mean)
    return (f"Variance at one fixed seed (complex, mean over the head, noise of full sampling = "
            f"1): {told}, {runs} runs of {each} passes each; they differ by {off:+.1f} standard "
            "errors.\n\n"
            + table(["part of the variance", "complex, mean over the head"], lines)
            + f"\n\n{parts.rounds} rounds of {parts.seeds} seeds. Thermal part by finite "
            "differences over that to first order: "
            f"{parts.details['finite_over_first_order'][0]:.2f} +- "
            f"{parts.details['finite_over_first_order'][1]:.2f}.")


def _place(name: str) -> Path:
    CACHE.mkdir(parents=True, exist_ok=True)
    return CACHE / name


def _picture(parts: Any, head: Tensor, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    maps = {"mean of the samples": parts.mean.abs(), "thermal": parts.thermal.sigma,
            "posterior": parts.posterior.sigma, "total": parts.total.sigma,
            "fixed seed": parts.fixed_seed.sigma}
    maps, head = {name: values.cpu() for name, values in maps.items()}, head.cpu()
    top = float(maps["total"][head].quantile(0.98))
    drawing = Figure(figsize=(15, 3.6), facecolor="white", layout="constrained")
    FigureCanvasAgg(drawing)
    for axes, (name, values) in zip(drawing.subplots(1, 5), maps.items(), strict=True):
        image = name.startswith("mean")
        limit = float(values[head].quantile(0.99)) if image else top
        shown = axes.imshow(values, cmap="gray" if image else "viridis", vmin=0, vmax=limit)
        axes.set(title=name, xticks=[], yticks=[])
        bar = drawing.colorbar(shown, ax=axes, shrink=0.8)
        bar.set_label("magnitude / noise SD" if image else "SD / noise SD")
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=80)


@dataclass(frozen=True)
class Place:
    """One undersampled scan with its reference and region."""

    scan: Scan
    reference: Tensor
    region: Tensor


def place(scan: str, kind: str, acceleration: float) -> Place:
    """A scan of :data:`SCANS`."""
    if scan != "flair":
        chosen = case(scan, kind, acceleration, 0, coils=COILS)
        return Place(chosen.scan, chosen.reference, chosen.head)
    source = load_source("torchio_flair/axial.npz:flair", voxel=0.75)
    picture = draw_image(source, 128, torch.Generator().manual_seed(1))
    mask = make_mask(kind, (128, 128), acceleration, 20 if kind == "gaussian2d" else 10, seed=0)
    measured, truth = simulate_scan(picture, COILS, 30.0, mask.tensor, seed=1)
    return Place(measured, truth, picture > 0.1)


def estimate(
    scan: str, kind: str, acceleration: float, method: str, device: torch.device | str = CPU
) -> Estimate:
    """Of one method on one scan, from the cache where it is there."""
    path = _place(f"{scan}-{kind}-{acceleration:g}-{method}" + (
        ".h5" if method in SAMPLERS else "-noise.h5"))
    where = place(scan, kind, acceleration)
    name = f"{scan} {kind}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SnreconWarning)
        if method in SAMPLERS:
            if not path.exists():
                found = posterior(SAMPLERS[method](), moved(where.scan, device), DRAWS[method],
                                  state=path.with_suffix(".state"))
                replace(found, details={**found.details, "device": label(device)}).save(path)
            return Estimate.of(SpreadMap.load(path), where.reference, region=where.region,
                               scan=name)
        if not path.exists():
            noise = noise_map(load(method), moved(where.scan, device), tolerance=0.1)
            replace(noise, details={**noise.details, "device": label(device)}).save(path)
        return Estimate.of(NoiseMap.load(path), where.reference, region=where.region, scan=name)


def exists(scan: str, kind: str, acceleration: float, method: str) -> bool:
    """Whether the maps are there."""
    name = f"{scan}-{kind}-{acceleration:g}-{method}"
    return (CACHE / (name + (".h5" if method in SAMPLERS else "-noise.h5"))).exists()


def calibration_part(
    scans: tuple[str, ...], methods: tuple[str, ...], measure: bool,
    device: torch.device | str = CPU, limit: Limit | None = None,
) -> str:
    """One table row a method and scan; both masks together. One figure a scan. Once the limit is
    over, of the maps at hand."""
    lines = []
    for scan in scans:
        shown: dict[str, Calibration] = {}
        for method in methods:
            items = [estimate(scan, kind, rate, method, device) for kind, rate in MASKS
                     if exists(scan, kind, rate, method)
                     or (measure and not (limit and limit.over))]
            if not items:
                continue
            found = calibration(items)
            shown[f"{method} ({'spread' if method in SAMPLERS else 'noise'})"] = found
            low, high = found.coverage_limits
            lines.append([
                scan, method, "spread" if method in SAMPLERS else "thermal noise", len(items),
                f"{found.rms_error:.2f}", f"{found.rms_sd:.2f}", f"{found.z_sd:.2f}",
                f"{100 * found.coverage:.0f} % ({100 * low:.0f} to {100 * high:.0f})",
                f"{found.width:.2f}", f"{found.ence:.2f}"])
            print(scan, method, found, flush=True)
        if shown:
            calibration_figure(shown, IMAGES / f"calibration_{scan}.png",
                               f"{scan}: what methods say of their errors", "noise SD")
    return table(["scan", "method", "what its SD is", "masks", "RMS error", "RMS SD", "z SD",
                  "coverage of 95 % intervals", "width", "ENCE"], lines)


def main() -> None:
    """Measure what is missing, print tables, draw pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few passes, nothing kept")
    parser.add_argument("--finished", action="store_true", help="calibration of the maps at hand")
    parser.add_argument("--part", choices=("noise", "calibration", "both"), default="both")
    parser.add_argument("--scans", nargs="*", default=SCANS)
    parser.add_argument("--methods", nargs="*", default=(*SAMPLERS, *NOISE))
    add_options(parser, limit=True)
    args = parser.parse_args()
    where, limit = chosen_device(args.device), Limit(args.limit_minutes)
    torch.set_num_threads(1)
    if args.part in ("noise", "both"):
        publish("sampler_noise", "Noise through a diffusion sampler", noise_part(args.quick, where),
                keep=not args.quick, script="uncertainty", device=label(where))
    if args.part in ("calibration", "both") and not args.quick:
        body = calibration_part(tuple(args.scans), tuple(args.methods), not args.finished,
                                where, limit)
        publish("calibration", "Calibration: what methods say of their errors", body,
                keep=tuple(args.scans) == SCANS and not limit.over, script="uncertainty")


if __name__ == "__main__":
    main()
