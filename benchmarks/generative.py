"""Every reconstruction family on the two measured brains, generative and untrained ones among them.

The scans are whitened and compressed to four virtual coils, undersampled with several mask seeds,
and scored as :mod:`benchmarks.scores` does, inside the head. Methods that return a root sum of
squares (score-MRI's algorithms for several coils) are scored against that of the fully sampled
coils, all others against the fully sampled matched filter. tv and wavelet stand twice: with the
lambda of the least NMSE that anyone could have found (oracle), and with their own; sense only with
the former.

    python -m benchmarks.generative [--quick] [--scans pulseq] [--methods dds langevin]
                                    [--masks poisson:8] [--seeds 3] [--finished] [--published]
                                    [--device cuda] [--limit-minutes 10]

Samplers run with seed 0 and at most 100 noise levels; ``--published`` runs algorithms 4 and 5 once
with the published 500 (pulseq, 2D mask for 4, lines for 5). Evaluations are of the score network,
for all that it is given at once (real and imaginary parts, coils). Cells are kept under
``build/benchmarks/generative`` (:mod:`benchmarks.cells`), and say on which device they were
measured. ``--limit-minutes`` begins no cell after so many minutes.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import cells
from benchmarks.device import CPU, Limit, add_options, chosen_device, label, timed_table
from benchmarks.real_scans import BRAINS, ROOT, Case, case, full_scan
from benchmarks.scores import baseline, interval, score, weights_checksum
from benchmarks.table import publish
from snrecon.errors import SnreconWarning
from snrecon.physics.clock import clock
from snrecon.physics.fourier import grid_axes, ifft
from snrecon.recon.base import Reconstructor
from snrecon.recon.registry import load

CACHE = ROOT / "build" / "benchmarks" / "generative"
COILS = 4
MASKS = (("gaussian1d", 4.0), ("uniform1d", 4.0), ("gaussian2d", 8.0), ("poisson", 8.0))
SEEDS = 3
START = {"sense": 0.03, "tv": 0.2, "wavelet": 0.25}
OTHERS = ("zero_filled", "sense", "tv", "wavelet", "unet", "varnet", "e2e_varnet", "modl")


def _sampler(**settings: Any) -> Callable[[], Reconstructor]:
    return lambda: load("score", **settings)


GENERATIVE: dict[str, Callable[[], Reconstructor]] = {
    "algorithm 4, 100 levels": _sampler(algorithm=4, steps=100),
    "algorithm 5, 100 levels": _sampler(algorithm=5, steps=100),
    "dds": _sampler(algorithm="dds"),
    "dds, mean of 8": _sampler(algorithm="dds"),
    "dds from varnet": _sampler(algorithm="dds", start="varnet"),
    "langevin": lambda: load("langevin"),
    "latent": lambda: load("latent"),
    "convdecoder": lambda: load("convdecoder"),
}
PUBLISHED = {
    "algorithm 4, 500 levels": ("gaussian2d", 8.0, _sampler(algorithm=4)),
    "algorithm 5, 500 levels": ("gaussian1d", 4.0, _sampler(algorithm=5)),
}
DRAWS = {"dds, mean of 8": 8}
"""Samples whose mean is taken; one where none is given."""
WEIGHTS = {"latent": "autoencoder", "convdecoder": None}
"""Network of a method, where it is not the score."""


@dataclass(frozen=True)
class Setting:
    """One undersampled scan."""

    scan: str
    kind: str
    acceleration: float
    seed: int

    def case(self) -> Case:
        """The scan and its reference."""
        return case(self.scan, self.kind, self.acceleration, self.seed, coils=COILS)

    def cell(self, method: str) -> str:
        """Name of the cell of a method."""
        text = method.replace(" ", "_").replace(",", "")
        return f"{self.scan}-{self.kind}-{self.acceleration:g}-{self.seed}-{text}"


def checksum(method: str) -> str | None:
    """Of the weights that a method uses."""
    if method in GENERATIVE or method in PUBLISHED:
        network = WEIGHTS.get(method, "ncsnpp")
        return weights_checksum(network) if network else None
    return weights_checksum(method) if method in OTHERS[4:] else None


def finished(setting: Setting, method: str) -> dict[str, Any] | None:
    """The cell, if it was measured with the weights of now."""
    found: dict[str, Any] | None = cells.read(CACHE, setting.cell(method))
    return found if found and found["weights"] == checksum(method) else None


def rss(setting: Setting) -> Tensor:
    """Root sum of squares of the fully sampled coils."""
    images = ifft(full_scan(setting.scan, COILS).kspace, grid_axes(2))
    return images.abs().square().sum(0).sqrt()


def measure(
    setting: Setting, method: str, where: torch.device | str = CPU
) -> dict[str, Any]:
    """Scores, seconds and evaluations of one method on one scan."""
    if (done := finished(setting, method)) is not None:
        return done
    chosen = setting.case()
    there = chosen.to(where)
    found: dict[str, Any] = {"weights": checksum(method), "method": method,
                             "acceleration": chosen.scan.acceleration, "device": label(where)}
    if found["device"] != CPU and method in OTHERS:  # milliseconds, but for loading the kernels
        load(method)(there.scan)
    if method in START:
        begun = clock(where)
        load(method)(there.scan)
        found["seconds"] = clock(where) - begun
        found |= baseline(method, there, START[method])
    else:
        maker = GENERATIVE.get(method) or (PUBLISHED[method][2] if method in PUBLISHED else None)
        recon = maker() if maker else load(method)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SnreconWarning)  # sense without lambda, on purpose
            begun = clock(where)
            bound = recon.bind(there.scan)
            kspace = there.scan.kspace
            if method in DRAWS:
                assert bound.sample is not None
                image = bound.sample(kspace, range(DRAWS[method])).mean(0)
            else:
                image = bound(kspace)
            found["seconds"] = clock(where) - begun
        against = "rss" if method.startswith("algorithm") else "matched"
        reference = rss(setting) if against == "rss" else chosen.reference
        scores = score(image.cpu(), reference, chosen.head)
        evaluations = DRAWS.get(method, 1) * bound.details.get("evaluations", 0)
        found |= {"reference": against, "evaluations": evaluations,
                  "oracle": scores, "automatic": scores}
    cells.write(CACHE, setting.cell(method), found)
    return found


def rows(scan: str, kind: str, acceleration: float, seeds: int) -> str:
    """The table of one mask kind: means over the seeds, and the difference from tv's oracle."""
    lines, devices = [], []
    whole = {}
    for method in (*OTHERS, *GENERATIVE, *PUBLISHED):
        of_seed = {seed: cell for seed in range(seeds)
                   if (cell := finished(Setting(scan, kind, acceleration, seed), method))}
        if of_seed:
            whole[method] = of_seed
    for method, of_seed in whole.items():
        found = list(of_seed.values())
        kinds = ("oracle", "automatic") if method in START else ("automatic",)
        if method == "sense":  # lambda 0 is no reconstruction that anyone would use here
            kinds = ("oracle",)
        for which in kinds:
            values = {name: np.array([cell[which][name] for cell in found])
                      for name in ("nmse", "psnr", "ssim")}
            against = ""
            best = whole.get("tv", {})
            # Over the same masks, against the same reference: others are no pairs.
            pairs = best.keys() == of_seed.keys() and len(found) > 1 and method != "tv"
            if pairs and not any(cell.get("reference") == "rss" for cell in found):
                other = np.array([best[seed]["oracle"]["nmse"] for seed in of_seed])
                mean, width = interval(100 * (values["nmse"] - other))
                against = f"{mean:+.2f} +- {width:.2f}"
            evaluations = found[0].get("evaluations")
            spent: dict[str, list[float]] = {}
            for cell in found:
                spent.setdefault(cell.get("device", CPU), []).append(cell["seconds"])
            seconds = " / ".join(f"{np.mean(some):.1f}" for some in spent.values())
            devices.append(" / ".join(spent))
            lines.append([
                method + (f" ({which} lambda)" if method in START else ""),
                f"{100 * values['nmse'].mean():.2f}", f"{values['psnr'].mean():.2f}",
                f"{values['ssim'].mean():.4f}", against,
                f"{evaluations}" if evaluations else "", seconds, len(found)])
    return timed_table(["method", "NMSE, %", "PSNR, dB", "SSIM", "NMSE - tv (oracle), %",
                  "evaluations", "seconds", "masks"], lines, devices)


