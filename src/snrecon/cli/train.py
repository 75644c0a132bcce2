"""``snrecon train``: train a network as a configuration file says."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from snrecon.cli.options import add_command
from snrecon.cli.progress import Progress


def add(commands: Any) -> None:
    """Register the command."""
    parser = add_command(commands, "train", "Train a network from a TOML configuration.", run)
    parser.add_argument("config", metavar="CONFIG.toml", type=Path)
    folder = parser.add_mutually_exclusive_group()
    folder.add_argument(
        "--resume", action="store_true", help="continue from the last checkpoint, if there is one"
    )
    folder.add_argument(
        "--replace", action="store_true", help="give up the training that is in the output folder"
    )


def run(args: argparse.Namespace) -> None:
    """Train and say where the weights are."""
    from snrecon.training import train

    with Progress("training", percent=True) as progress:
        weights = train(
            args.config, resume=args.resume, replace=args.replace, progress=progress
        )
    if os.environ.get("LOCAL_RANK", "0") == "0":  # the other trainer.devices run this, too
        print(f"wrote {weights}")
