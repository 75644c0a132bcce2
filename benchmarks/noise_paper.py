"""The experiment of the noise paper again: sketch against Monte Carlo, and both against exact rows.

Dalmaz et al., ICML 2025, compare SD maps by Jacobian sketching (S = 1000 probes) with Monte Carlo
(N = 3000) for networks x accelerations x noise levels x sampling patterns. Here the scans are the
measured brains and the networks those that ship. Compared is ``sigma_complex``, the paper's SD:

- Pearson correlation and NRMSE (root mean square difference over the maximum of the Monte Carlo
  map) over the whole slice, the paper's figures, and what sampling error alone would leave of them
  (``ceiling``, ``floor``), from the error bars of both maps;
- inside the head, the correlation corrected for sampling error, the ratio of means and of root mean
  squares, and the relative RMS difference with the sampling error's share taken out;
- the linearity residual, root mean square of ``f(y + n) - f(y) - J n`` over that of ``J n``, and
  the ratio that the linearity check predicts;
- seconds a probe and a replica, and the bytes that a probe holds;
- in the grid, where the hardware is faster at it, tangents in bfloat16, as every noise map takes
  them by default, and what that leaves out (``low``, of the order of a thousandth); the named cells
  are of single precision;
- in the named cells also mean ratio and corrected correlation with replicas whose noise is scaled
  by 0.01, where first order must hold, and both maps against exact rows at voxels drawn from the
  head.

A noise level alpha means a scan with alpha times the noise SD: noise of SD ``sqrt(alpha^2 - 1)``
times the measured one is added to the data, and the covariance told to every method grows with it.

    python -m benchmarks.noise_paper [--quick] [--grid] [--named] [--samples 200] [--part 1/2]
                                      [--scans pulseq] [--networks varnet modl]
                                      [--device cuda] [--limit-minutes 10] [--finished]

Every cell is kept under ``build/benchmarks/noise_paper``, and in ``results/noise_paper.json`` once
gathered (:mod:`benchmarks.cells`), and not run again; a named cell of many
samples goes on where it was interrupted. Processes with ``--part 1/2`` and ``--part 2/2`` begin at
different cells and leave out what the other has; afterwards a run without it finds all cells and
writes tables, pictures and report.
``--limit-minutes`` begins no cell after so many minutes. Cells say on which device they were
measured; problem and samples are the same on all.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import cells
from benchmarks.device import CPU, Limit, add_options, chosen_device, label
from benchmarks.real_scans import BRAINS, ROOT, Case, case
from benchmarks.scores import NETWORKS, weights_checksum
from snrecon.data import NoiseModel
from snrecon.noise import linearity_check
from snrecon.noise.certified import tangents_in_low_precision
from snrecon.noise.exact import exact
from snrecon.noise.memory import peak_bytes
from snrecon.noise.problem import Problem, probe_generator
from snrecon.noise.replicas import replicas
from snrecon.noise.sampling import BLOCK, StateFile
from snrecon.noise.sketch import random_phase, sketch
from snrecon.noise.state import State
from snrecon.physics.clock import clock
from snrecon.physics.precision import low_precision
from snrecon.recon.registry import load

CACHE = ROOT / "build" / "benchmarks" / "noise_paper"
RATES = (4.0, 8.0, 12.0)
LEVELS = (1.0, 5.0, 10.0, 50.0, 100.0, 200.0)
KINDS = ("poisson", "random", "gaussian2d", "equispaced_fraction")
"""Poisson disc, random 1D, random 2D, equispaced."""
CALIBRATION = {4.0: 0.08, 8.0: 0.05, 12.0: 0.04}
"""Share of the lines that is fully sampled in the centre."""
STREAM = 9
MANY = 1000
"""Probes from which a cell is a named one: its samples are kept, and it gets exact rows."""
PAIRS = {False: 4, True: 24}
"""Draws of the linearity check in a cell of the grid, and in a named one."""
VOXELS = 128
"""Of the head, with exact rows."""
SCALE = 0.01


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

    @property
    def many(self) -> bool:
        """Whether it is a named cell."""
        return self.probes >= MANY

    def case(self) -> Case:
        """The scan with its mask and noise."""
        return noisier(case(self.scan, self.kind, self.rate, 0, CALIBRATION[self.rate]), self.level)


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
    rms_ratio: float
    difference: float
    """Relative RMS difference in the head, without the share of the sampling error."""
    residual: float
    predicted: float
    """``rms_ratio`` as the linearity check has it."""
    predicted_error: float
    seconds: tuple[float, float]
    """A probe, a replica."""
    bytes: int
    small: float | None = None
    """Mean ratio to replicas with the noise scaled by 0.01."""
    small_corrected: float | None = None
    """Correlation with them inside the head, corrected for sampling error."""
    exact_sketch: tuple[float, float, float] | None = None
    """Sketch at the exact voxels: mean ratio, relative RMS difference, and what of the latter its
    sampling error would leave."""
    exact_replicas: tuple[float, float, float] | None = None
    device: str = CPU
    low: float | None = None
    """Share of a probe's product, root mean square, that tangents in bfloat16 leave out; None where
    the sketch was taken in single precision."""


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
        "rms_ratio": float(a[inside].square().mean() / b[inside].square().mean()) ** 0.5,
        "difference": float(relative.clamp_min(0).sqrt() / b[inside].square().mean().sqrt()),
    }


def against_exact(state: State, truth: Tensor, voxels: Tensor) -> tuple[float, float, float]:
    """Mean ratio of a map to exact rows at ``voxels``, relative RMS difference, and the share of
    the latter that its sampling error explains."""
    sigma, error = (part[voxels] for part in sigma_complex(state))
    true = truth[voxels].double()
    size = true.square().mean().sqrt()
    return (float(sigma.mean() / true.mean()),
            float((sigma - true).square().mean().sqrt() / size),
            float(error.square().mean().sqrt() / size))


def state_path(setting: Setting, name: str, cache: Path = CACHE) -> Path:
    """Where the samples of a named cell are kept."""
    return cache / f"{setting.name}-{weights_checksum(setting.network)[:12]}-{name}.h5"


def state_of(
    setting: Setting, problem: Problem, name: str, cache: Path | None = CACHE
) -> State:
    """Samples of a cell: ``sketch``, ``replicas``, or ``small`` replicas at 0.01 of the noise.
    Those of a named cell are kept and, once there, only read."""
    file = None
    if cache is not None and setting.many:
        cache.mkdir(parents=True, exist_ok=True)
        file = StateFile.at(state_path(setting, name, cache))
    options: dict[str, Any] = {"tolerance": 0, "state_file": file}
    if name == "sketch":
        return sketch(problem, max_passes=setting.probes, seed=1, **options)
    if name == "small":
        return replicas(problem, max_passes=setting.probes, seed=3, noise_scale=SCALE, **options)
    return replicas(problem, max_passes=setting.samples, seed=2, **options)


def finished(setting: Setting, cache: Path | None = CACHE) -> Cell | None:
    """A cell that was run with these weights."""
    found = cells.read(cache, setting.name)
    if found is None or found["weights"] != weights_checksum(setting.network):
        return None
    pairs = ("seconds", "exact_sketch", "exact_replicas")
    return Cell(**{**found, **{k: tuple(found[k]) for k in pairs if found[k]}})


def measure(
    setting: Setting, cache: Path | None = CACHE, where: torch.device | str = CPU
) -> Cell:
    """One cell, run unless it was."""
    done = finished(setting, cache)
    if done is not None:
        return done
    chosen = setting.case().to(where)
    problem = Problem.of(load(setting.network), chosen.scan)
    probe = problem.colouring(random_phase(problem, 13, range(1)))
    _, size = peak_bytes(lambda: problem.linearization.jvp(probe))
    checked = linearity_check(problem.bound, chosen.scan, draws=PAIRS[setting.many], seed=4,
                              region=chosen.head)
    low = None if setting.many else left_out(problem)
    states, pair = [], []
    for name, count in (("sketch", setting.probes), ("replicas", setting.samples)):
        begun = clock(where)
        with nullcontext() if low is None else low_precision():
            states.append(state_of(setting, problem, name, cache))
        pair.append((clock(where) - begun) / count)
    probes, samples = states
    more: dict[str, Any] = {}
    if setting.many:
        pair = [_seconds(sketch, problem), _seconds(replicas, problem)]
        small = state_of(setting, problem, "small", cache)
        limit = compare(probes, small, chosen.head)
        more |= {"small": limit["ratio"], "small_corrected": limit["corrected"]}
        voxels = drawn_voxels(chosen.head & (sigma_complex(samples)[0] > 0), VOXELS)
        truth = exact(problem, voxels=voxels).sigma_complex
        more["exact_sketch"] = against_exact(probes, truth, voxels)
        more["exact_replicas"] = against_exact(samples, truth, voxels)
    cell = Cell(weights=weights_checksum(setting.network), acceleration=chosen.scan.acceleration,
                residual=checked.overall, predicted=1 / checked.ratio_complex,
                predicted_error=checked.ratio_complex_error / checked.ratio_complex**2,
                seconds=(pair[0], pair[1]), bytes=size, device=label(where), low=low,
                **compare(probes, samples, chosen.head), **more)
    cells.write(cache, setting.name, asdict(cell))
    return cell


def left_out(problem: Problem, count: int = 2) -> float | None:
    """What the tangents of ``count`` probes lose in bfloat16, as a share of theirs; None where a
    noise map to 5 % would not use it (slower here, not made for it, or above half a per cent)."""
    noise = problem.colouring(random_phase(problem, 14, range(count)))
    full = problem.linearization.jvp(noise)
    lost = tangents_in_low_precision(problem, noise, full, 0.05)
    if lost is None:
        return None
    whole = problem.project(full)[0].square().mean(0)
    return float((lost.sum() / whole.sum()).sqrt())


def drawn_voxels(region: Tensor, count: int, seed: int = 6) -> Tensor:
    """A random part of a region, boolean like it."""
    index = region.flatten().nonzero()[:, 0]
    order = torch.randperm(len(index), generator=torch.Generator().manual_seed(seed))
    chosen = torch.zeros_like(region).flatten()
    chosen[index[order[:count]]] = True
    return chosen.reshape(region.shape)


def _seconds(estimator: Callable[..., State], problem: Problem) -> float:
    """Seconds a sample, set-up not counted: for cells whose samples may have been kept. A GPU gets
    whole blocks: drawing the first samples alone would count for more than in a long run."""
    where = problem.image.device
    count, chunk = (16, None) if where.type == "cpu" else (10 * BLOCK, BLOCK)
    estimator(problem, tolerance=0, max_passes=4 if chunk is None else chunk, seed=11, chunk=chunk)
    begun = clock(where)
    estimator(problem, tolerance=0, max_passes=count, seed=12, chunk=chunk)
    return (clock(where) - begun) / count


def full_grid(
    networks: Sequence[str], samples: int, scans: Sequence[str] = BRAINS
) -> list[Setting]:
    """Every scan, network, acceleration, noise level and pattern."""
    return [
        Setting(scan, network, rate, level, kind, samples, samples)
        for scan, network, rate, level, kind in itertools.product(
            scans, networks, RATES, LEVELS, KINDS)
    ]


def named(networks: Sequence[str], scans: Sequence[str] = BRAINS) -> list[Setting]:
    """The paper's numbers of samples at R = 8, alpha = 1: every scan and network."""
    return [Setting(scan, network, 8.0, 1.0, "random", 1000, 3000)
            for scan, network in itertools.product(scans, networks)]


