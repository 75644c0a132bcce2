"""How many passes, and seconds, a noise map takes: each lever alone, and all together.

Truth are exact first-order rows, compressed along the readout for masks that vary along one axis
(:mod:`snrecon.noise.combs`), or of 400 voxels drawn from the head. Error is the root mean square of
``sigma / truth - 1`` over these voxels. Compared are, from the same probes:

- ``plain``: the sketch, the mean of its squares;
- ``replicas``: Monte Carlo with the noise scaled by 0.01, where first order is what it samples;
- ``control variate``: the surrogate's answers to the same probes, regressed out, nothing else;
- ``shrinkage``: the certified map without a surrogate;
- ``low precision``: the sketch with bfloat16 tangents;
- ``certified``: everything, as ``noise_map`` does it; its bound is compared with its true error,
  and its 95 % intervals with the share of voxels whose truth they hold;
- ``predicted``: the same with the shipped predictor of the network's noise, where there is one.

All probes together then judge three maps that they had no part in: the true one, the true one times
1.05, and, where all of the head is known, the true one blurred with a Gaussian of two voxels.

``untrained`` is a VarNet several times as large as the one that ships, its weights random.

Every number of probes is tried on several disjoint blocks of them. A pass is a JVP; passes to an
error are read off a straight line between the two nearest points, both logarithmic. Seconds are
those of a probe of each kind, measured alternately in this run, times the passes, with the
surrogate's set-up and the certificate at every stop added for ``certified``.

    python -m benchmarks.estimators [--quick] [--networks ...] [--scans pulseq] [--part I/N]
                                    [--device cuda] [--limit-minutes 10] [--finished]

Cells are kept under ``build/benchmarks/estimators`` (:mod:`benchmarks.cells`), and say on which
device they were measured. A GPU is given larger batches, of forward passes too: one at a time would
leave it idle. ``--limit-minutes`` begins no cell after so many minutes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor

from benchmarks import cells
from benchmarks.device import CPU, Limit, add_options, chosen_device, label, vjp_passes
from benchmarks.noise_paper import drawn_voxels
from benchmarks.real_scans import BRAINS, ROOT, case
from benchmarks.scores import weights_checksum
from snrecon.data import NoiseMap
from snrecon.errors import InputError
from snrecon.networks.store import shipped_weights
from snrecon.networks.varnet import VarNet as NetworkVarNet
from snrecon.noise.blur import blur
from snrecon.noise.certificate import certified, judged
from snrecon.noise.crossfit import coefficients, controlled
from snrecon.noise.exact import exact
from snrecon.noise.folds import FOLDS, FoldMoments
from snrecon.noise.memory import peak_bytes
from snrecon.noise.predicted import load_predictor, predicted_variance
from snrecon.noise.problem import Problem
from snrecon.noise.replicas import evaluate
from snrecon.noise.sampling import StateFile
from snrecon.noise.sketch import random_phase
from snrecon.noise.surrogate import LineSurrogate
from snrecon.physics.clock import clock
from snrecon.physics.precision import low_precision
from snrecon.recon.base import Reconstructor
from snrecon.recon.registry import load
from snrecon.recon.varnet import VarNet

CACHE = ROOT / "build" / "benchmarks" / "estimators"
COUNTS = (6, 8, 12, 16, 24, 32, 40, 56, 72, 96, 120, 152, 192)
PROBES = 384
BLOCKS = 8
"""Most blocks of probes that a number is tried on."""
BATCH = {"cpu": 4, "cuda": 32}
"""Probes at once."""
VOXELS = 400
LEAKAGE = 1e-3
WAYS = ("plain", "replicas", "control variate", "shrinkage", "low precision", "certified",
        "predicted")
MASKS = (("random", 4.0), ("gaussian2d", 4.0))
NETWORKS = ("varnet", "modl", "unet", "e2e_varnet", "untrained")
WHOLE = (("pulseq", "varnet"), ("pulseq", "modl"))
"""Where rows are of the whole head; others' take too long, or reach along whole lines."""
LARGE = {"unrolls": 8, "features": 64}
SCALE = 0.01


@dataclass(frozen=True)
class Setting:
    """A network on a scan with a mask."""

    scan: str
    network: str
    kind: str
    rate: float

    @property
    def name(self) -> str:
        """File name of the cell."""
        return f"{self.scan}-{self.network.replace(':', '-')}-{self.kind}-R{self.rate:g}"


