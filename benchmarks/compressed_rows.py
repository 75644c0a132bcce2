"""An exact map of a whole slice by compressed rows, against rows taken alone.

The slice is a FLAIR image of 320x320 voxels (TorchIO's head) measured by eight simulated coils at
a mean SNR of 30, random lines, R = 4; the network the VarNet that ships. What is mapped is the
magnitude image, whose noise has one component: one VJP a comb, or a voxel. Compared are 500 random
voxels of the head: root mean square of the difference of sigma over its root mean square.

    python -m benchmarks.compressed_rows [--size 320] [--voxels 500] [--leakage 1e-3] [--quick]
                                         [--device cuda]

Rows are kept under ``build/benchmarks/compressed_rows`` and gone on with; an hour on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.device import add_options, chosen_device, label, vjp_passes
from benchmarks.noise_paper import drawn_voxels
from benchmarks.real_scans import ROOT
from benchmarks.table import publish, table
from snrecon.data import NoiseMap, Scan
from snrecon.noise.exact import exact
from snrecon.noise.problem import Problem
from snrecon.noise.sampling import StateFile
from snrecon.physics.masks import make_mask
from snrecon.recon.base import Bound
from snrecon.recon.registry import load
from snrecon.training.images import draw_image, load_source
from snrecon.training.simulate import simulate_scan

CACHE = ROOT / "build" / "benchmarks" / "compressed_rows"
COILS, SNR, RATE = 8, 30.0, 4.0


def slice_of(size: int) -> tuple[Scan, Tensor]:
    """The scan and its head."""
    source = load_source("torchio_flair/axial.npz:flair", voxel=0.75)
    picture = draw_image(source, size, torch.Generator().manual_seed(1))
    mask = make_mask("random", (size, size), RATE, calibration=size // 12, seed=0).tensor
    scan, _ = simulate_scan(picture, COILS, SNR, mask, seed=1)
    return scan, picture > 0.1


def magnitude(scan: Scan) -> Problem:
    """The VarNet's magnitude image."""
    bound = load("varnet").bind(scan)
    return Problem(Bound(lambda kspace: bound.function(kspace).abs(), "varnet, magnitude"), scan)


def rows(problem: Problem, voxels: Tensor, compress: float | None, path: Path) -> NoiseMap:
    """Exact rows, gone on with where they were interrupted."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def tell(done: int, total: int | None, message: str) -> None:
        if done % 100 == 0:
            print(f"{message} {done} of {total}", flush=True)

    return exact(problem, voxels=voxels, compress=compress, state_file=StateFile.at(path),
                 progress=tell)


def main() -> None:
    """Both ways, compared."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--voxels", type=int, default=500)
    parser.add_argument("--leakage", type=float, default=1e-3)
    parser.add_argument("--quick", action="store_true", help="32x32, nothing kept")
    add_options(parser)
    args = parser.parse_args()
    where = chosen_device(args.device)
    size, count = (32, 50) if args.quick else (args.size, args.voxels)
    scan, head = slice_of(size)
    problem = magnitude(scan.to(where))
    chosen = drawn_voxels(head, count)
    own = None if where.type == "cpu" else vjp_passes(problem)
    found = {}
    for name, voxels, compress in (("alone", chosen, None), ("compressed", head, args.leakage)):
        path = CACHE / f"{size}-{name}.h5"
        if args.quick:
            path.unlink(missing_ok=True)
        found[name] = rows(problem, voxels, compress, path)
    alone, shared = (found[name].sigma.cpu()[chosen] for name in ("alone", "compressed"))
    difference = float((shared - alone).square().mean().sqrt() / alone.square().mean().sqrt())
    lines = []
    for name, what in found.items():
        voxels = int(what.details["voxels"])
        cost = own or float(what.details["forward_passes_per_vjp"])
        vjps = int(what.details["vjps"])
        lines.append((name, voxels, vjps, f"{cost:.2f}", f"{vjps * cost:.0f}",
                      f"{voxels / vjps:.1f}"))
    facts = found["compressed"].details
    leakage, expected = (100 * float(facts[key]) for key in ("leakage", "compression_error"))
    body = (
        f"{size}x{size}, {COILS} coils, R = {scan.acceleration:.1f}, {int(head.sum())} voxels in "
        f"the head, those that share a pass {facts['spacing']} columns apart, {leakage:.3f} % of a "
        f"row's energy outside its part.\n\nDifference of sigma at {count} voxels: "
        f"**{100 * difference:.3f} % RMS** (the map itself expects {expected:.3f} %).\n\n"
        + table(["rows", "voxels", "VJPs", "forward passes a VJP", "forward passes",
                 "voxels a VJP"], lines))
    publish("compressed_rows", "Exact maps by compressed rows", body, keep=not args.quick,
            device=label(where))


if __name__ == "__main__":
    main()
