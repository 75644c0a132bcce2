"""``snrecon prepare``: raw scans to training data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from snrecon.cli.options import add_command, count, non_negative
from snrecon.cli.progress import Progress


def add(commands: Any) -> None:
    """Register the command."""
    parser = add_command(
        commands, "prepare", "Make training data of raw scans: whitened, with coil maps.", run
    )
    parser.add_argument("scans", metavar="SCAN", type=Path, nargs="+",
                        help="scans of any format, or folders of them")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True)
    parser.add_argument("--coils", metavar="N", type=count, help="compress to N virtual coils")
    parser.add_argument("--keep-noise", action="store_true",
                        help="store the coils as they are, with their noise covariance")
    parser.add_argument("--min-signal", metavar="X", type=non_negative, default=0.02,
                        help="leave out slices with less than this share of bright voxels "
                        "(default 0.02)")
    parser.add_argument("--validation", metavar="X", type=non_negative, default=0.1,
                        help="share of the subjects for validation (default 0.1)")
    parser.add_argument("--seed", metavar="S", type=count, default=0, help="of the division")
    parser.add_argument("--key", metavar="NAME", help="array of the files that holds the k-space")
    parser.add_argument("--noise-covariance", metavar="FILE",
                        help="(coil, coil) noise covariance, or 'identity' for whitened data")


def run(args: argparse.Namespace) -> None:
    """Prepare and say what there is."""
    from snrecon.training.prepare import Settings, prepare

    settings = Settings(args.coils, args.keep_noise, args.min_signal, args.key,
                        args.noise_covariance)
    with Progress("prepare") as progress:
        try:
            report = prepare(args.scans, args.out, settings, validation=args.validation,
                             seed=args.seed, progress=progress)
        except KeyboardInterrupt:
            done = "none is finished"
            if args.out.exists():
                done = f"finished volumes are in {args.out}"
            args.interrupted = f"{done}: run the same command again to continue."
            raise
    print(report)
