"""The published code of Jacobian sketching beside ours: seconds and memory at equal true error.

Dalmaz et al., Efficient Noise Calculation in Deep Learning-based MRI Reconstructions, ICML 2025.
Its estimator is loaded from a checkout and runs as it is, all probes at once; nothing of it is in
this repository. Network, weights, scan, mask, maps and noise covariance are the same for both.

The estimator is a method that asks its model for ``model_forward`` and the signal model for its
adjoint; both are here a :class:`Bridge` to our network. So only the file with the method is loaded,
and what it imports beside torch, numpy and the standard library are stand-ins that it never calls.
No file is changed. What it is given so that its map means what ours does:

- a factor ``L^T / sqrt(2)`` of the noise covariance ``L L^H``: it multiplies from the right, and
  the power of its probes is 2;
- the image as its components along and across its phase, whose squares it averages apart: their sum
  is the ``sigma_complex**2`` that it estimates, the first alone the ``sigma**2`` of the magnitude;
- noise that is white along the readout, since it knows covariances of coils only;
- a network whose ``A^H A`` is by Fourier transforms of all coils, as is usual and as its own is; in
  a second row, one whose ``A^H A`` is by dense lines, as ours has it where that takes less time.

Ours is :func:`snrecon.noise_map` in full, from binding to the certificate. Error is the RMS of
``sigma / truth - 1`` over every twelfth line of the head against compressed exact rows. Both run in
turns on one thread. Seconds are the processor's, so that other work on the machine counts for
neither; those outside the kernel stand beside them, since a batch of all probes spends up to half
of its time there, on fresh pages, which another allocator may not ask for. Probes to an error are
read off a line between the two nearest points, both logarithmic (never fewer than were tried), and
seconds off a line through those of all runs.

    python -m benchmarks.published_sketch --code PATH [--quick] [--networks varnet modl]

Exact rows are kept under ``build/benchmarks/published_sketch``. Not part of ``make bench``.
"""

from __future__ import annotations

import argparse
import builtins
import resource
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import module_from_spec, spec_from_file_location
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

import snrecon
from benchmarks.estimators import relative
from benchmarks.real_scans import ROOT, case
from benchmarks.scores import weights_checksum
from benchmarks.table import publish, table
from snrecon.data import NoiseMap, NoiseModel, Scan
from snrecon.networks.store import load_weights, shipped_weights
from snrecon.noise.exact import exact
from snrecon.noise.memory import peak_bytes
from snrecon.noise.problem import Problem
from snrecon.physics.gram import FourierGram
from snrecon.physics.precision import low_precision_pays
from snrecon.recon.own_network import fitted
from snrecon.recon.registry import load
from snrecon.recon.snr_units import SnrUnits

CACHE = ROOT / "build" / "benchmarks" / "published_sketch"
GET = "git clone https://github.com/onat-dalmaz/deep_recon_noise"
THEIRS = (16, 32, 50)
OURS = (6, 8, 12, 16, 24, 32)
MEMORY = (8, 32)
PUBLISHED, LINES_TOO = "published", "published, its network with our A^H A"
LOW, FULL = "ours, bfloat16 where it pays", "ours, float32 only"
TOLD = "ours, bfloat16, shipped predictor"
TARGET, LINES, LEAKAGE = 0.10, 12, 1e-3
Rows = list[Sequence[object]]
Times = np.ndarray[Any, Any]
"""Processor's seconds, and those of them outside the kernel."""
Run = tuple[Times, Tensor]
"""Times, and ``(Var a, Var b)`` of the components along and across the phase."""


class _StandIn:
    """Whatever a module has; as a decorator it changes nothing."""

    def __call__(self, *args: Any) -> Any:
        return args[0] if args and callable(args[0]) else self

    def __getattr__(self, name: str) -> _StandIn:
        return _StandIn()


def published(code: Path) -> Callable[..., tuple[Tensor, float]]:
    """The estimator, called with a model, k-space, signal model, noise factor and probes."""
    path = code / "meddlr/modeling/meta_arch/unrolled.py"
    if not path.is_file():
        raise SystemExit(f"{path} does not exist; get the published code with: {GET}")
    spec: Any = spec_from_file_location("published_code", path)
    module = module_from_spec(spec)
    real, used = builtins.__import__, {*sys.stdlib_module_names, "torch", "numpy"}

    def imported(name: str, scope: Any = None, *rest: Any) -> Any:
        own = scope is not None and scope.get("__name__") == spec.name
        unused = own and name.partition(".")[0] not in used
        return _StandIn() if unused else real(name, scope, *rest)

    with patch("builtins.__import__", imported):
        spec.loader.exec_module(module)
    return module.GeneralizedUnrolledCNN.J_sketch_variance