def by_case(settings: Sequence[Setting], part: int, parts: int) -> list[Setting]:
    """Cells of one undersampled scan side by side, as its coil maps are estimated once a process;
    each of ``parts`` processes begins elsewhere."""
    ordered = sorted(settings, key=lambda s: (s.scan, s.kind, s.rate))  # stable
    start = (part - 1) * len(ordered) // parts
    return [*ordered[start:], *ordered[:start]]


def main() -> None:
    """Run what was asked for; print and keep tables, pictures and report."""
    from benchmarks import noise_report

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one cell of 16 samples, not kept")
    parser.add_argument("--grid", action="store_true", help="the full grid only")
    parser.add_argument("--named", action="store_true", help="the cells of many samples only")
    parser.add_argument("--samples", type=int, default=200, help="of every cell of the grid")
    parser.add_argument("--networks", nargs="*", default=NETWORKS,
                        help="not all that ship: cells are kept, but no report")
    parser.add_argument("--scans", nargs="*", default=BRAINS, help="not all: the same")
    parser.add_argument("--part", default="1/1", metavar="I/N",
                        help="process I of N that share the cells")
    parser.add_argument("--finished", action="store_true", help="report what is there, run nothing")
    add_options(parser, limit=True)
    args = parser.parse_args()
    where, limit = chosen_device(args.device), Limit(args.limit_minutes)
    if args.quick:
        setting = Setting("pulseq", args.networks[0], 8.0, 5.0, "random", 16, 16)
        print(noise_report.grid_table({setting: measure(setting, None, where)}))
        return
    both = args.grid == args.named
    deep = named(args.networks, args.scans) if both or args.named else []
    wide = full_grid(args.networks, args.samples, args.scans) if both or args.grid else []
    part, parts = (int(number) for number in args.part.split("/"))
    if args.finished:
        deep, wide = ([s for s in some if finished(s)] for some in (deep, wide))
    settings = by_case([*deep, *wide], part, parts)
    done = {}
    for number, setting in enumerate(settings, start=1):
        if limit.over:
            print(f"{number - 1} of {len(settings)}: the time is up", flush=True)
            return
        if parts > 1 and not (finished(setting) or cells.claim(CACHE, setting.name)):
            continue  # another process is at it
        begun = clock(where)
        done[setting] = measure(setting, where=where)
        print(f"{number} of {len(settings)}: {setting.name}, {clock(where) - begun:.1f} s",
              flush=True)
    if parts == 1:
        keep = tuple(args.networks) == NETWORKS and tuple(args.scans) == BRAINS
        noise_report.report({s: done[s] for s in deep}, {s: done[s] for s in wide}, keep)


if __name__ == "__main__":
    main()
