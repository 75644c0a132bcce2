"""The experiment of the noise paper again: sketch against Monte Carlo, and both against exact rows.

Dalmaz et al., ICML 2025, compare SD maps by Jacobian sketching (S = 1000 probes) with Monte Carlo
(N = 3000) for networks x accelerations x noise levels x sampling patterns. Here the scans are the
measured brains and the networks those that ship. Compared is ``sigma_complex``, the paper's SD:

- Pearson correlation and NRMSE (root mean square difference over the maximum of the Monte Carlo
  map) over the whole slice, the paper's figures, and what sampling error alone would leave of them
  (``ceiling``, ``floor``), from the error bars of both maps;
- inside the head, the correlation corrected for sampling error, the mean ratio, and the relative
  RMS difference with the sampling error's share taken out;
- the linearity residual, root mean square of ``f(y + n) - f(y) - J n`` over that of ``J n``;
- seconds a probe and a replica, and the bytes that a probe holds.

A noise level alpha means a scan with alpha times the noise SD: noise of SD ``sqrt(alpha^2 - 1)``
times the measured one is added to the data, and the covariance told to every method grows with it.

    python -m benchmarks.noise_paper [--quick] [--grid] [--named] [--samples 200]

Every cell is kept under ``build/benchmarks/noise_paper`` and not run again; a named cell of many
samples goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.real_scans import BRAINS, ROOT, Case, case
from benchmarks.scores import NETWORKS, weights_checksum
from benchmarks.table import publish, table
from snrecon.data import NoiseModel
from snrecon.noise import linearity_check
from snrecon.noise.memory import peak_bytes
from snrecon.noise.problem import Problem, probe_generator
from snrecon.noise.replicas import replicas
from snrecon.noise.sampling import StateFile
from snrecon.noise.sketch import random_phase, sketch
from snrecon.noise.state import State
from snrecon.recon.registry import load

CACHE = ROOT / "build" / "benchmarks" / "noise_paper"
RATES = (4.0, 8.0, 12.0)
LEVELS = (1.0, 5.0, 10.0, 50.0, 100.0, 200.0)
KINDS = ("poisson", "random", "gaussian2d", "equispaced_fraction")
"""Poisson disc, random 1D, random 2D, equispaced."""
CALIBRATION = {4.0: 0.08, 8.0: 0.05, 12.0: 0.04}
"""Share of the lines that is fully sampled in the centre."""
STREAM = 9
PUBLISHED = {"e2e_varnet": (99.9, 0.5), "modl": (99.7, 1.1), "unet": (99.7, 1.8)}
"""Brain, R = 8, alpha = 1: Pearson correlation and NRMSE in per cent."""


@dataclass(frozen=True)
class Setting:
    """One cell of the experiment."""

    scan: str
    network: str
    rate: float
    level: float
    kind: str
    probes: int
    samples: int

    @property
    def name(self) -> str:
        """File name of the cell."""
        network = self.network.replace(":", "-")
        return (f"{self.scan}-{network}-{self.kind}-R{self.rate:g}-a{self.level:g}-"
                f"{self.probes}-{self.samples}")


@dataclass(frozen=True)
class Cell:
    """What was found in one cell."""

    weights: str
    acceleration: float
    pearson: float
    ceiling: float
    nrmse: float
    floor: float
    corrected: float
    ratio: float
    difference: float
    """Relative RMS difference in the head, without the share of the sampling error."""
    residual: float
    predicted: float
    """SD of replicas over first order, as the linearity check predicts it."""
    seconds: tuple[float, float]
    """A probe, a replica."""
    bytes: int


def noisier(chosen: Case, level: float, seed: int = 5) -> Case:
    """The scan with ``level`` times its noise."""
    scan = chosen.scan
    if level == 1:
        return chosen
    problem = Problem.of(load("zero_filled"), scan)
    noise = problem.colouring.sample(probe_generator(seed, 0, STREAM), scan.kspace.dtype)
    model = scan.require_noise()
    louder = NoiseModel(model.covariance * level**2, spectrum=model.spectrum, source=model.source,
                        details=model.details)
    kspace = scan.kspace + (level**2 - 1) ** 0.5 * noise
    return replace(chosen, scan=replace(scan, kspace=kspace, noise=louder))


def sigma_complex(state: State) -> tuple[Tensor, Tensor]:
    """The map and its standard error, float64."""
    moments = state.moments
    sigma = moments.covariance()[:2].sum(0).sqrt()
    return sigma, sigma / (2 * moments.degrees_of_freedom_complex()).sqrt()


def compare(first: State, second: State, head: Tensor) -> dict[str, float]:
    """The paper's figures over the slice, and corrected ones inside the head; ``second`` is the
    Monte Carlo map."""
    (a, ea), (b, eb) = sigma_complex(first), sigma_complex(second)
    where = b > 0

    def correlation(inside: Tensor) -> tuple[float, float]:
        x, y = a[inside], b[inside]
        raw = float(torch.corrcoef(torch.stack([x, y]))[0, 1])
        shares = [1 - float((e[inside] ** 2).mean() / v.var()) for e, v in ((ea, x), (eb, y))]
        return raw, max(shares[0] * shares[1], 1e-12) ** 0.5

    pearson, ceiling = correlation(where)
    inside = head & where
    raw, limit = correlation(inside)
    error = (ea**2 + eb**2)[where].mean().sqrt()
    relative = ((a - b)[inside] ** 2).mean() - (ea**2 + eb**2)[inside].mean()
    return {
        "pearson": pearson,
        "ceiling": ceiling,
        "nrmse": float((a - b)[where].square().mean().sqrt() / b.max()),
        "floor": float(error / b.max()),
        "corrected": raw / limit,
        "ratio": float(a[inside].mean() / b[inside].mean()),
        "difference": float(relative.clamp_min(0).sqrt() / b[inside].square().mean().sqrt()),
    }


def measure(setting: Setting, cache: Path | None = CACHE) -> Cell:
    """One cell, from the cache if it was run with these weights."""
    weights = weights_checksum(setting.network)
    path = None if cache is None else cache / f"{setting.name}.json"
    if path is not None and path.exists():
        found = json.loads(path.read_text())
        if found["weights"] == weights:
            return Cell(**{**found, "seconds": tuple(found["seconds"])})
    chosen = noisier(
        case(setting.scan, setting.kind, setting.rate, 0, CALIBRATION[setting.rate]),
        setting.level)
    problem = Problem.of(load(setting.network), chosen.scan)

    def state(name: str, estimator: Callable[..., State], count: int, seed: int) -> State:
        file = None
        if cache is not None and count >= 1000:
            cache.mkdir(parents=True, exist_ok=True)
            file = StateFile.at(cache / f"{setting.name}-{weights[:12]}-{name}.h5")
        return estimator(problem, tolerance=0, max_passes=count, seed=seed, state_file=file)

    def seconds(estimator: Callable[..., State]) -> float:
        estimator(problem, tolerance=0, max_passes=4, seed=11)
        begun = time.perf_counter()
        estimator(problem, tolerance=0, max_passes=16, seed=12)
        return (time.perf_counter() - begun) / 16

    pair = (seconds(sketch), seconds(replicas))
    probe = problem.colouring(random_phase(problem, 13, range(1)))
    _, size = peak_bytes(lambda: problem.linearization.jvp(probe))
    checked = linearity_check(problem.bound, chosen.scan, draws=8, seed=4, region=chosen.head)
    both = compare(state("sketch", sketch, setting.probes, 1),
                   state("replicas", replicas, setting.samples, 2), chosen.head)
    cell = Cell(weights=weights, acceleration=chosen.scan.acceleration,
                residual=checked.overall, predicted=checked.ratio, seconds=pair, bytes=size, **both)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(cell), indent=1))
    return cell


def full_grid(networks: Sequence[str], samples: int) -> list[Setting]:
    """Every scan, network, acceleration, noise level and pattern."""
    return [
        Setting(scan, network, rate, level, kind, samples, samples)
        for network, rate, level, kind, scan in itertools.product(
            networks, RATES, LEVELS, KINDS, BRAINS)
    ]


def named(networks: Sequence[str]) -> list[Setting]:
    """The paper's numbers of samples: every network at R = 8, alpha = 1, on both scans."""
    return [Setting(scan, network, 8.0, 1.0, "random", 1000, 3000)
            for network in networks for scan in BRAINS]


