"""How close Jacobian products come to what a GPU can do.

Two ceilings are measured in the same run: products of 8192 x 8192 matrices in float32 and bfloat16
(random numbers), and a copy within the device's memory, bytes read plus written. Against them, for
each network, size and precision of the tangents, a batch of probes:

- milliseconds a probe and a forward pass, each in a batch of the same size;
- the arithmetic of its convolutions (counted on a forward pass; a tangent has the same) over its
  time, as a share of the matrix product's rate in that precision;
- with ``--profile``, which share of the time the device computes at all, and how that divides
  between convolutions, Fourier transforms and the rest, which is bound by memory.

    python -m benchmarks.roof [--device cuda] [--networks varnet modl unet e2e_varnet] [--batch 64]
                              [--profile] [--quick]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cost import scan_of
from benchmarks.device import label
from benchmarks.table import publish, table
from snrecon.noise.problem import Problem
from snrecon.noise.sketch import random_phase
from snrecon.physics.clock import clock
from snrecon.physics.precision import full_precision, low_precision
from snrecon.recon.registry import load

SIZES = (128, 320)
NETWORKS = ("varnet", "modl", "unet", "e2e_varnet")
CONVOLUTIONS = ("conv", "gemm", "cudnn", "cutlass", "xmma", "implicit", "winograd", "wgrad", "nchw",
                "nhwc")
"""Parts of the names of kernels that convolutions run."""


def seconds(run: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Median time of a call, after one that warms up."""
    run()
    found = []
    for _ in range(rounds):
        begun = clock(device)
        run()
        found.append(clock(device) - begun)
    return median(found)


def ceilings(device: torch.device, quick: bool) -> dict[str, float]:
    """FLOP/s of matrix products by precision, and ``copy`` in bytes/s."""
    size, count = (512, 2**20) if quick else (8192, 2**30)
    generator = torch.Generator(device).manual_seed(1)
    found = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a, b = (torch.randn(size, size, generator=generator, device=device).to(dtype)
                for _ in range(2))
        with full_precision():
            found[name] = 2 * size**3 / seconds(lambda a=a, b=b: a @ b, device, 5)
    source = torch.randn(count, generator=generator, device=device)
    target = torch.empty_like(source)
    found["copy"] = 8 * count / seconds(lambda: target.copy_(source), device, 5)
    return found


def convolution_flops(problem: Problem) -> float:
    """Of one forward pass; matrix products of the physics count as well."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        problem.bound.function(problem.scan.kspace)
    return float(counter.get_total_flops())


def shares(run: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Kernel time of a call by kind, seconds."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    run()
    clock(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        run()
        clock(device)
    spent = {"convolutions": 0.0, "Fourier transforms": 0.0, "rest": 0.0}
    for event in found.events() or []:
        if event.device_type != DeviceType.CUDA:
            continue
        name = event.name.lower()
        kind = "Fourier transforms" if "fft" in name else (
            "convolutions" if any(part in name for part in CONVOLUTIONS) else "rest")
        spent[kind] += event.time_range.elapsed_us() * 1e-6
    return spent


def measure(
    network: str, size: int, batch: int, device: torch.device, roof: dict[str, float],
    profiled: bool, rounds: int,
) -> list[list[str]]:
    """Rows of the table: tangents in float32 and in bfloat16."""
    problem = Problem.of(load(network), scan_of(size).to(device))
    noise = problem.colouring(random_phase(problem, 1, range(batch)))
    flops = convolution_flops(problem)
    many = problem.scan.kspace + noise
    lines = []
    with torch.no_grad(), full_precision():
        forward = seconds(lambda: problem.bound.function(many), device, rounds) / batch
        for name, dtype in (("float32", None), ("bfloat16", torch.bfloat16)):
            with low_precision(dtype):
                def product() -> object:
                    return problem.linearization.jvp(noise)

                spent = seconds(product, device, rounds) / batch
                line = [network, f"{size} x {size}", name, f"{1e3 * spent:.3f}",
                        f"{1e3 * forward:.3f}", f"{flops / 1e9:.1f}",
                        f"{flops / spent / 1e12:.2f}", f"{100 * flops / spent / roof[name]:.1f}"]
                if profiled:
                    parts = shares(product, device)
                    busy = sum(parts.values())
                    line.append(f"{100 * busy / (batch * spent):.0f}")
                    line += [f"{100 * part / max(busy, 1e-12):.0f}" for part in parts.values()]
                lines.append(line)
    return lines


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--networks", nargs="*", default=NETWORKS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--profile", action="store_true", help="kernels by kind (CUDA only)")
    parser.add_argument("--quick", action="store_true", help="one small size, nothing kept")
    args = parser.parse_args()
    device = torch.device(args.device)
    roof = ceilings(device, args.quick)
    header = ["network", "grid", "tangents", "ms a probe", "ms a forward pass",
              "GFLOP of convolutions", "TFLOP/s", "% of the roof"]
    if args.profile:
        header += ["% of the time computing", "of it convolutions, %", "Fourier transforms, %",
                   "rest, %"]
    lines = []
    for network in args.networks:
        for size in (96,) if args.quick else SIZES:
            batch = min(args.batch, 4) if args.quick else args.batch
            lines += measure(network, size, batch, device, roof, args.profile,
                             2 if args.quick else 5)
    body = (
        f"{label(device)}, {args.batch} probes at once, 8 coils, random lines, R = 4. Ceilings: "
        f"{roof['float32'] / 1e12:.1f} TFLOP/s in float32, {roof['bfloat16'] / 1e12:.0f} in "
        f"bfloat16, {roof['copy'] / 1e12:.2f} TB/s.\n\n{table(header, lines)}")
    publish("roof", "Jacobian products against the roof of a GPU", body, keep=not args.quick,
            device=label(device))


if __name__ == "__main__":
    main()
