"""Masks of training measurements."""

from __future__ import annotations

import torch
from torch import Tensor

from snrecon.errors import InputError
from snrecon.physics.masks import make_mask
from snrecon.training.config import SimulationConfig

PLANAR = ("poisson", "gaussian2d")
"""Mask kinds that vary along both axes."""


def draw_mask(
    settings: SimulationConfig, grid: tuple[int, ...], generator: torch.Generator, strip: bool
) -> Tensor:
    """A boolean mask ``(ky, kx)`` of the configured kinds, accelerations and calibration.

    Args:
        settings: ``kinds``, ``accelerations`` and ``calibration``.
        grid: ``(ky, kx)``.
        generator: Source of randomness.
        strip: The grid is a strip of a wider image: only kinds that leave kx fully sampled.

    Raises:
        InputError: if there is no such kind, or a mask cannot be made.
    """
    kinds = [kind for kind in settings.kinds if not strip or kind not in PLANAR]
    if not kinds:
        raise InputError("strips need mask kinds that leave kx fully sampled: set [simulation] "
                         "kinds to some.")
    kind = kinds[int(torch.randint(len(kinds), (), generator=generator))]
    rates = settings.accelerations
    rate = rates[int(torch.randint(len(rates), (), generator=generator))]
    low, high = settings.calibration
    share = low + (high - low) * float(torch.rand((), generator=generator))
    lines = max(4, round(grid[0] * min(share, 0.4 / rate)))
    if kind in PLANAR:
        lines *= 2
    seed = int(torch.randint(2**31, (), generator=generator))
    return make_mask(kind, grid, rate, calibration=lines, seed=seed).tensor
