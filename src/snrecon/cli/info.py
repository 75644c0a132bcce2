"""``snrecon info``: what was understood of a scan."""

from __future__ import annotations

import argparse
from typing import Any

from snrecon.cli.options import add_command, add_lambda, add_scan, load_scan


def add(commands: Any) -> None:
    """Register the command."""
    parser = add_command(commands, "info", "Print what was understood of a scan.", run)
    add_scan(parser)
    # The common options are accepted by every command that reads a scan.
    add_lambda(parser, "accepted as by the other commands; a scan alone has no use for it")


def run(args: argparse.Namespace) -> None:
    """Print the description of the scan."""
    import sys

    from snrecon.report.scan_text import describe_scan

    print(describe_scan(load_scan(args), encoding=sys.stdout.encoding or "ascii"))
