"""``snrecon decompose``: how thermal noise and a sampler's own draws add up."""

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
    add_regions,
    add_scan,
    count,
    load_method,
    load_regions,
    load_scan,
)
from snrecon.cli.progress import Progress
from snrecon.errors import InputError

ESTIMATORS = ("auto", "jacobian", "replicas")


def add(commands: Any) -> None:
    """Register the command."""
    parser = add_command(
        commands, "decompose",
        "Part the variance of a method that draws into thermal noise and the spread of its draws.",
        run,
    )  # fmt: skip
    add_scan(parser)
    add_method(parser)
    add_device(parser)
    group = parser.add_argument_group("law of total variance")
    group.add_argument(
        "--rounds", metavar="N", type=count, default=32,
        help="independent rounds of noise and seeds (default 32); errors fall with their root",
    )  # fmt: skip
    group.add_argument(
        "--seeds", metavar="N", type=count, default=4, help="seeds in each round (default 4)"
    )
    group.add_argument(
        "--estimator", choices=ESTIMATORS, default="auto",
        help="jacobian: the thermal part to first order; replicas: by finite differences",
    )  # fmt: skip
    add_regions(parser, "means over which are wanted too")
    group.add_argument("--seed", metavar="S", type=count, default=0, help="seed of all draws")
    group.add_argument(
        "--state", metavar="FILE", type=Path, help="keep the work here: an interrupted run goes on"
    )
    output.add_out(parser)


def run(args: argparse.Namespace) -> None:
    """Decompose, save and summarise."""
    if args.rounds < 2 or args.seeds < 2:
        raise InputError("--rounds and --seeds must be at least 2.")
    out = output.destination(args, "decomposition")
    recon = load_method(args)
    scan = load_scan(args)
    regions = load_regions(args)
    from snrecon.uncertainty import decompose

    with Progress(args.method) as progress:
        result = decompose(
            recon,
            scan,
            rounds=args.rounds,
            seeds=args.seeds,
            estimator=args.estimator,
            seed=args.seed,
            regions=regions,
            progress=progress,
            state=args.state,
        )
    started = time.time()
    result.save(out)
    from snrecon.report.parts_text import describe_parts

    print(describe_parts(result))
    for path in output.written(out, started):
        print(f"wrote {path}")
    if args.state is not None:
        print(f"state {args.state}")
