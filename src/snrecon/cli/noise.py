"""``snrecon noise``: reconstruct a scan and map its noise."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from snrecon.cli import output
from snrecon.cli.options import (
    add_command,
    add_device,
    add_method,
    add_scan,
    count,
    load_command,
    load_method,
    load_scan,
    non_negative,
    positive,
)
from snrecon.cli.progress import Progress
from snrecon.errors import InputError

ESTIMATORS = ("auto", "analytic", "exact", "certified", "corrected", "sketch", "replicas")


def add(commands: Any) -> None:
    """Register the command."""
    parser = add_command(commands, "noise", "Reconstruct a scan with a map of its noise.", run)
    add_scan(parser)
    add_method(parser, required=False)
    add_device(parser)
    parser.add_argument(
        "--command",
        metavar="TEXT",
        help="external reconstruction on cfl files, e.g. 'bart pics -w1 {kspace} {maps} {image}'",
    )
    group = parser.add_argument_group("noise map")
    group.add_argument("--estimator", choices=ESTIMATORS, default="auto")
    group.add_argument(
        "--tolerance", metavar="T", type=non_negative, default=0.05,
        help="stop at this relative error of sigma (default 0.05), certified where the estimator "
        "certifies; 0 runs to --max-passes",
    )  # fmt: skip
    group.add_argument("--max-passes", metavar="N", type=count, help="stop after N passes")
    group.add_argument("--seed", metavar="S", type=count, default=0, help="seed of the probes")
    group.add_argument(
        "--state", metavar="FILE", type=Path,
        help="keep the work here (the analytic map has none): an interrupted run continues, "
        "states of other seeds merge",
    )  # fmt: skip
    group.add_argument(
        "--compress", metavar="SHARE", type=positive,
        help="exact rows: voxels share a pass where at most SHARE (1e-4, say) of a row's energy "
        "lies in a neighbour's part",
    )  # fmt: skip
    group.add_argument(
        "--predictor", metavar="FILE",
        help="certified and corrected maps: a network trained (scheme noise_predictor) to predict "
        "the noise of this method, or the name of a shipped one",
    )  # fmt: skip
    group.add_argument(
        "--dither", metavar="FRACTION", type=positive,
        help="also save a copy of the image with noise of FRACTION times sigma added, for display",
    )  # fmt: skip
    output.add_out(parser)


def run(args: argparse.Namespace) -> None:
    """Map the noise, save and summarise it."""
    _check(args)
    out = output.destination(args)
    recon = load_command(args) if args.method is None else load_method(args)
    scan = load_scan(args)
    from snrecon.noise import dither, noise_map

    with Progress(args.method or "external command") as progress:
        result = noise_map(
            recon,
            scan,
            estimator=args.estimator,
            tolerance=args.tolerance,
            max_passes=args.max_passes,
            seed=args.seed,
            progress=progress,
            state=args.state,
            compress=args.compress,
            predictor=args.predictor,
        )
    if args.dither is not None:
        result = dither(result, args.dither, seed=args.seed)
    started = time.time()
    result.save(out)
    from snrecon.report.result_text import describe_repetitions, describe_result

    print(describe_result(result))
    for path in output.written(out, started):
        print(f"wrote {path}")
    if args.state is not None and result.estimator != "analytic":
        print(f"state {args.state}")
    if scan.repetitions is not None and scan.repetitions.shape[0] > 1:
        print(f"reconstructing {scan.repetitions.shape[0]} repetitions to compare with",
              file=sys.stderr)
        print(describe_repetitions(recon, scan, result))


def _check(args: argparse.Namespace) -> None:
    if (args.method is None) == (args.command is None):
        raise InputError("give the reconstruction either as --method NAME or as --command TEXT.")
    if args.command is not None:
        if args.estimator not in ("auto", "replicas"):
            raise InputError(
                f"--estimator {args.estimator} needs a reconstruction that can be differentiated; "
                "an external command is measured with replicas."
            )
        if args.lamda is not None:
            raise InputError("--lambda belongs to --method; write it into the --command itself.")
        if args.settings:
            raise InputError("--set belongs to --method; write it into the --command itself.")
        if args.device != "cpu":
            raise InputError("--device belongs to --method; an external command chooses its own.")
    if args.compress is not None and args.estimator != "exact":
        raise InputError("--compress is for --estimator exact only.")
    if args.max_passes is not None and args.estimator == "exact":
        raise InputError("--max-passes does not go with --estimator exact, which takes a row for "
                         "every voxel; with --state it can be interrupted and continued.")
    if args.tolerance >= 1:
        raise InputError(f"--tolerance {args.tolerance:g} must lie below 1, e.g. 0.05.")
    sampled = args.estimator not in ("auto", "analytic", "exact")  # which may need no passes
    if args.tolerance == 0 and args.max_passes is None and sampled:
        raise InputError("--tolerance 0 never stops by itself: give --max-passes N as well.")
    if args.max_passes == 0:
        raise InputError("--max-passes must be at least 1.")
