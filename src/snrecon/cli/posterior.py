"""``snrecon posterior``: several reconstructions of the same data, and how they spread."""

from __future__ import annotations

import argparse
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
    load_method,
    load_scan,
    positive,
)
from snrecon.cli.progress import Progress
from snrecon.errors import InputError


def add(commands: Any) -> None:
    """Register the command."""
    parser = add_command(
        commands, "posterior",
        "Draw several reconstructions of a scan; save their mean, spread and intervals.", run,
    )  # fmt: skip
    add_scan(parser)
    add_method(parser)
    add_device(parser)
    group = parser.add_argument_group("samples")
    group.add_argument(
        "--samples", metavar="N", type=count, default=40, help="how many (default 40)"
    )
    group.add_argument("--seed", metavar="S", type=count, default=0, help="seed of the draws")
    group.add_argument(
        "--level", metavar="P", type=positive, default=0.95,
        help="what the intervals cover (default 0.95); from 2/(1-P)-1 samples on they assume no "
        "distribution, below they are Student's, for normal samples",
    )  # fmt: skip
    group.add_argument(
        "--keep", action="store_true", help="keep all samples in the file (.h5, .npz)"
    )
    group.add_argument(
        "--state", metavar="FILE", type=Path, help="keep the work here: an interrupted run goes on"
    )
    output.add_out(parser)


def run(args: argparse.Namespace) -> None:
    """Draw, save and summarise."""
    if args.samples < 2:
        raise InputError("--samples must be at least 2.")
    if args.level >= 1:
        raise InputError(f"--level {args.level:g} must lie below 1, e.g. 0.95.")
    out = output.destination(args, "posterior")
    if args.keep and out.suffix not in (".h5", ".hdf5", ".npz"):
        raise InputError(f"--keep: {out} has no room for samples; write .h5 or .npz.")
    recon = load_method(args)
    scan = load_scan(args)
    from snrecon.uncertainty import posterior

    with Progress(args.method) as progress:
        result = posterior(
            recon,
            scan,
            args.samples,
            seed=args.seed,
            level=args.level,
            progress=progress,
            state=args.state,
            keep=args.keep,
        )
    started = time.time()
    result.save(out)
    from snrecon.report.spread_text import describe_spread

    print(describe_spread(result))
    for path in output.written(out, started):
        print(f"wrote {path}")
    if args.state is not None:
        print(f"state {args.state}")
