"""Where a benchmark is measured: the option ``--device``, clocks that wait for a GPU, time limits.

Scans, coil maps, masks, noise and probes are made on the CPU and moved, so that the problem is the
same on every device.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch

from benchmarks.table import table
from snrecon.noise.exact import rows
from snrecon.noise.problem import Problem
from snrecon.noise.replicas import evaluate
from snrecon.physics.clock import clock

CPU = "cpu"
BATCH = 16
"""Of timed VJPs and forward passes on a GPU."""


def add_options(parser: argparse.ArgumentParser, limit: bool = False) -> None:
    """``--device``, and with ``limit`` ``--limit-minutes``."""
    parser.add_argument("--device", default=CPU, metavar="NAME", help="where to measure: cpu, cuda")
    if limit:
        parser.add_argument("--limit-minutes", type=float, default=float("inf"), metavar="X",
                            help="begin no cell after so many minutes")


def chosen_device(name: str) -> torch.device:
    """The device of a name. Convolutions are kept in float32: in TF32, which cuDNN takes by
    default, rounding is larger than what noise scaled by 0.01 changes."""
    device = torch.device(name)
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.zeros(1, device=device)  # fails here, not within the first cell
    return device


def label(device: torch.device | str) -> str:
    """What a cell says of where it was measured."""
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


class Limit:
    """A number of minutes from now on."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    @property
    def over(self) -> bool:
        """Whether they have passed."""
        return time.monotonic() >= self.end


def vjp_passes(problem: Problem) -> float:
    """Forward passes that a VJP takes the time of, both in a batch: :func:`snrecon.noise.exact`
    does not wait for a GPU when it reads its clock."""
    image, kspace = problem.image, problem.scan.kspace
    units = torch.zeros((BATCH, image.numel()), dtype=image.dtype, device=image.device)
    units[range(BATCH), range(BATCH)] = 1
    many = kspace.expand(BATCH, *kspace.shape)
    seconds = {}
    for _ in range(2):  # the first time warms up
        begun = clock(image.device)
        rows(problem, units.reshape(BATCH, *image.shape))
        seconds["vjp"] = clock(image.device) - begun
        with torch.no_grad():
            begun = clock(image.device)
            evaluate(problem, many)
            seconds["forward"] = clock(image.device) - begun
    return seconds["vjp"] / seconds["forward"]


def timed_table(
    header: Sequence[str], lines: Sequence[Sequence[object]], devices: Sequence[str]
) -> str:
    """A table of seconds; where a line is not of the CPU, with a last column that names devices."""
    if all(device == CPU for device in devices):
        return table(header, lines)
    return table([*header, "device"],
                 [(*line, device) for line, device in zip(lines, devices, strict=True)])