@dataclass(frozen=True)
class Cell:
    """What was found."""

    weights: str
    probes: int
    errors: dict[str, dict[str, list[float]]]
    """Way, ``sigma`` or ``complex``: RMS relative error for each of :data:`COUNTS`."""
    seconds: dict[str, float]
    """A full and a low probe, a replica, a forward pass (on a GPU one of a batch), the surrogate's
    answer and set-up, one certificate."""
    bounds: list[list[float]]
    """True error, as a share of the sigma that the map states, and bound of every certified map."""
    coverage: list[float]
    """Share of voxels inside the certified map's 95 % interval, for each number of probes."""
    controls: dict[str, float] = field(default_factory=dict)
    """Bounds of the ``true`` map, and of wrong ones: ``scaled``, ``blurred``."""
    rows: dict[str, float] = field(default_factory=dict)
    """Exact rows: VJPs, seconds, forward passes per VJP, RMS difference to rows alone, spacing."""
    bytes: int = 0
    device: str = CPU
    shares: list[float] = field(default_factory=list)
    """The same errors as shares of the true sigma."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Components of all probes in the image's frame, each ``(probe, *image)``."""

    full: Tensor
    low: Tensor
    noisy: Tensor
    answer: Tensor | None
    power: Tensor | None
    predicted: Tensor | None


def reconstruction(network: str) -> tuple[Reconstructor, str]:
    """With the checksum of its weights."""
    if network != "untrained":
        return load(network), weights_checksum(network)
    torch.manual_seed(0)
    return VarNet(NetworkVarNet(**LARGE).eval().requires_grad_(False)), f"seed 0, {LARGE}"


def prediction(
    network: str, problem: Problem, surrogate: LineSurrogate | None
) -> Tensor | None:
    """What the shipped predictor of a network's noise expects."""
    name = network.replace(":", "_")
    if name not in shipped_weights("noise_predictor"):
        return None
    return predicted_variance(load_predictor(name), problem, surrogate)


