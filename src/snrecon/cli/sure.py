"""``snrecon sure``: the squared error of a reconstruction, estimated from its data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from torch import Tensor

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
    group.add_argument(
        "--region", metavar="NAME=FILE.npy", action="append", default=[],
        help="boolean array of the image's shape, the risk within which is wanted too (repeatable)",
    )  # fmt: skip
    group.add_argument("--seed", metavar="S", type=count, default=0, help="seed of the probes")
    group.add_argument("--out", metavar="FILE.json", type=Path, help="also write the numbers here")


def run(args: argparse.Namespace) -> None:
    """Estimate, print and save."""
    if args.out is not None:
        if args.out.suffix != ".json":
            raise InputError(f"--out {args.out}: a risk is written to a file that ends in .json.")
        output.writable(args.out, [args.scan])
    recon = load_method(args)
    scan = load_scan(args)
    regions = {name: part.to(scan.kspace.device)
               for name, part in (_region(text) for text in args.region)}
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


def _region(text: str) -> tuple[str, Tensor]:
    """``NAME=FILE.npy`` as a name and a boolean tensor."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise InputError(f"--region {text}: give a name and a file, NAME=FILE.npy.")
    import torch

    from snrecon.io.npy import read_npy

    array = read_npy(path)
    if array.dtype.kind not in "biu":
        raise InputError(f"--region {path} must hold booleans, not {array.dtype}.")
    return name, torch.from_numpy(array.astype(bool))
