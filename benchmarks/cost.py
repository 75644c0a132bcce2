"""What a noise map costs: seconds per probe over seconds per forward pass, and peak memory.

Ratios within one run. The forward pass is the fastest per-image time over batches of 1 to 8 under
``inference_mode``; a probe is everything the sketch does for it (drawing, colouring, the Jacobian
product, accumulating). Forward passes and probes are timed in turns, so that a machine whose speed
drifts does not favour either. Peak memory is the high-water mark of a process of its own.

    python -m benchmarks.cost [--quick] [--method varnet]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from benchmarks.table import publish, table
from snrecon.data import Scan
from snrecon.noise import noise_map
from snrecon.noise.problem import Problem
from snrecon.noise.sketch import sketch
from snrecon.physics.phantom import simulate_scan
from snrecon.recon.registry import load

SIZES = (128, 320)
COILS = 8


def scan_of(size: int) -> Scan:
    """A simulated scan of ``size`` x ``size`` with 8 coils at R = 4, with its maps."""
    return simulate_scan((size, size), coils=COILS, mask="random", seed=0, with_maps=True)


def seconds(run: Callable[[], object]) -> float:
    """One timed call."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def forward_times(problem: Problem) -> dict[int, float]:
    """Per-image seconds of a forward pass at each batch size."""
    times = {}
    kspace = problem.scan.kspace
    for batch in (1, 2, 4, 8):
        batched = kspace.expand(batch, *kspace.shape).contiguous()
        with torch.inference_mode():
            times[batch] = seconds(lambda y=batched: problem.bound(y)) / batch  # type: ignore[misc]
    return times


def measure(method: str, size: int, rounds: int, probes: int) -> dict[str, float]:
    """Fastest forward and probe times over alternating rounds."""
    problem = Problem.of(load(method), scan_of(size))
    _ = problem.image
    sketch(problem, tolerance=0, max_passes=4, seed=99)  # find strategy, warm up
    forward_times(problem)
    forward, probe, vjp = [], [], []
    unit = torch.zeros(4, *problem.image.shape, dtype=problem.image.dtype)
    unit[:, size // 2, size // 2] = 1
    problem.linearization.vjp(unit)
    for seed in range(rounds):
        forward.append(min(forward_times(problem).values()))
        took = seconds(
            lambda s=seed: sketch(problem, tolerance=0, max_passes=probes, seed=s)  # type: ignore[misc]
        )
        probe.append(took / probes)
        vjp.append(seconds(lambda: problem.linearization.vjp(unit)) / 4)
    pairs = sorted(p / f for p, f in zip(probe, forward, strict=True))
    return {
        "forward": min(forward),
        "probe": min(probe),
        "ratio": pairs[len(pairs) // 2],
        "best": min(probe) / min(forward),
        "vjp": min(vjp) / min(forward),
    }


def peak_memory(method: str, size: int, probes: int) -> float:
    """Peak MiB of a fresh process that sketches with so many probes."""
    code = f"from benchmarks.cost import child; child({method!r}, {size}, {probes})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def child(method: str, size: int, probes: int) -> None:
    """What :func:`peak_memory` runs."""
    noise_map(load(method), scan_of(size), estimator="sketch", tolerance=0, max_passes=probes)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="128 only, few probes")
    parser.add_argument("--method", default="varnet")
    args = parser.parse_args()
    sizes = SIZES[:1] if args.quick else SIZES
    few, many = (50, 100) if args.quick else (50, 1000)
    timing, memory = [], []
    for size in sizes:
        found = measure(args.method, size, 3 if args.quick else 7, 32)
        timing.append(
            (
                f"{size}x{size}x{COILS}",
                f"{1e3 * found['forward']:.1f}",
                f"{1e3 * found['probe']:.1f}",
                f"{found['ratio']:.2f}",
                f"{found['best']:.2f}",
                f"{found['vjp']:.2f}",
            )
        )
        small, large = (peak_memory(args.method, size, n) for n in (few, many))
        memory.append(
            (f"{size}x{size}x{COILS}", f"{small:.0f}", f"{large:.0f}", f"{large / small:.3f}")
        )
    body = table(
        ["size", "forward, ms", "probe, ms", "probe / forward (median of rounds)",
         "fastest / fastest", "VJP / forward"],
        timing,
    )
    body += "\n\n" + table(
        ["size", f"peak MiB, {few} probes", f"peak MiB, {many} probes", "ratio"], memory
    )
    body += "\n\nWanted: probe / forward at most 1.2; memory ratio at most 1.1."
    publish("cost", f"Cost of a sketch with {args.method}", body, keep=not args.quick)


if __name__ == "__main__":
    main()
