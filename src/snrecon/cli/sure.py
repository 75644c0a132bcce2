"""``snrecon sure``: the squared error of a reconstruction, estimated from its data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from snrecon.cli import output
from snrecon.cli.options import (
    add_command,
    add_device,
    add_method,
    add_regions,
    add_scan,
    count,
    load_method,
    load_regions,
    load_scan,
    positive,
)
from snrecon.cli.progress import Progress
from snrecon.errors import InputError

RISKS = ("projected", "prediction", "published")


def add(commands: Any) -> None:
    """Register the command."""
    parser = add_command(
        commands, "sure",
        "Estimate the squared error of a reconstruction from its data (Stein's unbiased risk "
        "estimate).", run,
    )  # fmt: skip
    add_scan(parser)
    add_method(parser)
    add_device(parser)
    group = parser.add_argument_group("risk estimate")
    group.add_argument(
        "--risk", choices=RISKS, default="projected",
        help="of the image as far as the samples determine it (default), of the k-space samples, "
        "or the published heuristic",
    )  # fmt: skip
    group.add_argument(
        "--probes", metavar="N", type=count, default=16, help="Jacobian products (default 16)"
    )
    group.add_argument(
        "--tolerance", metavar="T", type=positive,
        help="go on in blocks of --probes until the standard error is this small, relative to the "
        "risk",
    )  # fmt: skip
    group.add_argument(
        "--cutoff", metavar="C", type=positive,
        help="projected risk: weight, relative to the best measured direction, below which the "
        "image counts as not measured (default 0.01)",
    )  # fmt: skip
    add_regions(parser, "the risk within which is wanted too")
    group.add_argument("--seed", metavar="S", type=count, default=0, help="seed of the probes")
    group.add_argument("--out", metavar="FILE.json", type=Path, help="also write the numbers here")


def run(args: argparse.Namespace) -> None:
    """Estimate, print and save."""
    if args.out is not None:
        if args.out.suffix != ".json":
            raise InputError(f"--out {args.out}: a risk is written to a file that ends in .json.")
        output.writable(args.out, output.inputs(args))
    recon = load_method(args)
    scan = load_scan(args)
    regions = load_regions(args, scan.kspace.device)
    from snrecon.uncertainty.sure import sure

    options = {} if args.cutoff is None else {"cutoff": args.cutoff}
    with Progress(args.method) as progress:
        found = sure(
            recon,
            scan,
            risk=args.risk,
            regions=regions,
            probes=args.probes,
            tolerance=args.tolerance,
            seed=args.seed,
            progress=progress,
            **options,
        )
    print(found)
    if args.out is not None:
        found.save(args.out)
        print(f"wrote {args.out}")
