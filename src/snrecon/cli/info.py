"""``snrecon info``: what was understood of a scan."""

from __future__ import annotations

import argparse
from typing import Any

from snrecon.cli.options import add_command, add_scan, load_scan


def add(commands: Any) -> None:
    """Register the command."""
    add_scan(add_command(commands, "info", "Print what was understood of a scan.", run))


def run(args: argparse.Namespace) -> None:
    """Print the description of the scan."""
    import sys

    from snrecon.report.scan_text import describe_scan

    print(describe_scan(load_scan(args), encoding=sys.stdout.encoding or "ascii"))
