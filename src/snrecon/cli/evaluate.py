"""``snrecon evaluate``: NMSE, PSNR and SSIM against references."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from snrecon.cli import output
from snrecon.cli.options import (
    add_command,
    add_device,
    add_method,
    add_scan,
    chosen_device,
    load_method,
    undersampling,
)
from snrecon.cli.progress import Progress
from snrecon.errors import InputError


def add(commands: Any) -> None:
    """Register the command."""
    parser = add_command(
        commands, "evaluate",
        "Score images against references, or a method on fully sampled scans.", run,
    )  # fmt: skip
    add_scan(parser, "results to score, or fully sampled scans: a file or a folder")
    add_method(parser, required=False)
    add_device(parser)
    group = parser.add_argument_group("scores")
    group.add_argument(
        "--against", metavar="PATH", type=Path,
        help="references of finished images: fastMRI files or results, a file or a folder",
    )  # fmt: skip
    group.add_argument(
        "--reference", choices=("rss", "matched"),
        help="kind of the reference (with --method: default rss)",
    )  # fmt: skip
    group.add_argument(
        "--region", choices=("full", "head"), default="full",
        help="head: where the reference is above a tenth of its 99th percentile",
    )  # fmt: skip
    group.add_argument("--out", metavar="FILE.csv", type=Path, help="write the scores here")


def run(args: argparse.Namespace) -> None:
    """Score, write and print."""
    if (args.method is None) == (args.against is None):
        raise InputError(
            "give either --against REFERENCES for finished images, or --method NAME for scans."
        )
    if args.out is not None:
        if args.out.suffix != ".csv":
            raise InputError(f"--out {args.out}: scores are written to a file that ends in .csv.")
        output.writable(args.out, output.inputs(args))
        args.interrupted = f"the finished volumes, if any, are in {args.out}."
    from snrecon.report.evaluate import compare, reconstruct
    from snrecon.report.score_table import collect, show

    with Progress(args.method or "evaluate") as progress:
        if args.against is not None:
            _no_scan_options(args)
            rows = compare(args.scan, args.against, reference=args.reference, region=args.region,
                           progress=progress)
        else:
            rows = reconstruct(
                args.scan, load_method(args), undersampling(args), name=args.method,
                reference=args.reference or "rss", region=args.region, progress=progress,
                key=args.key, slice=args.slice, maps=args.maps,
                noise_covariance=args.noise_covariance, device=chosen_device(args),
            )  # fmt: skip
        finished = collect(rows, args.out)
    show(finished, sys.stdout)
    if args.out is not None:
        print(f"wrote {args.out}")


def _no_scan_options(args: argparse.Namespace) -> None:
    names = ("key", "slice", "mask", "acceleration", "calibration", "maps", "noise_covariance",
             "lamda")
    given = [name for name in names if getattr(args, name) is not None]
    given += [name for name, used in (("device", args.device != "cpu"), ("set", args.settings),
                                      ("mask-seed", args.mask_seed)) if used]
    if given:
        option = "lambda" if given[0] == "lamda" else given[0].replace("_", "-")
        raise InputError(f"--{option} belongs to --method; finished images are only compared.")