def report(seeds: int = SEEDS, scans: tuple[str, ...] = BRAINS) -> str:
    """All finished cells as markdown."""
    parts = [
        "Means over mask seeds; differences with paired 95 % t-intervals over the same masks, "
        "where the references are the same. "
        "Algorithms 4 and 5 return the root sum of squares and are scored against that of the full "
        "data, the others against the matched filter of the full data. One sample (seed 0) of each "
        "sampler, or the mean of eight. Seconds on one thread, or on the "
        "GPU that is named, of this run only."]
    for scan in scans:
        for kind, acceleration in MASKS:
            body = rows(scan, kind, acceleration, seeds)
            if body.count("\n") > 1:
                parts.append(f"### {scan}, {kind}, R = {acceleration:g}\n\n{body}")
    return "\n\n".join(parts)


def main() -> None:
    """Measure what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one mask of pulseq, nothing kept")
    parser.add_argument("--scans", nargs="*", default=BRAINS)
    parser.add_argument("--methods", nargs="*", default=(*OTHERS, *GENERATIVE))
    parser.add_argument("--masks", nargs="*", default=[f"{kind}:{r:g}" for kind, r in MASKS])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--finished", action="store_true", help="measure nothing")
    parser.add_argument("--published", action="store_true", help="the published step numbers, once")
    add_options(parser, limit=True)
    args = parser.parse_args()
    where, limit = chosen_device(args.device), Limit(args.limit_minutes)
    torch.set_num_threads(1)
    wanted: list[tuple[Setting, str]] = []
    if args.published:
        wanted = [(Setting("pulseq", kind, acceleration, 0), method)
                  for method, (kind, acceleration, _) in PUBLISHED.items()]
    elif not args.finished:
        masks = [mask.partition(":") for mask in (args.masks[2:3] if args.quick else args.masks)]
        wanted = [(Setting(scan, kind, float(rate), seed), method)
                  for seed in range(1 if args.quick else args.seeds)
                  for scan in (("pulseq",) if args.quick else args.scans)
                  for kind, _, rate in masks for method in args.methods]
    for setting, method in wanted:
        if limit.over:
            print(f"the time is up before {setting.cell(method)}", flush=True)
            return
        found = measure(setting, method, where)
        print(setting.cell(method), f"{100 * found['automatic']['nmse']:.2f} %",
              f"{found['seconds']:.1f} s", flush=True)
    publish("generative", "Generative and untrained reconstruction on the measured brains",
            report(args.seeds), keep=not args.quick)


if __name__ == "__main__":
    main()