class Bridge:
    """Our network as the published estimator wants it: a model, and its signal model at once.

    k-space is ``(batch, ky, kx, coil)``, images ``(ky, kx, 1)`` in and ``(ky, kx, 2)`` out.
    """

    def __init__(self, network: str, problem: Problem, lines: bool) -> None:
        self.units = SnrUnits.of(problem.scan)
        self.gram = self.units.gram
        if not lines:
            self.gram = FourierGram(self.units.normalised, self.units.model.mask)
        self.network = fitted(load_weights(network, "brain"), self.units.normalised)
        self.frame = problem.direction.conj()
        self.kspace = problem.scan.kspace.movedim(0, -1)[None].contiguous()
        self.factor = problem.scan.require_noise().cholesky.mT / 2**0.5
        image = self.model_forward(self(self.kspace, adjoint=True)[0], self).detach()
        size = problem.image.abs()
        torch.testing.assert_close(image[..., 0], size, rtol=1e-4, atol=1e-5 * float(size.max()))

    def __call__(self, kspace: Tensor, adjoint: bool) -> Tensor:
        """The zero-filled image."""
        assert adjoint
        return self.units.adjoint(kspace.movedim(-1, -3)).unsqueeze(-1)

    def model_forward(self, zf_image: Tensor, A: Any) -> Tensor:
        """The components of the image."""
        image = self.network(zf_image.squeeze(-1), self.gram, self.units.support)
        return torch.view_as_real(image * self.units.inverse * self.frame)


def brain() -> tuple[Scan, Tensor]:
    """A scan at R = 4, its noise white along the readout, and the head."""
    chosen = case("pulseq", "random", 4.0)
    noise = NoiseModel(chosen.scan.require_noise().covariance)
    return replace(chosen.scan, noise=noise), chosen.head


