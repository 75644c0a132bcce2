"""What a noise map means for nonlinear methods: its gap to truly repeated scans.

A user means by noise the spread over repeated measurements of the same object. Sketch and replicas
describe noise about one measurement that is noisy already. For linear methods these are the same;
for nonlinear ones they are not, and here the gap is measured on a simulated brain whose noiseless
k-space is known. The reconstruction (maps and lambda of the first measurement) is held fixed; it is
applied to many independent noisy measurements, and the SD of their component along the mean image's
phase is the truth. Against it stand the sketch and the replicas at a few single measurements. All
numbers are root mean squares over the head, squares averaged over measurements.

    python -m benchmarks.repeats [--quick] [--fresh]

Finished cells are kept under ``build/benchmarks/repeats``.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.real_scans import ROOT
from benchmarks.scores import weights_checksum
from benchmarks.table import publish, table
from snrecon.data import Scan
from snrecon.noise.problem import Problem
from snrecon.noise.replicas import replicas
from snrecon.noise.sketch import sketch
from snrecon.physics.fourier import fft, grid_axes
from snrecon.physics.masks import make_mask
from snrecon.physics.phantom import WHITE, brain_phantom, coil_maps, noise_covariance
from snrecon.physics.thermal import NoiseColouring
from snrecon.recon.base import Bound
from snrecon.recon.forward_model import forward_model
from snrecon.recon.registry import load

CACHE = ROOT / "build" / "benchmarks" / "repeats"
METHODS = ("sense", "tv", "wavelet", "varnet")
LAMBDA = {"sense": 0.01}
SNRS = (15.0, 40.0)


@dataclass(frozen=True)
class Gap:
    """One method at one noise level."""

    method: str
    snr: float
    """About that of white matter, were the scan fully sampled."""
    truth: float
    """RMS SD over true repeats, image units."""
    truth_error: float
    """Relative standard error."""
    sketch: float
    """RMS sigma of the sketch over ``truth``."""
    sketch_error: float
    replicas: float
    replicas_error: float
    bias: float
    """RMS difference of the mean over repeats from the true object, over ``truth``."""


@dataclass(frozen=True, eq=False)
class Object:
    """A known object, its noiseless measurement, and repeats of it."""

    scan: Scan
    """The first measurement, with maps estimated from its calibration lines."""
    clean: Tensor
    """Noiseless k-space on the mask."""
    truth: Tensor
    """The object in the units of those maps."""
    inside: Tensor

    def measurement(self, index: int) -> Scan:
        """Repeat number ``index``; 0 is ``scan``."""
        return replace(self.scan, kspace=self.clean + noise(self.scan, index))


def noise(scan: Scan, index: int) -> Tensor:
    """Independent noise of a repeat."""
    generator = torch.Generator().manual_seed(7_000_000 + index)
    return NoiseColouring.of(scan).sample(generator, scan.kspace.dtype)


def simulate(snr: float, size: int = 96, coils: int = 8, seed: int = 3) -> Object:
    """The phantom at R = 4 with 10 % calibration lines."""
    generator = torch.Generator().manual_seed(seed)
    grid = (size, size)
    image, maps = brain_phantom(grid, generator), coil_maps(coils, grid)
    model = noise_covariance(coils, generator, level=math.sqrt(2) * WHITE / snr)
    mask = make_mask("random", grid, 4, calibration=round(0.1 * size), seed=seed).tensor
    clean = fft(maps * image, grid_axes(2)) * mask
    first = Scan(clean, mask, None, model, source="simulated brain")
    first = replace(first, kspace=clean + noise(first, 0))
    estimated = forward_model(first).maps
    scan = replace(first, maps=model.unwhiten(estimated))
    truth = (estimated.conj() * model.whiten(maps)).sum(0) * image
    inside = (image.abs() > 0.1) & (truth != 0)
    return Object(scan, clean, truth, inside)


def true_spread(
    bound: Bound, known: Object, repeats: int, batch: int = 8
) -> tuple[float, float, float]:
    """Mean square over the head of the SD over repeats, its relative error, and the bias."""
    images = []
    for start in range(1, repeats + 1, batch):
        stop = min(start + batch, repeats + 1)
        kspaces = torch.stack([known.measurement(k).kspace for k in range(start, stop)])
        with torch.no_grad():
            images.append(bound(kspaces)[:, known.inside])
    values = torch.cat(images).to(torch.complex128)
    mean = values.mean(0)
    along = ((values - mean) * mean.conj() / mean.abs()).real
    squares = along.square().mean(1) * repeats / (repeats - 1)
    level = float(squares.mean())
    bias = float((mean - known.truth[known.inside]).abs().square().mean())
    return level, float(squares.std()) / repeats**0.5 / level, bias


def measure(
    method: str,
    snr: float,
    repeats: int = 256,
    points: int = 4,
    passes: int = 48,
    size: int = 96,
    cache: Path | None = CACHE,
) -> Gap:
    """Truth, sketch and replicas of one method."""
    settings = [repeats, points, passes, size, weights_checksum() if method == "varnet" else ""]
    path = None if cache is None else cache / f"{method}-{snr:g}.json"
    if path is not None and path.exists():
        stored = json.loads(path.read_text())
        if stored.pop("settings") == settings:
            return Gap(**stored)
    known = simulate(snr, size)
    bound = load(method, lamda=LAMBDA.get(method)).bind(known.scan)
    truth, error, bias = true_spread(bound, known, repeats)
    found: dict[str, list[float]] = {"sketch": [], "replicas": []}
    for index in range(points):
        problem = Problem(bound, known.measurement(index))
        for name, estimator in (("sketch", sketch), ("replicas", replicas)):
            state = estimator(problem, tolerance=0, max_passes=passes, seed=100 + index)
            variance = state.moments.covariance()[0][known.inside]
            found[name].append(float(variance.mean()))
    numbers = {}
    for name, levels in found.items():
        values = torch.tensor(levels, dtype=torch.float64)
        relative = float(values.std() / values.mean()) / points**0.5 if points > 1 else 0.0
        ratio = float((values.mean() / truth).sqrt())
        numbers[name] = ratio
        numbers[f"{name}_error"] = ratio * math.hypot(relative, error) / 2
    gap = Gap(method, snr, truth**0.5, error / 2, bias=(bias / truth) ** 0.5, **numbers)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**asdict(gap), "settings": settings}))
    return gap


def run(
    methods: Sequence[str] = METHODS,
    snrs: Sequence[float] = SNRS,
    progress: Callable[[str], None] | None = None,
    **options: object,
) -> list[Gap]:
    """Every method at every noise level."""
    gaps = []
    for snr in snrs:
        for method in methods:
            gaps.append(measure(method, snr, **options))  # type: ignore[arg-type]
            if progress is not None:
                progress(f"{method} at SNR {snr:g}")
    return gaps


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few repeats, nothing written")
    parser.add_argument("--fresh", action="store_true", help="do not use finished cells")
    args = parser.parse_args()
    if args.fresh and CACHE.is_dir():
        for path in CACHE.glob("*.json"):
            path.unlink()
    if args.quick:
        gaps = run(progress=print, repeats=24, points=2, passes=8, size=64, cache=None)
    else:
        gaps = run(progress=print)
    body = table(
        ["method", "SNR", "sketch / true repeats", "replicas / true repeats",
         "bias / SD of true repeats"],
        [
            (
                g.method, f"{g.snr:g}", f"{g.sketch:.3f} +- {g.sketch_error:.3f}",
                f"{g.replicas:.3f} +- {g.replicas_error:.3f}", f"{g.bias:.2f}",
            )
            for g in gaps
        ],
    )
    body += (
        "\n\nRoot mean squares over the head of a simulated brain, random mask, R = 4; SNR of "
        "white matter were the scan fully sampled; sense with lambda 0.01, tv and wavelet with "
        "the lambda they choose. 1 is no gap. The bias is RMS over the head, against the object."
    )
    publish("repeats", "Noise maps against truly repeated scans", body, keep=not args.quick)


if __name__ == "__main__":
    main()
