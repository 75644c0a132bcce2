"""``snrecon merge``: one noise map from the states of several runs."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from snrecon.cli import output
from snrecon.cli.options import add_command
from snrecon.errors import InputError


def add(commands: Any) -> None:
    """Register the command."""
    parser = add_command(
        commands, "merge", "Merge noise-map states of the same scan with different seeds.", run
    )
    parser.add_argument("states", metavar="STATE", type=Path, nargs="+", help="two or more states")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, required=True, help=".h5, .npz, .nii.gz or .cfl"
    )


def run(args: argparse.Namespace) -> None:
    """Merge, save and summarise."""
    if len(args.states) < 2:
        raise InputError("merge needs at least two state files.")
    out = output.checked(args.out, args.states)
    from snrecon.noise import merge
    from snrecon.report.result_text import describe_result

    result = merge(list(args.states))
    started = time.time()
    result.save(out)
    print(describe_result(result))
    for path in output.written(out, started):
        print(f"wrote {path}")
