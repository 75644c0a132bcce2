"""``snrecon recon``: reconstruct a scan without a noise map."""

from __future__ import annotations

import argparse
from typing import Any

from snrecon.cli import output
from snrecon.cli.options import add_command, add_method, add_scan, load_method, load_scan


def add(commands: Any) -> None:
    """Register the command."""
    parser = add_command(commands, "recon", "Reconstruct a scan.", run)
    add_scan(parser)
    add_method(parser)
    output.add_out(parser)


def run(args: argparse.Namespace) -> None:
    """Reconstruct and save."""
    import time

    from snrecon.io import save_image

    out = output.checked(
        args.out or output.default(args.scan, args.method, args.slice, "image"), [args.scan]
    )
    recon = load_method(args)
    scan = load_scan(args)
    started = time.time()
    image, units, details = recon.reconstruct(scan)
    save_image(image, out, scan=scan, method=args.method, units=units, metadata=details)
    shape = "x".join(map(str, image.shape))
    print(f"{args.method}: image {shape}, acceleration {scan.acceleration:.2f}")
    for path in output.written(out, started):
        print(f"wrote {path}")