def draw(problem: Problem, surrogate: LineSurrogate | None, probes: int) -> tuple[
        Samples, dict[str, float]]:
    """All samples, and the seconds of one of each."""
    kspace, frame = problem.scan.kspace, problem.direction.conj()
    kinds: dict[str, list[Tensor]] = {"full": [], "low": [], "replica": [], "surrogate": []}
    spent = dict.fromkeys((*kinds, "forward"), 0.0)
    where, batch = kspace.device, BATCH[kspace.device.type]
    many = kspace if where.type == "cpu" else kspace.expand(batch, *kspace.shape)

    def timed(name: str, run: Callable[[], Tensor]) -> Tensor:
        begun = clock(where)
        result = run()
        spent[name] += clock(where) - begun
        return result

    def low(noise: Tensor) -> Tensor:
        with low_precision():
            return problem.linearization.jvp(noise)

    first = problem.colouring(random_phase(problem, 99, range(batch)))
    problem.linearization.jvp(first)
    with torch.no_grad():
        if where.type != "cpu":  # loads its kernels at their first use
            for once in (low, surrogate, lambda n: evaluate(problem, kspace + n)):
                if once is not None:
                    once(first)
        for start in range(0, probes, batch):
            indices = range(start, min(start + batch, probes))
            noise = problem.colouring(random_phase(problem, 1, indices))
            kinds["full"].append(
                timed("full", lambda n=noise: problem.linearization.jvp(n)))  # type: ignore[misc]
            kinds["low"].append(timed("low", lambda n=noise: low(n)))  # type: ignore[misc]
            if surrogate is not None:
                kinds["surrogate"].append(
                    timed("surrogate", lambda n=noise: surrogate(n)))  # type: ignore[misc]
            louder = kspace + SCALE * noise
            images = timed("replica", lambda y=louder: evaluate(problem, y))  # type: ignore[misc]
            kinds["replica"].append((images - problem.image) / SCALE)
            if start < 8 * batch:
                timed("forward", lambda: problem.bound.function(many))
    full, lower, noisy = (
        torch.cat(kinds[k]) * frame for k in ("full", "low", "replica"))
    answer = torch.cat(kinds["surrogate"]) * frame if surrogate is not None else None
    power = None if surrogate is None else surrogate.variance / 2
    times = {name: total / probes for name, total in spent.items()}
    count = min(8, -(-probes // batch))
    times["forward"] = spent["forward"] / (count * (1 if many is kspace else batch))
    return Samples(full, lower, noisy, answer, power, None), times


def maps(samples: Samples, chosen: slice, image: Tensor) -> dict[str, Tensor]:
    """``(Var a, Var b, Cov)`` by every way but the certified one."""
    full = samples.full[chosen]
    found = {}
    for name, drawn in (("plain", full), ("low precision", samples.low[chosen]),
                        ("replicas", samples.noisy[chosen])):
        found[name] = torch.stack([
            drawn.real.square().mean(0), drawn.imag.square().mean(0),
            (drawn.real * drawn.imag).mean(0)])
    alone = certified(FoldMoments.empty(image).added(0, full.real, full.imag), image)
    if alone is not None:
        found["shrinkage"] = alone.covariance
    if samples.answer is not None:
        sums = _sums(samples, chosen, image)
        even, odd = (sums.part(list(range(k, FOLDS, 2))) for k in (0, 1))
        inside = samples.power > 0  # type: ignore[operator]
        halves = (controlled(even, coefficients(odd, inside)),
                  controlled(odd, coefficients(even, inside)))
        share = even.count / (even.count + odd.count)
        found["control variate"] = share * halves[0] + (1 - share) * halves[1]
    return found


def _sums(
    samples: Samples, chosen: slice, image: Tensor, predicted: Tensor | None = None
) -> FoldMoments:
    full = samples.full[chosen]
    answer = None if samples.answer is None else samples.answer[chosen]
    empty = replace(FoldMoments.empty(image, samples.power), predicted=predicted)
    return empty.added(0, full.real.contiguous(), full.imag.contiguous(), answer)


def relative(covariance: Tensor, truth: Tensor, voxels: Tensor) -> dict[str, float]:
    """RMS relative error of sigma and of sigma_complex."""
    errors = {}
    for name, parts in (("sigma", [0]), ("complex", [0, 1])):
        found = covariance[parts].sum(0)[voxels].clamp_min(0).double().sqrt()
        true = truth[parts].sum(0)[voxels].sqrt()
        errors[name] = float((found / true - 1).square().mean().sqrt())
    return errors


def measure(
    setting: Setting, probes: int = PROBES, keep: bool = True, where: torch.device | str = CPU
) -> Cell:
    """One cell, run unless it was."""
    recon, weights = reconstruction(setting.network)
    found = cells.read(CACHE, setting.name) if keep else None
    if found is not None and found["weights"] == weights:
        return Cell(**found)
    chosen = case(setting.scan, setting.kind, setting.rate).to(where)
    problem = Problem.of(recon, chosen.scan)
    image = problem.image
    true, voxels, rows = rows_of(problem, chosen.head, setting, keep)
    assert true.covariance is not None
    truth = true.covariance.double()
    voxels = voxels & (truth[0] > 0)
    for _ in range(1 if image.device.type == "cpu" else 2):  # a GPU loads its solvers first
        begun = clock(where)
        surrogate = LineSurrogate.of(problem)
        building = clock(where) - begun
    probe = problem.colouring(random_phase(problem, 13, range(1)))
    _, size = peak_bytes(lambda: problem.linearization.jvp(probe))
    samples, seconds = draw(problem, surrogate, probes)
    predicted = prediction(setting.network, problem, surrogate)
    seconds["building"] = building if surrogate is not None else 0.0
    errors: dict[str, dict[str, list[float]]] = {way: {"sigma": [], "complex": []} for way in WAYS}
    bounds, shares, coverage, certifying = [], [], [], []
    for count in (c for c in COUNTS if c <= probes):
        blocks = [slice(k * count, (k + 1) * count)
                  for k in range(min(BLOCKS, probes // count))]
        of_count: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        inside = []
        for block in blocks:
            for way, covariance in maps(samples, block, image).items():
                of_count[way].append(relative(covariance, truth, voxels))
            sums = _sums(samples, block, image)
            begun = clock(where)
            best = certified(sums, image)
            certifying.append(clock(where) - begun)
            if best is None:
                continue
            of_count["certified"].append(relative(best.covariance, truth, voxels))
            if predicted is not None:
                told = certified(_sums(samples, block, image, predicted), image)
                assert told is not None
                of_count["predicted"].append(relative(told.covariance, truth, voxels))
            sigma, wanted = best.covariance[0].sqrt(), truth[0].sqrt()
            bright = voxels & (image.abs() >= 3 * sigma)
            own = float((wanted / sigma - 1)[bright].square().mean().sqrt())
            bounds.append([own, best.certificate.bound])
            shares.append(float((sigma / wanted - 1)[bright].square().mean().sqrt()))
            z = (sigma - wanted)[voxels].abs() / best.standard_error[voxels]
            inside.append(float((z < 1.96).double().mean()))
        for way, several in of_count.items():
            for kind in ("sigma", "complex"):
                mean = sum(one[kind] for one in several) / len(several) if several else None
                errors[way][kind].append(mean)  # type: ignore[arg-type]
        coverage.append(sum(inside) / len(inside) if inside else None)
    controls = judged_maps(_sums(samples, slice(None), image), truth[0].sqrt(), voxels, image)
    seconds["certificate"] = sorted(certifying)[len(certifying) // 2]
    cell = Cell(weights, probes, errors, seconds, bounds,
                coverage, controls, rows, size, label(where), shares)  # type: ignore[arg-type]
    if keep:
        cells.write(CACHE, setting.name, asdict(cell))
    return cell


def judged_maps(
    probes: FoldMoments, sigma: Tensor, voxels: Tensor, image: Tensor
) -> dict[str, float]:
    """Bounds of a true map and of two wrong ones."""
    maps = {"true": sigma, "scaled": 1.05 * sigma}
    if int(voxels.sum()) > VOXELS:
        maps["blurred"] = blur(sigma.float(), 2.0, voxels.float()) * voxels
    found = {name: judged(probes, one, image) for name, one in maps.items()}
    return {name: one.bound for name, one in found.items() if one is not None}


def rows_of(
    problem: Problem, head: Tensor, setting: Setting, keep: bool
) -> tuple[NoiseMap, Tensor, dict[str, float]]:
    """Exact rows: of the whole head for some networks where they can be compressed, else of some
    voxels of it; these voxels; what the rows cost when they were taken."""
    where = problem.image.device
    name = f"{setting.name}-rows" + ("" if where.type == "cpu" else f"-{where.type}")
    ways: list[tuple[Tensor, float | None]] = [(drawn_voxels(head, VOXELS), None)]
    if (setting.scan, setting.network) in WHOLE:
        ways.insert(0, (head, LEAKAGE))
    for voxels, compress in ways:
        begun = clock(where)
        kept = None
        if keep:
            CACHE.mkdir(parents=True, exist_ok=True)
            kept = StateFile.at(CACHE / f"{name}.h5")
        try:
            found = exact(problem, voxels=voxels, compress=compress, state_file=kept)
        except InputError:
            continue
        facts = CACHE / f"{name}.facts"
        if keep and facts.exists():
            return found, voxels, json.loads(facts.read_text())
        cost = {"seconds": clock(where) - begun, **{
            k: float(found.details[k]) for k in (
                "vjps", "forward_passes_per_vjp", "compression_error", "spacing")
            if k in found.details}}
        if where.type != "cpu":
            cost["forward_passes_per_vjp"] = vjp_passes(problem)
        if keep:
            facts.write_text(json.dumps(cost))
        return found, voxels, cost
    raise AssertionError("single rows are always to be had")


def main() -> None:
    """Run what was asked for; print and keep the tables and the picture."""
    from benchmarks import estimator_report

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small cell, not kept")
    parser.add_argument("--networks", nargs="*", default=NETWORKS)
    parser.add_argument("--scans", nargs="*", help="default pulseq; with --finished all")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="only every N-th cell")
    parser.add_argument("--finished", action="store_true", help="report what is there")
    add_options(parser, limit=True)
    args = parser.parse_args()
    where, limit = chosen_device(args.device), Limit(args.limit_minutes)
    scans = args.scans or (BRAINS if args.finished else BRAINS[:1])
    settings = [Setting(scan, network, kind, rate) for scan in scans
                for network in args.networks for kind, rate in MASKS]
    if args.quick:
        settings = settings[:1]
    if args.finished:
        settings = [s for s in settings if cells.read(CACHE, s.name) is not None]
    part, parts = (int(number) for number in args.part.split("/"))
    found = {}
    for setting in settings[part - 1 :: parts]:
        if limit.over:
            print(f"the time is up before {setting.name}", flush=True)
            return
        begun = clock(where)
        found[setting] = (
            Cell(**cells.read(CACHE, setting.name)) if args.finished  # of whatever weights
            else measure(setting, 32 if args.quick else PROBES, not args.quick, where))
        print(f"{setting.name}: {clock(where) - begun:.1f} s", flush=True)
    if parts == 1:
        estimator_report.report(found, keep=not args.quick)


if __name__ == "__main__":
    main()
