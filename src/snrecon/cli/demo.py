"""``snrecon demo``: a simulated brain scan, three noise maps of it, and one figure."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from snrecon.cli.options import add_command
from snrecon.cli.progress import Progress


def add(commands: Any) -> None:
    """Register the command."""
    parser = add_command(
        commands, "demo", "Simulate a brain scan and map the noise of its reconstructions.", run
    )
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("demo"))


def run(args: argparse.Namespace) -> None:
    """Run the demonstration and say what was written."""
    from snrecon.report.demo import Demo

    with Progress("demo") as progress:
        demo = Demo.run(args.out, progress=progress, stage=progress.step)
    print(demo)
