"""``snrecon recon``: reconstruct a scan without a noise map."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
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
)
from snrecon.cli.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

PICTURES = 10
"""Intermediate images that are kept, about."""


def add(commands: Any) -> None:
    """Register the command."""
    parser = add_command(commands, "recon", "Reconstruct a scan.", run)
    add_scan(parser)
    add_method(parser)
    add_device(parser)
    group = parser.add_argument_group("methods that draw or take long")
    group.add_argument("--seed", metavar="S", type=count, default=0, help="seed of what is drawn")
    group.add_argument(
        "--intermediate", metavar="FOLDER", type=Path,
        help="keep about ten pictures of the image on its way here; made if it is not there",
    )  # fmt: skip
    output.add_out(parser)


def run(args: argparse.Namespace) -> None:
    """Reconstruct and save."""
    import time

    import torch

    from snrecon.io import save_image
    from snrecon.io.staging import made_folder
    from snrecon.recon.option_types import seed_number

    out = output.destination(args, "image")
    recon = load_method(args)
    scan = load_scan(args)
    started = time.time()
    folder = made_folder(args.intermediate) if args.intermediate else nullcontext()
    with folder, Progress(args.method) as progress:
        recon.watch(_watcher(progress, args.intermediate, scan.slices))
        generator = torch.Generator().manual_seed(seed_number(args.seed))
        image, units, details = recon.reconstruct(scan, generator)
    save_image(image, out, scan=scan, method=args.method, units=units, metadata=details)
    shape = "x".join(map(str, image.shape))
    print(f"{args.method}: image {shape}, acceleration {scan.acceleration:.2f}")
    for path in output.written(out, started):
        print(f"wrote {path}")


def _watcher(
    progress: Progress, folder: Path | None, slices: int
) -> Callable[[int, int, Tensor], None]:
    """Shows every step, and keeps some of the images, of several slices by their numbers."""
    before, number = -1, 0

    def tell(step: int, steps: int, image: Tensor) -> None:
        nonlocal before, number
        number += step <= before  # the next slice begins
        before = step
        part = f"slice_{number:03d}_" if slices > 1 else ""
        progress(step, steps, "")
        if folder is not None and (step == steps or step % max(1, steps // PICTURES) == 0):
            from matplotlib.image import imsave

            shown = image.detach().abs().cpu()
            shown = shown.reshape(-1, *shown.shape[-2:])[0]
            imsave(folder / f"{part}step_{step:05d}.png", shown.numpy(), cmap="gray", vmin=0)

    return tell