def rows_of(settings: Sequence[Setting], cells: Sequence[Cell]) -> str:
    """A markdown table, a cell a row."""
    return table(
        ["scan", "network", "R", "alpha", "pattern", "Pearson, %", "ceiling, %", "NRMSE, %",
         "sampling alone, %", "corrected r", "mean ratio", "1 / predicted", "difference, %",
         "linearity residual, %", "probe / replica"],
        [
            (
                s.scan, s.network, f"{c.acceleration:.2f}", f"{s.level:g}", s.kind,
                f"{100 * c.pearson:.2f}", f"{100 * c.ceiling:.2f}", f"{100 * c.nrmse:.2f}",
                f"{100 * c.floor:.2f}", f"{c.corrected:.4f}", f"{c.ratio:.4f}",
                f"{1 / c.predicted:.4f}", f"{100 * c.difference:.1f}", f"{100 * c.residual:.1f}",
                f"{c.seconds[0] / c.seconds[1]:.2f}",
            )
            for s, c in zip(settings, cells, strict=True)
        ],
    )


def main() -> None:
    """Run what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one cell of 16 samples, not kept")
    parser.add_argument("--grid", action="store_true", help="the full grid only")
    parser.add_argument("--named", action="store_true", help="the cells of many samples only")
    parser.add_argument("--samples", type=int, default=200, help="of every cell of the grid")
    parser.add_argument("--networks", nargs="*", default=NETWORKS)
    args = parser.parse_args()
    if args.quick:
        settings = [Setting("pulseq", args.networks[0], 8.0, 5.0, "random", 16, 16)]
        print(rows_of(settings, [measure(s, None) for s in settings]))
        return
    both = args.grid == args.named
    settings = named(args.networks) if both or args.named else []
    settings += full_grid(args.networks, args.samples) if both or args.grid else []
    cells = []
    for number, setting in enumerate(settings, start=1):
        cells.append(measure(setting))
        print(f"{number} of {len(settings)}: {setting.name}", flush=True)
    published = "; ".join(f"{name} {r:.1f} / {e:.1f}" for name, (r, e) in PUBLISHED.items())
    body = (
        f"Published for brain, R = 8, alpha = 1 (S = 1000, N = 3000), Pearson / NRMSE in per cent: "
        f"{published}.\n\n{rows_of(settings, cells)}"
    )
    publish("noise_paper", "Sketch against Monte Carlo: the published experiment", body, both)


if __name__ == "__main__":
    main()