def spent() -> Times:
    """So far, by this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return np.array([usage.ru_utime + usage.ru_stime, usage.ru_utime])


def theirs(estimator: Any, bridge: Bridge, probes: int, seed: int) -> Run:
    """One run of the published estimator."""
    torch.manual_seed(seed)
    with torch.no_grad():  # as its own inference does
        begun = spent()
        variance, _ = estimator(bridge, bridge.kspace, bridge, bridge.factor, S=probes)
        return spent() - begun, variance.movedim(-1, 0)


def ours(recon: Any, scan: Scan, probes: int, seed: int, way: str) -> Run:
    """One certified map, from scan to certificate."""
    pays = low_precision_pays if way != FULL else lambda device: False
    predictor = recon.name if way == TOLD else None
    with patch("snrecon.noise.certified.low_precision_pays", pays):
        begun = spent()
        found = snrecon.noise_map(
            recon, scan, estimator="certified", tolerance=0, max_passes=probes, seed=seed,
            predictor=predictor)
        took = spent() - begun
    assert found.covariance is not None
    return took, found.covariance[:2]


@dataclass
class Found:
    """Of one network."""

    times: dict[str, dict[int, list[Times]]]
    """Way, probes: one entry a run."""
    errors: dict[str, dict[int, list[dict[str, float]]]]
    forward: list[Times]
    bytes: dict[str, list[int]]
    facts: str

    def error(self, way: str, probes: int, kind: str) -> float:
        """Mean error of a run."""
        return statistics.mean(one[kind] for one in self.errors[way][probes])

    def reach(self, way: str, kind: str) -> tuple[float, Times]:
        """Probes and times to :data:`TARGET`."""
        counts = sorted(self.times[way])
        below = (p for p in pairwise(counts) if self.error(way, p[1], kind) <= TARGET)
        near = next(below, counts[-2:])
        logs = np.log([self.error(way, n, kind) for n in near])
        slope, offset = np.polyfit(np.log(near), logs, 1)
        probes = max(float(np.exp((np.log(TARGET) - offset) / slope)), counts[0])
        each, setup = np.polyfit(counts, [np.median(self.times[way][n], 0) for n in counts], 1)
        return probes, setup + each * probes


def true_rows(network: str, problem: Problem, head: Tensor, step: int) -> tuple[NoiseMap, Tensor]:
    """Exact rows of every ``step``-th line of the head, and where they are."""
    path = CACHE / f"{network}-{step}-{weights_checksum(network)[:12]}.npz"
    voxels = torch.zeros_like(head)
    voxels[step // 2 :: step] = head[step // 2 :: step]
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        exact(problem, voxels=voxels, compress=LEAKAGE).save(path)
    return NoiseMap.load(path), voxels


def measure(code: Path, network: str, rounds: int, quick: bool) -> Found:
    """Both in turns."""
    (scan, head), recon, estimator = brain(), load(network), published(code)
    problem = Problem.of(recon, scan)
    bridges = {way: Bridge(network, problem, way == LINES_TOO) for way in (PUBLISHED, LINES_TOO)}
    rows, voxels = true_rows(network, problem, head, 60 if quick else LINES)
    assert rows.covariance is not None
    truth = rows.covariance.double()

    def run(way: str, probes: int, seed: int) -> Run:
        if way in bridges:
            return theirs(estimator, bridges[way], probes, seed)
        return ours(recon, scan, probes, seed, way)

    many, few = ((4, 6), (4, 8)) if quick else (THEIRS, OURS)
    counts: dict[str, tuple[int, ...]] = {
        PUBLISHED: many, LINES_TOO: many, LOW: few, FULL: few}
    if network in shipped_weights("noise_predictor"):
        counts[TOLD] = few
    found = Found({way: {} for way in counts}, {way: {} for way in counts}, [], {}, "")
    _ = [run(way, 2, 99) for way in counts]  # warm
    for seed in range(rounds):
        for turn in range(max(map(len, counts.values()))):
            begun = spent()
            with torch.no_grad():
                problem.bound.function(scan.kspace)
            found.forward.append(spent() - begun)
            for way, tried in counts.items():
                if turn < len(tried):
                    took, covariance = run(way, tried[turn], seed)
                    found.times[way].setdefault(tried[turn], []).append(took)
                    error = relative(covariance, truth, voxels)
                    found.errors[way].setdefault(tried[turn], []).append(error)
    for way in (PUBLISHED, LOW):
        found.bytes[way] = [
            peak_bytes(lambda w=way, n=n: run(w, n, 0)[1])[1] for n in MEMORY]  # type: ignore[misc]
    last = snrecon.noise_map(recon, scan, estimator="certified", tolerance=0, max_passes=OURS[0])
    found.facts = (
        f"{network}: forward pass {1000 * np.median(found.forward, 0)[0]:.0f} ms, "
        f"{int(voxels.sum())} voxels, exact rows to {100 * rows.details['compression_error']:.2f} "
        f"%, bfloat16 {'' if 'tangents' in last.details else 'not '}taken up")
    return found


def tables(results: dict[str, Found]) -> str:
    """At equal error, every number of probes, and memory."""
    equal, every, memory = Rows(), Rows(), Rows()
    for network, found in results.items():
        forward = np.median(found.forward, 0)
        for kind, name in (("sigma", "sigma"), ("complex", "sigma_complex")):
            base = found.reach(PUBLISHED, kind)[1]
            for way in found.times:
                probes, took = found.reach(way, kind)
                equal.append((network, name, way, f"{probes:.1f}", f"{took[0]:.1f}",
                              f"{took[0] / forward[0]:.0f}", f"{took[1] / forward[1]:.0f}",
                              *(f"{ratio:.1f}" for ratio in base / took)))
        for way, tried in found.times.items():
            for count in sorted(tried):
                took = np.median(tried[count], 0)
                errors = (f"{100 * found.error(way, count, k):.1f}" for k in ("sigma", "complex"))
                every.append((network, way, count, *errors, f"{took[0]:.1f}",
                              *(f"{ratio:.2f}" for ratio in took / forward / count)))
        memory += [(network, way, *(f"{size / 2**20:.0f}" for size in sizes))
                   for way, sizes in found.bytes.items()]
    facts = "; ".join(found.facts for found in results.values())
    return "\n\n".join((
        f"{facts}.", f"At {100 * TARGET:.0f} % true error:",
        table(["network", "error of", "code", "probes", "seconds", "in forward passes",
               "outside the kernel", "published over this", "outside the kernel"], equal),
        "Every number of probes:",
        table(["network", "code", "probes", "error of sigma, %", "of sigma_complex, %", "seconds",
               "forward passes a probe", "outside the kernel"], every),
        "Peak of live tensors, MiB:",
        table(["network", "code", *(f"{n} probes" for n in MEMORY)], memory)))


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--code", type=Path, required=True, help=f"a checkout; {GET}")
    parser.add_argument("--quick", action="store_true", help="few probes, nothing kept")
    parser.add_argument("--networks", nargs="*", default=["varnet", "modl"])
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", snrecon.errors.SnreconWarning)
    rounds = 1 if args.quick else args.rounds
    results = {name: measure(args.code, name, rounds, args.quick) for name in args.networks}
    title = "The published sketch and ours at equal true error"
    publish("published_sketch", title, tables(results), keep=not args.quick)


if __name__ == "__main__":
    main()
